"""`attrace sram`: where chosen patches look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.destination import Destination
from attrace.cli.shared.inputs import read_mask
from attrace.cli.shared.map_files import writer_for
from attrace.cli.shared.options import (
    DIRECTIONS,
    box,
    compat_option,
    contribution_option,
    density_option,
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
from attrace.cli.shared.output import dask_progress, print_json, print_table, say

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis import Trace
    from attrace.analysis.maps.resampler import Resampler
    from attrace.schemas import Direction

PICTURES = (".png", ".pdf", ".svg")


@click.command(
    epilog=examples(
        "attrace sram run.zarr --at 16,12",
        "attrace sram run.zarr --at 16,12 -o sram.png",
        "attrace sram run.zarr --box 8,4,24,20 --steps 5: -o sram.npz --json",
        "attrace sram run.zarr --at 10,10 --direction r2g -o acts.pdf",
    )
)
@trace_argument
@click.option("--at", type=pixel, metavar="ROW,COLUMN", help="A pixel of the generated picture (r2g: the reference).")
@click.option("--box", "box_", type=box, metavar="TOP,LEFT,BOTTOM,RIGHT", help="A box of pixels; ends not included.")
@click.option("--mask", metavar="FILE", help="A picture that is white where patches are chosen.")
@click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    default="g2r",
    show_default=True,
    help="g2r: what generated patches use of the reference; r2g: where reference patches act.",
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Strongest patches to list.")
@click.option("-o", "--output", metavar="PATH", help="A .png, .pdf, .svg, .npz, .zarr or .nc file; may be an address.")
@size_option
@density_option
@compat_option
@resampler_option
@weights_option
@contribution_option
@selection_options
@overwrite_option
@json_option
def sram(
    trace: str,
    at: tuple[int, int] | None,
    box_: tuple[int, int, int, int] | None,
    mask: str | None,
    direction: Direction,
    top: int,
    output: str | None,
    size: tuple[int, int] | None,
    density: bool | None,
    compat: str | None,
    resampler: Resampler,
    weights: str | None,
    contribution: bool,
    overwrite: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """Show what chosen patches use of the reference.

    Choose with one of --at, --box and --mask. Lists the strongest patches of the other picture, in cells of the map and
    in pixels of the picture, and writes the map as a picture or as data with -o.
    """
    from attrace.analysis.maps import i2am, sram as definition

    choices = [choice for choice in (at, box_, mask) if choice is not None]
    if len(choices) != 1:
        raise click.UsageError("choose patches with exactly one of --at, --box and --mask")
    target = None if output is None else Destination(output)
    if target is not None:
        if target.suffix not in PICTURES:
            writer_for(target, [direction])
        target.check(overwrite=overwrite)
    place: Any = choices[0] if mask is None else read_mask(mask, "--mask")
    if mask is not None and place.all():
        raise click.UsageError("--mask: it covers the whole picture, so it chooses nothing; attrace maps has that map")
    chosen = select(trace, **selection)
    if compat is None:
        options: dict[str, Any] = {"size": size, "density": density is not False, "resampler": resampler}
        options |= {"weights": weights, "contribution": contribution}
        lazy = definition.sram(chosen, place, direction=direction, **options)
    else:
        refuse_with_compat(density, resampler, weights, contribution=contribution)
        if direction != "g2r":
            raise click.UsageError("--compat i2am has chosen patches for --direction g2r only, as the published code")
        lazy = i2am.sram(chosen, place, size=size)
    with dask_progress():
        heat = lazy.compute()
    if target is not None:
        _write(chosen, heat, place, target)
    _tell(chosen, heat, place, top, output, as_json=as_json)


def _write(trace: Trace, heat: xr.DataArray, place: Any, target: Destination) -> None:
    if target.suffix not in PICTURES:
        import xarray as xr

        direction = str(heat.attrs["direction"])
        write = writer_for(target, [direction])
        maps = xr.DataTree.from_dict({direction: xr.Dataset({"sram": heat})})
        target.write(lambda path: write(maps, path))
        return
    from attrace.analysis.figures import draw_chosen, save_figure

    target.write(lambda path: save_figure(draw_chosen(trace, heat, place), path))


def _tell(trace: Trace, heat: xr.DataArray, place: Any, top: int, output: str | None, *, as_json: bool) -> None:
    from attrace.analysis.maps.sram import count_chosen, strongest_patches
    from attrace.analysis.scores.trace_scores import map_name

    patches = strongest_patches(trace, heat, top)
    chosen, grid = count_chosen(trace, place, "r2g" if heat.attrs["direction"] == "r2g" else "g2r")
    if as_json:
        print_json(
            {
                "direction": heat.attrs["direction"],
                "map": map_name(heat),
                "grid": [heat.sizes["row"], heat.sizes["column"]],
                "chosen": chosen,
                "patches": [patch._asdict() for patch in patches],
                "output": output,
            }
        )
        return
    say(f"{chosen} of {grid[0]} x {grid[1]} patches chosen; {map_name(heat)}")
    rows = [["row", "column", "pixel", "weight", "share"]]
    rows += [
        [str(one.row), str(one.column), ",".join(map(str, one.pixel)), f"{one.weight:.4g}", f"{one.share:.1%}"]
        for one in patches
    ]
    print_table(rows, right=(0, 1, 2, 3, 4))
