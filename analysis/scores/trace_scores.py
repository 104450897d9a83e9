"""Every number of a trace at once: of its maps, of its maps and a mask, of its picture and the true one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Unpack

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps import i2am
from attrace.analysis.maps.attribution import MapOptions, level_maps, mappable_directions
from attrace.analysis.maps.masks import as_mask, coverage, require_proportions, trace_mask
from attrace.analysis.maps.sram import opposite, picture_size
from attrace.analysis.scores.boxes import bounding_box, iou, mask_box
from attrace.analysis.scores.ground_truth import correspondence_scores
from attrace.analysis.scores.matches import Matches
from attrace.analysis.scores.measures import agreement, drift, effective_tokens, entropy, imacs, mass
from attrace.analysis.scores.perceptual import lpips, require_lpips
from attrace.analysis.scores.pictures import psnr, ssim
from attrace.analysis.trace.trace import require_trace
from attrace.schemas import Direction, InputError
from attrace.schemas.words import DIRECTIONS

if TYPE_CHECKING:
    from attrace.analysis.trace.trace import Trace

BETTER: Final[Mapping[str, Literal["higher", "lower", ""]]] = {
    "imacs": "higher",
    "imacs_stableviton": "",  # higher over the reference, lower over the generated picture
    "imacs_viton_step_1": "higher",
    "inside": "higher",
    "area": "",
    "iou": "higher",
    "entropy": "",
    "effective_tokens": "",
    "head_agreement": "",
    "layer_agreement": "",
    "drift": "",
    "psnr": "higher",
    "ssim": "higher",
    "psnr_inside": "higher",
    "ssim_inside": "higher",
    "lpips": "lower",
    "correspondence_error": "lower",
    "pck": "higher",
}
"""Which way of each score is better; empty where neither is. `docs/scores.md` has the reasons."""

MASK_SCORES: Final = ("imacs", "imacs_stableviton", "imacs_viton_step_1", "inside", "area", "iou")
"""Numbers of a unified map and a mask."""


CORRESPONDENCE_SCORES: Final = ("correspondence_error", "pck")
"""Numbers of each layer and true places."""

PICTURE_SCORES: Final = ("psnr", "ssim", "psnr_inside", "ssim_inside", "lpips")
"""Numbers of a picture and the true one."""


class Score(NamedTuple):
    """One number as a line of a table."""

    score: str
    of: str
    """The direction, picture or layer that it is of."""
    map: str
    """Weighting and grid of the unified map that it is of; empty where it is of no map."""
    value: float
    better: str
    """`higher`, `lower`, or empty where neither is."""


def score_trace(
    trace: Trace,
    masks: Mapping[Direction, NDArray[Any]] | None = None,
    *,
    groups: int | None = None,
    compat: i2am.Code | None = None,
    truth: NDArray[np.uint8] | None = None,
    places: ArrayLike | Matches | None = None,
    perceptual: bool = False,
    **options: Unpack[MapOptions],
) -> xr.Dataset:
    """Every number of a trace, from one pass over its data.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    masks
        By direction, a mask over the picture that its maps lie over; by default the mask of the trace, for `r2g`.
    groups
        Groups of steps of the drift.
    compat
        Take the IMACS of that published code of the map that it computes, where it has one for the direction; else it
        is of the map that all other numbers are of.
    truth
        The true picture, uint8 (row, column, channel); by default the picture `truth` of the trace, if there is one.
    places
        True places as for `places_on_grid`, or matched points as `match_pictures` finds them.
    perceptual
        Compute LPIPS of the picture and the true one, too.
    **options
        `size`, `layers`, `density`, `resampler`, `weights` and `contribution` of the maps, as for `attribution_map`.

    Returns
    -------
    xarray.Dataset
        Along `direction`, with the weighting and grid of the map as `map`, what `score_maps` gives, those of
        `MASK_SCORES` NaN for a direction without a mask; what `score_picture` gives; and `correspondence_error` and
        `pck` (layer) where places are given. The attribute `better` of each says which way is better.

    Raises
    ------
    InputError
        If the trace has no map, a mask, picture or place does not fit it, or what `lpips` needs is missing.
    """
    require_trace(trace)
    if masks is None:
        stored = trace_mask(trace)
        masks = {} if stored is None else {"r2g": stored}
    if perceptual:
        require_lpips()
    directions = tuple(one for one in DIRECTIONS if one in masks or one in mappable_directions(trace))
    maps = level_maps(trace, directions=directions, groups=groups, **options).compute()
    of_maps = []
    for direction in directions:
        mask = masks.get(direction)
        if mask is not None:
            require_proportions(mask, picture_size(trace, opposite(direction)))
        published = None if compat is None else i2am.scored_map(trace, direction, compat, masks.get("r2g"))
        of_code = {} if published is None or compat is None else {compat: published.compute()}
        of_maps.append(score_maps(maps[direction].to_dataset(), mask, published=of_code))
    scores = xr.concat(of_maps, xr.Variable("direction", list(directions)), data_vars="all", coords="minimal")
    names = [map_name(maps[direction].data_vars["ulam"]) for direction in directions]
    scores = scores.assign_coords(map=("direction", names))
    scores = scores.assign(score_picture(trace, truth, masks.get("r2g"), perceptual=perceptual))
    if places is not None:
        of_places = correspondence_scores(trace, places)
        scores = scores.assign(of_places).assign_attrs(of_places.attrs)
    return scores.assign(
        {name: scores[name].assign_attrs(better=way) for name, way in BETTER.items() if name in scores}
    )


def score_maps(
    maps: xr.Dataset,
    mask: ArrayLike | None = None,
    *,
    published: Mapping[i2am.Code, xr.DataArray] | None = None,
) -> xr.Dataset:
    """Numbers of the computed maps of one direction.

    Parameters
    ----------
    maps
        By level, as `level_maps` gives them: `ulam`, and any of the others. Maps of layers or heads that are NaN, for
        want of a grid, do not count.
    mask
        (row, column) over the picture of the maps, bool or fractions in [0, 1], of any resolution.
    published
        Maps of published codes, for their IMACS; by default that is of `ulam`.

    Returns
    -------
    xarray.Dataset
        `entropy` (nats) and `effective_tokens` of the unified map, and its `cells`; `head_agreement`,
        `layer_agreement` and `drift` of the other levels, NaN where there are no two maps to compare. With a mask
        `MASK_SCORES`, and `box` and `mask_box` (edge), in pixels of the mask: around the region of high attribution
        (NaN where there is none) and around the mask.

    Raises
    ------
    InputError
        If the mask covers nothing or all of it.
    """
    unified = maps["ulam"]
    scores: dict[str, Any] = {
        "entropy": entropy(unified),
        "effective_tokens": effective_tokens(unified),
        "cells": unified.sizes["row"] * unified.sizes["column"],
    }
    if mask is not None:
        scores |= _mask_scores(unified, as_mask(mask, "mask"), published or {})
    for name, level, dim, score in _OF_SEVERAL:
        if level in maps:
            known = maps[level].dropna(dim, how="all")
            scores[name] = score(known, dim) if known.sizes[dim] > 1 else math.nan
    return xr.Dataset(scores, {"edge": ["top", "left", "bottom", "right"]} if mask is not None else {})


_OF_SEVERAL: Final[tuple[tuple[str, str, str, Callable[..., xr.DataArray]], ...]] = (
    ("head_agreement", "hlam", "head", agreement),
    ("layer_agreement", "llam", "layer", agreement),
    ("drift", "tlam", "time_group", drift),
)


def score_picture(
    trace: Trace,
    truth: NDArray[np.uint8] | None = None,
    mask: NDArray[Any] | None = None,
    *,
    perceptual: bool = False,
) -> dict[str, float]:
    """How near the generated picture of a trace is to the true one: numbers by name, none where there is no true one.

    Parameters
    ----------
    trace
        Holds `generated`.
    truth
        The true picture; by default `truth` of the trace.
    mask
        (row, column) over the picture, of any resolution; pixels that it covers by more than half are inside.
    perceptual
        Compute LPIPS, too.

    Returns
    -------
    dict
        `psnr`, in dB, infinite where they are equal; `ssim`, where scikit-image is installed; both with `_inside` of
        the pixels inside the mask; `lpips`.

    Raises
    ------
    InputError
        If a truth is given and the trace has no generated picture, or one of another shape; if LPIPS is asked for and
        there is no truth, or what it needs is missing.
    """
    if truth is None:
        if not {"truth", "generated"} <= set(trace.images):
            if perceptual:
                raise InputError(f"trace {trace.path}: LPIPS needs its generated picture and a true one (--truth)")
            return {}
        truth = trace.images["truth"].values
    elif "generated" not in trace.images:
        raise InputError(f"trace {trace.path} holds no generated picture to compare with the true one")
    generated = trace.images["generated"].values
    regions = {"": np.ones(generated.shape[:2], bool)}
    if mask is not None and (inside := coverage(as_mask(mask, "mask"), generated.shape[:2]) > 0.5).any():
        regions["_inside"] = inside
    scores = {f"psnr{suffix}": psnr(generated, truth, mask=region) for suffix, region in regions.items()}
    if find_spec("skimage") is not None:
        scores |= {f"ssim{suffix}": ssim(generated, truth, mask=region) for suffix, region in regions.items()}
    return scores | ({"lpips": lpips(generated, truth)} if perceptual else {})


def map_name(heat: xr.DataArray) -> str:
    """Weighting and grid of a map, such as `contribution, density, weighted by effect, 16 x 16`."""
    unit = "density" if heat.attrs.get("normalisation") == "density" else "plain weights"
    weighting = f", weighted by {heat.attrs['weights']}" if "weights" in heat.attrs else ""
    quantity = "contribution, " if heat.attrs.get("quantity") == "contribution" else ""
    return f"{quantity}{unit}{weighting}, {heat.sizes['row']} x {heat.sizes['column']}"


def scores_by_direction(scores: xr.Dataset) -> dict[str, xr.Dataset]:
    """The numbers of `score_trace` that are of maps, by direction; those of a mask only where there is one."""
    of_maps = scores.drop_vars([name for name, values in scores.variables.items() if "direction" not in values.dims])
    found = {direction: of_maps.sel(direction=direction) for direction in scores["direction"].values.tolist()}
    without_mask = [*MASK_SCORES, "box", "mask_box"]
    return {
        direction: one.drop_vars(without_mask, errors="ignore") if math.isnan(one.get("area", math.nan)) else one
        for direction, one in found.items()
    }


def score_table(scores: xr.Dataset) -> list[Score]:
    """Every number that `score_trace` gives but for boxes, one a line."""
    numbers = {
        (str(name), direction, str(of_map["map"].values)): value.item()
        for direction, of_map in scores_by_direction(scores).items()
        for name, value in of_map.data_vars.items()
        if name in BETTER
    }
    numbers |= {(name, "generated", ""): scores[name].item() for name in PICTURE_SCORES if name in scores}
    for name in CORRESPONDENCE_SCORES:
        if name in scores:
            numbers |= {(name, str(one["layer"].values), ""): one.item() for one in scores[name]}
    return [Score(name, of, of_map, value, BETTER[name]) for (name, of, of_map), value in numbers.items()]


def _mask_scores(
    heat: xr.DataArray, mask: NDArray[np.float64], published: Mapping[i2am.Code, xr.DataArray]
) -> dict[str, Any]:
    scale = np.tile([length / heat.sizes[dim] for dim, length in zip(("row", "column"), mask.shape, strict=True)], 2)
    box = bounding_box(heat)
    in_pixels = None if box is None else np.rint(np.array(box) * scale).astype(int)
    around = mask_box(mask > 0)
    codes: tuple[i2am.Code, ...] = ("stableviton", "viton-step-1")
    return {
        "imacs": imacs(heat, mask),
        **{f"imacs_{code.replace('-', '_')}": imacs(published.get(code, heat), mask, variant=code) for code in codes},
        "inside": mass(heat, mask),
        "area": mask.mean(),
        "iou": iou(None if in_pixels is None else tuple(in_pixels.tolist()), around),
        "box": ("edge", np.full(4, np.nan) if in_pixels is None else in_pixels),
        "mask_box": ("edge", np.array(around)),
    }
