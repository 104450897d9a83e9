"""The patches of a map with the most attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from attrace.analysis.maps.sram import picture_size
from attrace.schemas import Direction, InputError

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis.trace.trace import Trace


class Patch(NamedTuple):
    """One cell of a map."""

    row: int
    column: int
    pixel: tuple[int, int]
    """Row and column of its middle, in pixels of the picture that the map lies over."""
    weight: float
    """Its value."""
    share: float
    """Its part of the sum of the map."""


def strongest_patches(trace: Trace, heat: xr.DataArray, count: int = 1) -> list[Patch]:
    """The cells of a map (row, column) with the largest values, the largest first.

    Raises
    ------
    InputError
        If the map has other dimensions, or no value.
    """
    if set(heat.dims) != {"row", "column"}:
        raise InputError(f"expected a map (row, column), found dims {heat.dims}: select one first")
    values = np.asarray(heat.transpose("row", "column").values, np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        raise InputError("the map has no finite value: the selected layers were not called in the selected steps")
    order = known[np.argsort(-values.ravel()[known], kind="stable")][:count]
    # the pictures in which a choice for the other direction counts
    opposite: Direction = "g2r" if heat.attrs.get("direction") == "r2g" else "r2g"
    scales = [length / cells for length, cells in zip(picture_size(trace, opposite), values.shape, strict=True)]
    total = float(np.nansum(values))
    patches = []
    for row, column in zip(*np.unravel_index(order, values.shape), strict=True):
        weight = float(values[row, column])
        pixel = int((row + 0.5) * scales[0]), int((column + 0.5) * scales[1])
        patches.append(Patch(int(row), int(column), pixel, weight, weight / total if total else 0.0))
    return patches
