"""`attrace maps`: compute maps and write them with their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.destination import Destination
from attrace.cli.shared.map_files import named_maps, writer_for
from attrace.cli.shared.options import (
    compat_option,
    contribution_option,
    density_option,
    direction_option,
    examples,
    json_option,
    level_option,
    overwrite_option,
    refuse_with_compat,
    resampler_option,
    select,
    selection_options,
    size_option,
    trace_argument,
    weights_option,
)
from attrace.cli.shared.output import dask_progress, print_json, print_table

if TYPE_CHECKING:
    from attrace.analysis.maps.resampler import Resampler
    from attrace.schemas import Direction, Level


@click.command(
    epilog=examples(
        "attrace maps run.zarr -o maps.npz",
        "attrace maps run.zarr -o maps.zarr --level ulam --level llam --direction g2r",
        "attrace maps run.zarr -o weighted.npz --weights weights.json",
        'attrace maps run.zarr -o early.npz --steps 0:9 --layers "up_blocks.*" --size 64x64',
    )
)
@trace_argument
@click.option(
    "-o", "--output", metavar="PATH", required=True, help="A .npz, .zarr or .nc file to write; may be an address."
)
@level_option
@direction_option
@click.option("--groups", type=click.IntRange(min=1), help="Groups of steps of the time-level maps; 5 by default.")
@size_option
@density_option
@compat_option
@resampler_option
@weights_option
@contribution_option
@selection_options
@overwrite_option
@json_option
def maps(
    trace: str,
    output: str,
    level: tuple[Level, ...],
    direction: tuple[Direction, ...],
    groups: int | None,
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
    """Compute maps and write them with their labels.

    Levels: ulam (one map), tlam (groups of steps), hlam (heads), llam (layers). The suffix of the output says how it
    is written; .npz needs nothing but NumPy to be read, .zarr and .nc open with xarray.
    """
    from attrace.analysis.maps import attribution, i2am

    target = Destination(output)
    target.check(overwrite=overwrite)
    chosen = select(trace, **selection)
    options: dict[str, Any] = {"levels": level, "directions": direction or None, "groups": groups, "size": size}
    if compat is None:
        options |= {
            "density": density is not False,
            "resampler": resampler,
            "weights": weights,
            "contribution": contribution,
        }
        lazy = attribution.level_maps(chosen, **options)
    else:
        refuse_with_compat(density, resampler, weights, contribution=contribution)
        lazy = i2am.level_maps(chosen, **options)
    write = writer_for(target, lazy.children)
    with dask_progress():
        computed = lazy.compute()
    target.write(lambda path: write(computed, path))
    if as_json:
        told = {name: {"dims": dict(heat.sizes), **heat.attrs} for name, heat in named_maps(computed)}
        print_json({"output": output, "maps": told})
        return
    rows = [["map", "dims", "smallest", "mean", "largest"]]
    for name, heat in named_maps(computed):
        dims = " ".join(f"{dim}={length}" for dim, length in heat.sizes.items())
        rows.append([name, dims, *(f"{float(value):.4g}" for value in (heat.min(), heat.mean(), heat.max()))])
    print_table(rows, right=(2, 3, 4))
