"""Attribution of chosen patches: which parts of the reference they look at, or where chosen reference patches act."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.attribution import MapOptions, attribution_map
from attrace.analysis.maps.masks import as_mask, coverage, require_proportions
from attrace.analysis.maps.plan import Size, finest_grid
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.checks import require_choice
from attrace.schemas.words import DIRECTIONS

At = tuple[int, int] | tuple[int, int, int, int] | ArrayLike
"""Chosen patches: a pixel (row, column), a box (top, left, bottom, right; the last two not included), or a mask
(row, column) of any resolution."""


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


def sram(
    trace: Trace,
    at: At,
    *,
    direction: Direction = "g2r",
    level: Level = "ulam",
    groups: int | None = None,
    group_size: int | None = None,
    **options: Unpack[MapOptions],
) -> xr.DataArray:
    """Attribution map of chosen patches (I2AM's specific reference attribution map).

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    at
        The chosen patches: a pixel (row, column), a box (top, left, bottom, right; the last two not included) or a
        mask (row, column). Pixels are those of the generated picture, or with direction `r2g` of the reference;
        where the trace does not know that picture, cells of the finest grid over it. A mask may have any resolution.
        On the grid of each layer a patch counts by how much of it is chosen.
    direction
        `g2r`: for chosen generated patches, the mean over them of the softmax over keys, a map over the reference.
        `r2g`: for chosen reference patches, the mean over them of the softmax over queries, a map over the generated
        picture.
    level
        What is averaged, as for the maps of the same names: `ulam` steps, layers and heads; `tlam`, `hlam` and `llam`
        keep groups of steps, heads or layers.
    groups, group_size
        As in `tlam`.
    **options
        `size`, `layers`, `density`, `resampler`, `weights` and `contribution` as in `attribution_map`.

    Returns
    -------
    xarray.DataArray
        (row, column), after the dimension that `level` keeps; lazy. Only the chosen queries or keys are computed.

    Raises
    ------
    InputError
        If `at` lies outside the picture or is no choice, or no selected layer has a grid for the direction.
    SelectionError
        If `layers` names no layer.
    """
    chosen = chosen_patches(trace, at, direction)
    subset: dict[str, Any] = {"queries": chosen} if direction == "g2r" else {"keys": chosen}
    time: dict[str, Any] = {"groups": groups, "group_size": group_size}
    return as_sram(attribution_map(trace, level, direction=direction, **subset, **options, **time))


def as_sram(maps: xr.DataArray) -> xr.DataArray:
    """The map of a level under chosen patches, with the name and attributes of an SRAM."""
    direction, level = maps.attrs["direction"], maps.attrs["level"]
    over = "reference" if direction == "g2r" else "generated picture"
    quantity = maps.attrs.get("quantity", "attribution")
    named: xr.DataArray = maps.rename(f"sram_{direction}")
    return named.assign_attrs(level="sram", over=level, long_name=f"{quantity} of chosen patches over the {over}")


def chosen_patches(trace: Trace, at: At, direction: Direction = "g2r") -> NDArray[np.float64]:
    """The mask over a picture that a pixel, a box or a mask stands for: float64 (row, column).

    The picture is the generated one for `g2r`, the reference for `r2g`.

    Raises
    ------
    InputError
        If `at` lies outside the picture or is no choice, or a mask has other proportions than the picture.
    """
    require_trace(trace)
    require_choice(direction, DIRECTIONS, "direction")
    values = np.asarray(at)
    if values.ndim == 2:
        mask = as_mask(values, "at")
        require_proportions(mask, picture_size(trace, direction), "at")
        return mask
    if values.shape not in ((2,), (4,)) or values.dtype.kind not in "iu":
        raise InputError(
            "at: expected a pixel (row, column), a box (top, left, bottom, right) or a mask (row, column), "
            f"found {at!r}"
        )
    top, left, *end = values.tolist()
    bottom, right = end or (top + 1, left + 1)
    rows, columns = picture_size(trace, direction)
    if not (0 <= top < bottom <= rows and 0 <= left < right <= columns):
        raise InputError(f"at: {tuple(values.tolist())} lies outside the picture of {rows} x {columns}, or is empty")
    mask = np.zeros((rows, columns))
    mask[top:bottom, left:right] = 1
    return mask


def count_chosen(trace: Trace, at: At, direction: Direction = "g2r") -> tuple[int, Size]:
    """How many patches of the finest grid a choice touches, and that grid: the least that the model can tell apart."""
    grid = finest_grid(trace, opposite(direction))
    return int(np.count_nonzero(coverage(chosen_patches(trace, at, direction), grid))), grid


def picture_size(trace: Trace, direction: Direction = "g2r") -> Size:
    """Rows and columns of the picture that patches are chosen in: the generated one for `g2r`, the reference for `r2g`.

    Those of the finest grid over it where the trace does not know the picture. A map of a direction lies over the
    picture of the other one.
    """
    if direction == "g2r" and trace.manifest.image_size is not None:
        return trace.manifest.image_size
    name = "generated" if direction == "g2r" else trace.reference_name
    if name in trace.images:
        rows, columns = trace.images[name].shape[:2]
        return rows, columns
    return finest_grid(trace, opposite(direction))


def opposite(direction: str) -> Direction:
    """The other direction."""
    return "g2r" if direction == "r2g" else "r2g"


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
    size = picture_size(trace, opposite(heat.attrs.get("direction", "g2r")))
    down, across = (length / cells for length, cells in zip(size, values.shape, strict=True))
    total = float(np.nansum(values))
    patches = []
    for row, column in (divmod(int(cell), values.shape[1]) for cell in order):
        weight = float(values[row, column])
        pixel = int((row + 0.5) * down), int((column + 0.5) * across)
        patches.append(Patch(row, column, pixel, weight, weight / total if total else 0.0))
    return patches
