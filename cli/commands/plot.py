"""`attrace plot`: draw the maps of a trace."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from attrace.cli.shared.options import (
    LEVELS,
    LocalPath,
    compat_option,
    contribution_option,
    density_option,
    direction_option,
    examples,
    json_option,
    overwrite_option,
    pixel,
    refuse_with_compat,
    resampler_option,
    select,
    selection_options,
    size_option,
    trace_argument,
    weights_option,
)
from attrace.cli.shared.output import dask_progress, print_json, print_paths

if TYPE_CHECKING:
    from attrace.analysis import Trace
    from attrace.analysis.figures.save import FileFormat
    from attrace.analysis.maps.resampler import Resampler
    from attrace.analysis.maps.sram import At
    from attrace.schemas import Direction, Level

FIGURES: Final = (*LEVELS, "sram")


@click.command(
    epilog=examples(
        "attrace plot run.zarr -o figures",
        "attrace plot run.zarr -o figures --level tlam --groups 8 --direction r2g --format pdf",
    )
)
@trace_argument
@click.option("-o", "--output", type=LocalPath(), required=True, help="Folder for the pictures.")
@click.option(
    "--level",
    type=click.Choice(FIGURES),
    multiple=True,
    default=FIGURES,
    help="May be repeated; all by default. sram: chosen patches.",
)
@direction_option
@click.option("--groups", type=click.IntRange(min=1), help="Groups of steps of the time-level maps; 5 by default.")
@click.option("--at", type=pixel, metavar="ROW,COLUMN", help="Patch for sram_g2r: a pixel of the generated picture.")
@size_option
@density_option
@compat_option
@resampler_option
@weights_option
@contribution_option
@selection_options
@click.option(
    "--format",
    "file_format",
    type=click.Choice(("png", "pdf", "svg")),
    default="png",
    show_default=True,
    help="Of the files.",
)
@click.option("--smooth", is_flag=True, help="Interpolate between the cells of a map; the picture says so.")
@overwrite_option
@json_option
def plot(
    trace: str,
    output: Path,
    level: tuple[Level | Literal["sram"], ...],
    direction: tuple[Direction, ...],
    groups: int | None,
    at: tuple[int, int] | None,
    size: tuple[int, int] | None,
    density: bool | None,
    compat: str | None,
    resampler: Resampler,
    weights: str | None,
    contribution: bool,
    file_format: FileFormat,
    smooth: bool,
    overwrite: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """Draw the maps of a trace over its pictures.

    Makes a file for each level and direction, and for chosen patches (sram), and prints their names. The maps of
    a figure share one colour scale; the picture below them is grey, so that colour means attention. With --compat
    the values are those that the published code draws: scaled to [0, 1], R2G turned round, up to 0.4 set to 0.
    """
    from attrace.analysis.figures import Paint, save_figures

    chosen = select(trace, **selection)
    options: dict[str, Any] = {"levels": level, "directions": direction or None, "groups": groups, "size": size}
    options |= {"at": at, "paint": Paint(smooth=smooth), "file_format": file_format, "overwrite": overwrite}
    if compat is not None:
        refuse_with_compat(density, resampler, weights, contribution=contribution)
    by_definition = partial(
        save_figures, density=density is not False, resampler=resampler, weights=weights, contribution=contribution
    )
    save = by_definition if compat is None else _save_published
    with dask_progress():
        files = save(chosen, output, **options)
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        print_paths(files)


def _save_published(
    trace: Trace,
    folder: Path,
    *,
    levels: Collection[Level | Literal["sram"]],
    directions: Collection[Direction] | None,
    groups: int | None,
    size: tuple[int, int] | None,
    at: tuple[int, int] | None,
    **options: Any,
) -> list[Path]:
    """Draw the values that the published code of I2AM draws, of the maps that it computes."""
    from attrace.analysis.figures.save import save_maps, strongest_place
    from attrace.analysis.maps import i2am

    possible = i2am.mappable_directions(trace)
    directions = possible if directions is None else directions
    plain: list[Level] = [level for level in levels if level != "sram"]
    maps = i2am.level_maps(trace, levels=plain, directions=directions, groups=groups, size=size)
    chosen: dict[Direction, At] = {}
    if "sram" in levels and "g2r" in directions and len(possible) > 1:
        chosen["g2r"] = at or strongest_place(trace, "g2r")
        maps["g2r/sram"] = i2am.sram(trace, chosen["g2r"], size=size)
    shown = maps.map_over_datasets(lambda one: one.map(i2am.as_published))
    return save_maps(trace, shown, folder, chosen=chosen, **options)
