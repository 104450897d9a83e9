"""`attrace score`: how well the maps keep to a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attrace.cli.inputs import read_mask
from attrace.cli.options import (
    density_option,
    examples,
    json_option,
    select,
    selection_options,
    size_option,
    trace_argument,
)
from attrace.cli.output import dask_progress, print_json
from attrace.cli.scores import print_scores, score_trace, scores_as_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from attrace.analysis import Trace
    from attrace.schemas import Direction


@click.command(
    epilog=examples(
        "attrace score run.zarr",
        "attrace score run.zarr --mask mask.png --compat i2am",
        'attrace score run.zarr --reference-mask mask.png --layers "up_blocks.*" --json',
    )
)
@trace_argument
@click.option("--mask", metavar="FILE", help="Painted region, white; by default the mask in the trace.")
@click.option("--reference-mask", metavar="FILE", help="Object in the reference, white: scores the g2r map too.")
@click.option("--compat", type=click.Choice(("i2am",)), help="Show IMACS as the published code computes it, too.")
@size_option
@density_option
@selection_options
@json_option
def score(
    trace: str,
    mask: str | None,
    reference_mask: str | None,
    compat: str | None,
    size: tuple[int, int] | None,
    density: bool | None,
    as_json: bool,
    **selection: Any,
) -> None:
    """Score how well the maps keep to a mask.

    For the unified map: IMACS (mean inside - 3 x mean outside, at best 1), the share of attention inside the mask and
    the share of the picture it covers, the box around the strongest region and its overlap (IoU) with the mask's box,
    and its effective number of tokens: the cells that an even map of the same entropy has.
    Boxes are top,left,bottom,right in pixels of the mask. Maps are 64 cells along the longer side unless --size.
    """
    chosen = select(trace, **selection)
    masks: dict[Direction, NDArray[Any]] = {}
    if mask is not None:
        masks["r2g"] = read_mask(mask, "--mask")
    elif "mask" in chosen.images:
        masks["r2g"] = stored_mask(chosen)
    if reference_mask is not None:
        masks["g2r"] = read_mask(reference_mask, "--reference-mask")
    if not masks:
        raise click.UsageError(f"trace {chosen.path} holds no mask: pass --mask FILE or --reference-mask FILE")
    with dask_progress():
        scores = score_trace(chosen, masks, size=size, density=bool(density))
    if as_json:
        print_json(scores_as_json(scores))
    else:
        print_scores(scores, compat=compat is not None)


def stored_mask(trace: Trace) -> NDArray[Any]:
    """The mask in a trace: bool (row, column)."""
    pixels: NDArray[Any] = trace.images["mask"].values
    return (pixels if pixels.ndim == 2 else pixels[..., 0]) > 127
