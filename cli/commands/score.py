"""`attrace score`: maps against a mask, each other and the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.inputs import read_mask
from attrace.cli.shared.options import (
    contribution_option,
    density_option,
    examples,
    json_option,
    select,
    selection_options,
    size_option,
    trace_argument,
    weights_option,
)
from attrace.cli.shared.output import dask_progress, print_json
from attrace.cli.shared.scores import print_scores, print_scores_csv, read_places, read_truth, scores_as_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attrace.analysis.maps.i2am import Code
    from attrace.schemas import Direction


@click.command(
    epilog=examples(
        "attrace score run.zarr",
        "attrace score run.zarr --mask mask.png --compat i2am",
        'attrace score run.zarr --reference-mask mask.png --layers "up_blocks.*" --json',
        "attrace score run.zarr --truth truth.png --places mask --csv",
    )
)
@trace_argument
@click.option("--mask", metavar="FILE", help="Painted region, white; by default the mask in the trace.")
@click.option("--reference-mask", metavar="FILE", help="Object in the reference, white: scores the g2r map too.")
@click.option("--truth", metavar="FILE", help="The true picture; by default the picture `truth` in the trace.")
@click.option(
    "--places",
    metavar="mask|BOX|FILE.npy|matches",
    help="Where the whole reference was laid, true places, or SIFT matches: scores the correspondence of every layer.",
)
@click.option("--lpips", is_flag=True, help="Compute LPIPS, too: needs attrace[perceptual] and its weights.")
@click.option(
    "--compat",
    type=click.Choice(("i2am", "viton-step-1")),
    help="Show IMACS as published code computes it, too: for StableVITON (i2am) or the paper's custom model.",
)
@click.option("--groups", type=click.IntRange(min=1), help="Groups of steps for the drift; 5 by default.")
@size_option
@density_option
@weights_option
@contribution_option
@selection_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a line for each score.")
def score(
    trace: str,
    mask: str | None,
    reference_mask: str | None,
    truth: str | None,
    places: str | None,
    lpips: bool,
    compat: str | None,
    groups: int | None,
    size: tuple[int, int] | None,
    density: bool | None,
    weights: str | None,
    contribution: bool,
    as_json: bool,
    as_csv: bool,
    **selection: Any,
) -> None:
    """Score maps against a mask, each other, and the truth.

    With a mask: IMACS (mean inside - 3 x mean outside, at best 1), the share of attention inside and the share of the
    picture that the mask covers, the box around the strongest region and its overlap (IoU) with the mask's box.
    Always: entropy of the unified map and its effective tokens (cells that an even map of the same entropy has),
    agreement of heads and of layers, drift over the steps. With a true picture: PSNR and SSIM, and LPIPS where asked.
    With --places: how far each layer looks from the true place. docs/scores.md says what each means and when it
    misleads.

    Boxes are top,left,bottom,right in pixels of the mask; --places takes one in pixels of the generated picture. A
    .npy file for --places holds (row, column, 2): for each pixel its row and column in the reference, as shares of
    the height and width, NaN where it has none. `matches` takes points that SIFT finds in both pictures
    (attrace[quality]), where no truth is known; where they are too few it says so. All scores of maps are of one map,
    which the table names: relative to even attention, on the finest grid of its direction, unless --no-density,
    --weights, --contribution or --size.
    """
    from attrace.analysis import score_trace
    from attrace.analysis.maps.masks import trace_mask

    codes: dict[str | None, Code] = {"i2am": "stableviton", "viton-step-1": "viton-step-1"}
    code = codes.get(compat)
    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv, not both")
    chosen = select(trace, **selection)
    masks: dict[Direction, NDArray[np.bool_]] = {}
    if mask is not None:
        masks["r2g"] = read_mask(mask, "--mask")
    elif (stored := trace_mask(chosen)) is not None:
        masks["r2g"] = stored
    if reference_mask is not None:
        masks["g2r"] = read_mask(reference_mask, "--reference-mask")
    true_picture = None if truth is None else read_truth(truth, chosen)
    true_places = None if places is None else read_places(places, chosen, masks.get("r2g"))
    with dask_progress():
        scores = score_trace(
            chosen,
            masks,
            size=size,
            density=density is not False,
            weights=weights,
            contribution=contribution,
            compat=code,
            groups=groups,
            truth=true_picture,
            places=true_places,
            perceptual=lpips,
        )
    if as_json:
        print_json(scores_as_json(scores))
    elif as_csv:
        print_scores_csv(scores)
    else:
        print_scores(scores, code)
