"""How well a unified map keeps to a mask: every number of it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.scores.measures import Box, bounding_box, imacs, iou
from attrace.analysis.scores.statistics import effective_tokens, entropy, mass
from attrace.analysis.trace.weights import as_mask
from attrace.schemas import InputError

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Scorecard:
    """Numbers of one map and one mask."""

    imacs: float
    """IMACS of the paper: at best 1, at worst -3."""
    imacs_i2am: float
    """IMACS as the published code computes it, for comparing with its numbers only."""
    inside: float
    """Share of the map's attention inside the mask."""
    area: float
    """Share of the picture that the mask covers: `inside` of an even map."""
    box: Box | None
    """Box around the largest region of high attribution, in pixels of the mask; None where there is none."""
    mask_box: Box
    """Box around the mask."""
    iou: float
    """Intersection over union of the two boxes."""
    entropy: float
    """Shannon entropy of the map, in nats."""
    effective_tokens: float
    """Cells that an even map of the same entropy has."""


def score_map(
    heat: xr.DataArray,
    mask: ArrayLike,
    *,
    picture_size: tuple[int, int] | None = None,
    published: xr.DataArray | None = None,
) -> Scorecard:
    """Score a map (row, column) against a mask over the same picture.

    Parameters
    ----------
    heat
        The map, with its attributes; computed if it is lazy.
    mask
        (row, column), bool or fractions in [0, 1], of any resolution.
    picture_size
        Rows and columns of the picture, where it is known: the mask must have the same proportions.
    published
        The map of `compat="i2am"`, for its IMACS; by default that is of `heat`.

    Raises
    ------
    InputError
        If the mask has other proportions than the picture, or covers nothing or all of it.
    """
    values = as_mask(mask, "mask")
    if picture_size is not None:
        _require_proportions(values.shape, picture_size)
    heat = heat.compute()
    box = bounding_box(heat)
    in_pixels = None if box is None else _in_pixels(box, (heat.sizes["row"], heat.sizes["column"]), values.shape)
    around = mask_box(values > 0)
    return Scorecard(
        imacs=float(imacs(heat, values)),
        imacs_i2am=float(imacs(heat if published is None else published, values, compat="i2am")),
        inside=float(mass(heat, values)),
        area=float(values.mean()),
        box=in_pixels,
        mask_box=around,
        iou=iou(in_pixels, around),
        entropy=float(entropy(heat)),
        effective_tokens=float(effective_tokens(heat)),
    )


def _require_proportions(mask: tuple[int, ...], picture: tuple[int, int]) -> None:
    """Half a pixel of rounding is allowed: a mask may be stored at another resolution."""
    rows, columns = mask
    if abs(rows * picture[1] - columns * picture[0]) > max(*mask, *picture) / 2:
        raise InputError(
            f"mask: found {rows} x {columns} pixels, expected the proportions of the picture of {picture[0]} x "
            f"{picture[1]} that it lies over"
        )


def _in_pixels(box: Box, grid: tuple[int, ...], size: tuple[int, ...]) -> Box:
    rows, columns = (length / cells for length, cells in zip(size, grid, strict=True))
    return Box(round(box.top * rows), round(box.left * columns), round(box.bottom * rows), round(box.right * columns))


def mask_box(cells: NDArray[np.bool_]) -> Box:
    """Box around what a mask (row, column) selects.

    Raises
    ------
    InputError
        If it selects nothing.
    """
    if not cells.any():
        raise InputError("mask: the mask selects nothing")
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
