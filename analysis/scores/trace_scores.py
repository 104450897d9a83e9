"""Every number of a trace at once: of its maps, of its maps and a mask, of its picture and the true one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.attribution import ulam
from attrace.analysis.maps.i2am import Compat
from attrace.analysis.maps.levels import compute_together, level_maps, mappable_directions
from attrace.analysis.maps.sram import picture_size
from attrace.analysis.scores.ground_truth import correspondence_errors
from attrace.analysis.scores.perceptual import lpips, require_lpips
from attrace.analysis.scores.scorecard import Scorecard, score_map
from attrace.analysis.scores.statistics import agreement, drift, effective_tokens, entropy, psnr, ssim
from attrace.analysis.trace.trace import require_trace
from attrace.analysis.trace.weights import as_mask, coverage
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.words import DIRECTIONS, LEVELS

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis.trace.trace import Trace

LONGEST_SIDE: Final = 64
"""Cells along the longer side of a map that is scored: those of the published detection study."""

BETTER: Final[Mapping[str, Literal["higher", "lower"] | None]] = {
    "imacs": "higher",
    "imacs_i2am": None,  # higher over the reference, lower over the generated picture
    "inside": "higher",
    "area": None,
    "iou": "higher",
    "entropy": None,
    "effective_tokens": None,
    "head_agreement": None,
    "layer_agreement": None,
    "drift": None,
    "psnr": "higher",
    "ssim": "higher",
    "psnr_inside": "higher",
    "ssim_inside": "higher",
    "lpips": "lower",
    "correspondence_error": "lower",
}
"""Which way of each score is better; None where neither is. `docs/scores.md` has the reasons."""


@dataclass(frozen=True)
class MapScores:
    """Numbers of the maps of one direction that need no truth; NaN where there are no two maps to compare."""

    entropy: float
    """Of the unified map, in nats."""
    effective_tokens: float
    """Cells that an even map of the same entropy has."""
    cells: int
    """Cells of the map: `effective_tokens` of an even one."""
    head_agreement: float
    """How alike the maps of the heads are, 0 to 1."""
    layer_agreement: float
    """How alike the maps of the layers are, 0 to 1."""
    drift: float
    """How far the centre moves from one group of steps to the next, in shares of the picture's height and width."""


@dataclass(frozen=True)
class PictureScores:
    """How near the generated picture is to the true one."""

    psnr: float
    """Peak signal-to-noise ratio, in dB; infinite where they are equal."""
    ssim: float | None
    """Structural similarity; None where scikit-image is not installed."""
    psnr_inside: float | None = None
    """PSNR of the pixels inside the mask; None without one."""
    ssim_inside: float | None = None
    """SSIM inside the mask."""
    lpips: float | None = None
    """Learned perceptual image patch similarity; None where it was not asked for."""


class Row(NamedTuple):
    """One number as a line of a table."""

    score: str
    of: str
    """The map, picture or layer that it is of."""
    value: float
    better: str
    """`higher`, `lower`, or empty where neither is."""


@dataclass(frozen=True)
class TraceScores:
    """Every number of one trace."""

    cards: dict[str, Scorecard] = field(default_factory=dict)
    """By name of the unified map, for each direction that has a mask."""
    maps: dict[Direction, MapScores] = field(default_factory=dict)
    """By direction."""
    picture: PictureScores | None = None
    """None without a true picture."""
    correspondence: dict[str, float] = field(default_factory=dict)
    """Correspondence error by layer; empty without true places."""

    def rows(self) -> list[Row]:
        """One row for each number; boxes are left out."""
        rows = []
        for name, card in self.cards.items():
            rows += [_row(score, name, value) for score, value in asdict(card).items() if score in _CARD_SCORES]
        for direction, scores in self.maps.items():
            rows += [_row(score, direction, value) for score, value in asdict(scores).items() if score != "cells"]
        if self.picture is not None:
            known = {score: value for score, value in asdict(self.picture).items() if value is not None}
            rows += [_row(score, "generated", value) for score, value in known.items()]
        return rows + [_row("correspondence_error", layer, value) for layer, value in self.correspondence.items()]


_CARD_SCORES: Final = ("imacs", "imacs_i2am", "inside", "area", "iou")


def _row(score: str, of: str, value: float) -> Row:
    return Row(score, of, value, BETTER[score] or "")


def score_trace(
    trace: Trace,
    masks: Mapping[Direction, NDArray[Any]] | None = None,
    *,
    size: tuple[int, int] | None = None,
    density: bool = False,
    groups: int | None = None,
    compat: Compat = None,
    truth: NDArray[np.uint8] | None = None,
    places: ArrayLike | None = None,
    perceptual: bool = False,
) -> TraceScores:
    """Every number of a trace, from one pass over its data.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    masks
        By direction, a mask over the picture that its maps lie over; by default the mask of the trace, for `r2g`.
    size
        Rows and columns of the maps; by default 64 along the longer side of the mask, or of the picture.
    density, groups
        As for `ulam` and `tlam`.
    compat
        `i2am`: take the published code's IMACS of the map that it computes, where it has one for the direction; else
        of the plain map.
    truth
        The true picture, uint8 (row, column, channel); by default the picture `truth` of the trace, if there is one.
    places
        True places as for `places_on_grid`.
    perceptual
        Compute LPIPS of the picture and the true one, too.

    Raises
    ------
    InputError
        If the trace has no map, a mask, picture or place does not fit it, or what `lpips` needs is missing.
    """
    require_trace(trace)
    if perceptual:
        require_lpips()
    if masks is None:
        masks = {"r2g": stored_mask(trace)} if "mask" in trace.images else {}
    maps: dict[str, xr.DataArray] = {}
    directions = tuple(one for one in DIRECTIONS if one in masks or one in mappable_directions(trace))
    for direction in directions:
        shape = masks[direction].shape if direction in masks else _below(trace, direction)
        chosen = size or _in_proportion(shape)
        maps |= level_maps(trace, directions=(direction,), size=chosen, density=density, groups=groups)
    computed = compute_together(maps)
    cards = {
        f"ulam_{direction}": score_map(
            computed[f"ulam_{direction}"],
            mask,
            picture_size=_below(trace, direction),
            published=_published(trace, direction, compat),
        )
        for direction, mask in masks.items()
    }
    return TraceScores(
        cards,
        {direction: score_maps(_levels_of(computed, direction)) for direction in directions},
        score_picture(trace, truth, masks.get("r2g"), perceptual=perceptual),
        {} if places is None else correspondence_errors(trace, places),
    )


def _published(trace: Trace, direction: Direction, compat: Compat) -> xr.DataArray | None:
    if compat is None or direction not in mappable_directions(trace, compat=compat):
        return None
    return ulam(trace, direction=direction, compat=compat).compute()


def stored_mask(trace: Trace) -> NDArray[np.bool_]:
    """The mask in a trace: bool (row, column)."""
    pixels: NDArray[Any] = trace.images["mask"].values
    return (pixels if pixels.ndim == 2 else pixels[..., 0]) > 127


def score_maps(maps: Mapping[Level, xr.DataArray]) -> MapScores:
    """Numbers of the computed maps of all four levels of one direction.

    Maps of layers or heads that are NaN, for want of a grid, do not count.
    """
    unified = maps["ulam"]
    return MapScores(
        entropy=float(entropy(unified)),
        effective_tokens=float(effective_tokens(unified)),
        cells=unified.sizes["row"] * unified.sizes["column"],
        head_agreement=_of_several(agreement, maps["hlam"], "head"),
        layer_agreement=_of_several(agreement, maps["llam"], "layer"),
        drift=_of_several(drift, maps["tlam"], "time_group"),
    )


def score_picture(
    trace: Trace,
    truth: NDArray[np.uint8] | None = None,
    mask: NDArray[Any] | None = None,
    *,
    perceptual: bool = False,
) -> PictureScores | None:
    """How near the generated picture of a trace is to the true one; None where there is no true one.

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
            return None
        truth = trace.images["truth"].values
    elif "generated" not in trace.images:
        raise InputError(f"trace {trace.path} holds no generated picture to compare with the true one")
    generated = trace.images["generated"].values
    inside = None if mask is None else coverage(as_mask(mask, "mask"), generated.shape[:2]) > 0.5
    if inside is not None and not inside.any():
        inside = None
    return PictureScores(
        psnr(generated, truth),
        _ssim(generated, truth, None),
        None if inside is None else psnr(generated, truth, mask=inside),
        None if inside is None else _ssim(generated, truth, inside),
        lpips(generated, truth) if perceptual else None,
    )


def _ssim(generated: NDArray[Any], truth: NDArray[Any], inside: NDArray[np.bool_] | None) -> float | None:
    from importlib.util import find_spec

    return None if find_spec("skimage") is None else ssim(generated, truth, mask=inside)


def _levels_of(maps: Mapping[str, xr.DataArray], direction: Direction) -> dict[Level, xr.DataArray]:
    return {level: maps[f"{level}_{direction}"] for level in LEVELS}


def _of_several(score: Any, maps: xr.DataArray, dim: str) -> float:
    """A score over the maps along a dimension; NaN where there are no two."""
    known = maps.dropna(dim, how="all")
    return float("nan") if known.sizes[dim] < 2 else float(score(known, dim))


def _below(trace: Trace, direction: Direction) -> tuple[int, int]:
    """Rows and columns of the picture that a map lies over.

    Patches are chosen in the other picture: those of `g2r` in the generated one, which an r2g map lies over.
    """
    return picture_size(trace, "g2r" if direction == "r2g" else "r2g")


def _in_proportion(shape: tuple[int, ...]) -> tuple[int, int]:
    """A map in the proportions of a mask or picture."""
    rows, columns = (max(1, round(LONGEST_SIDE * length / max(shape[:2]))) for length in shape[:2])
    return rows, columns
