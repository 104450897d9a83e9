"""Attribution of chosen patches: which parts of the reference they look at, or where chosen reference patches act."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.attribution import MapOptions, attribution_map, planned
from attrace.analysis.maps.i2am import Compat, sampled
from attrace.analysis.maps.plans import Size, finest_grid
from attrace.analysis.maps.resampler import Resampler
from attrace.analysis.maps.time_groups import time_group_coordinates, time_groups
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.analysis.trace.weights import as_mask
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.checks import require_choice
from attrace.schemas.words import DIRECTIONS, LEVELS

At = tuple[int, int] | tuple[int, int, int, int] | ArrayLike
"""Chosen patches: a pixel (row, column), a box (top, left, bottom, right; the last two not included), or a mask
(row, column) of any resolution."""


def sram(
    trace: Trace,
    at: At,
    *,
    direction: Direction = "g2r",
    level: Level = "ulam",
    size: Size | None = None,
    layers: Layers = None,
    groups: int | None = None,
    group_size: int | None = None,
    density: bool = False,
    compat: Compat = None,
    resampler: Resampler = None,
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
    size, layers, density, resampler
        As in `ulam`.
    groups, group_size
        As in `tlam`.
    compat
        As in `ulam`. A mask then chooses the patches whose first pixel lies inside it, each whole. The published code
        has `g2r` alone.

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
    require_choice(level, LEVELS, "level")
    if compat is not None:
        if direction != "g2r":
            raise InputError("compat='i2am' has chosen patches for direction='g2r' only, as the published code")
        if np.ndim(at) == 2:
            taken, _ = planned(trace, level, direction, MapOptions(layers, compat=compat))
            chosen = sampled(chosen, max(grid for one in taken.classes if (grid := one.site_class.query_grid)))
    subset: dict[str, Any] = {"queries": chosen} if direction == "g2r" else {"keys": chosen}
    options = MapOptions(layers, **subset, density=density, compat=compat, resampler=resampler)
    spans = time_groups(trace, groups, group_size) if level == "tlam" else None
    maps = attribution_map(trace, level, direction, size, options, spans)
    if spans is not None:
        maps = maps.assign_coords(time_group_coordinates(trace, spans))
    over = "reference" if direction == "g2r" else "generated picture"
    return maps.rename(f"sram_{direction}").assign_attrs(
        level="sram", over=level, long_name=f"attribution of chosen patches over the {over}"
    )


def chosen_patches(trace: Trace, at: At, direction: Direction = "g2r") -> NDArray[np.float64]:
    """The mask over a picture that a pixel, a box or a mask stands for: float64 (row, column).

    The picture is the generated one for `g2r`, the reference for `r2g`.

    Raises
    ------
    InputError
        If `at` lies outside the picture or is no choice.
    """
    require_trace(trace)
    require_choice(direction, DIRECTIONS, "direction")
    values = np.asarray(at)
    if values.ndim == 2:
        return as_mask(values, "at")
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


def picture_size(trace: Trace, direction: Direction = "g2r") -> Size:
    """Rows and columns in which `at` counts.

    Those of the generated picture for `g2r`, of the reference for `r2g`; of the finest grid over it where the trace
    does not know the picture.
    """
    if direction == "g2r" and trace.manifest.image_size is not None:
        return trace.manifest.image_size
    name = "generated" if direction == "g2r" else trace.reference_name
    if name in trace.images:
        rows, columns = trace.images[name].shape[:2]
        return rows, columns
    return finest_grid(trace, "r2g" if direction == "g2r" else "g2r")
