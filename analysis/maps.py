"""The attribution maps of I2AM: unified, time-level, head-level and layer-level, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import xarray as xr

from attrace.analysis.level_map import level_map
from attrace.analysis.marginals import ATTRIBUTES
from attrace.analysis.plans import Size, checked_size, finest_grid, grid_plans
from attrace.analysis.time_groups import time_group_coordinates, time_groups
from attrace.analysis.trace import Layers, Trace
from attrace.analysis.traces import Traces, map_each
from attrace.analysis.weights import Keys, Queries
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.words import DIRECTIONS

_LONG_NAMES: Final[dict[Level, str]] = {
    "ulam": "unified attribution map",
    "tlam": "time-level attribution map",
    "hlam": "head-level attribution map",
    "llam": "layer-level attribution map",
}


def ulam(
    trace: Trace | Traces,
    *,
    direction: Direction = "r2g",
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    density: bool = False,
) -> xr.DataArray:
    """Unified attribution map: the mean over steps, layers and heads.

    Parameters
    ----------
    trace
        The trace, or a selection of it; or many, whose maps then lie along `trace`, with the metadata of each.
    direction
        `r2g`: where in the generated picture the reference acts, a map over the generated picture. `g2r`: which parts
        of the reference are used, a map over the reference.
    size
        Rows and columns of the map; by default those of the finest grid recorded for the direction.
    layers
        Module paths or globs of the layers to take; None for all that have a grid.
    queries
        Queries that count: a mask (row, column) over the generated picture, of any resolution; it is laid over the
        grid of each layer by area. For `g2r` they are the I of the mean over queries; an `r2g` map is kept under it.
    keys
        Keys that count: a mask over the reference picture, a kind of key, `all`, or places of keys; None for the
        patches (all keys where there are none). For `r2g` they are the J of the mean over keys; a `g2r` map is kept
        under them.
    density
        Multiply the map of each layer by the number of patches that its softmax shares out, so that 1 is what even
        attention gives. Without it, as in the paper, a patch of a coarse layer weighs more than one of a fine layer
        (an `r2g` map of 8 x 8 queries is 1/64 on average, one of 64 x 64 is 1/4096), and coarse layers dominate
        every mean over layers of several grids.

    Returns
    -------
    xarray.DataArray
        (row, column), lazy, float32 or float64, not negative. `row` and `column` count cells of the map.

    Raises
    ------
    InputError
        If no selected layer has a grid for the direction, or what counts is nothing.
    SelectionError
        If `layers` names no layer.

    Notes
    -----
    Each (layer, head) is averaged over the steps, resized (bicubic, a = -0.75, half-pixel centres, no antialias),
    clamped at 0, and all pairs are averaged with equal weight. A step in which a site was not called is left out of
    its mean. I2AM (arXiv 2407.12331), section 3.
    """
    if isinstance(trace, Traces):
        return _of_each(trace, ulam, direction, size, layers=layers, queries=queries, keys=keys, density=density)
    return attribution_map(trace, "ulam", direction, size, layers, queries, keys, density=density)


def tlam(
    trace: Trace | Traces,
    *,
    direction: Direction = "r2g",
    groups: int | None = None,
    group_size: int | None = None,
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    density: bool = False,
) -> xr.DataArray:
    """Time-level attribution map: the mean over layers and heads, for each group of consecutive steps.

    Parameters
    ----------
    trace, direction, size, layers, queries, keys, density
        As in `ulam`.
    groups
        Number of groups, of as equal a size as can be; 5 by default (fewer where there are fewer steps).
    group_size
        Steps in a group, in place of `groups`; the last group may be smaller.

    Returns
    -------
    xarray.DataArray
        (time_group, row, column), lazy; `first_call` and `last_call` say which calls of the denoiser a group holds.

    Raises
    ------
    InputError
        As `ulam`, or if both `groups` and `group_size` are given, or there are more groups than steps.
    SelectionError
        If `layers` names no layer.
    """
    if isinstance(trace, Traces):
        grouped = partial(tlam, groups=groups, group_size=group_size)
        return _of_each(trace, grouped, direction, size, layers=layers, queries=queries, keys=keys, density=density)
    spans = time_groups(trace, groups, group_size)
    maps = attribution_map(trace, "tlam", direction, size, layers, queries, keys, spans, density=density)
    return maps.assign_coords(time_group_coordinates(trace, spans))


def hlam(
    trace: Trace | Traces,
    *,
    direction: Direction = "r2g",
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    density: bool = False,
) -> xr.DataArray:
    """Head-level attribution map: the mean over steps and layers, for each head.

    Parameters and errors are those of `ulam`.

    Returns
    -------
    xarray.DataArray
        (head, row, column), lazy; each head is averaged over the layers that have it.
    """
    if isinstance(trace, Traces):
        return _of_each(trace, hlam, direction, size, layers=layers, queries=queries, keys=keys, density=density)
    return attribution_map(trace, "hlam", direction, size, layers, queries, keys, density=density)


def llam(
    trace: Trace | Traces,
    *,
    direction: Direction = "r2g",
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    density: bool = False,
) -> xr.DataArray:
    """Layer-level attribution map: the mean over steps and heads, for each layer.

    Parameters and errors are those of `ulam`.

    Returns
    -------
    xarray.DataArray
        (layer, row, column), lazy; layers in the order of their calls.
    """
    if isinstance(trace, Traces):
        return _of_each(trace, llam, direction, size, layers=layers, queries=queries, keys=keys, density=density)
    return attribution_map(trace, "llam", direction, size, layers, queries, keys, density=density)


def _of_each(
    traces: Traces, maker: Callable[..., xr.DataArray], direction: Direction, size: Size | None, **options: Any
) -> xr.DataArray:
    """The map of every trace, all of one size: by default the finest grid of all of them."""
    if size is None:
        for trace in traces:
            grid_plans(trace, direction, None, None)
        size = max((finest_grid(trace, direction) for trace in traces), key=lambda grid: (grid[0] * grid[1], grid))
    return map_each(traces, maker, checked_size(size), options | {"direction": direction})


def attribution_map(
    trace: Trace,
    level: Level,
    direction: Direction,
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    spans: Sequence[slice] | None = None,
    *,
    density: bool = False,
) -> xr.DataArray:
    """The map of a level; `spans` are the groups of steps of a time-level map. Else as `ulam`."""
    if direction not in DIRECTIONS:
        raise InputError(f"direction: expected r2g or g2r, found {direction!r}")
    chosen = trace if layers is None else trace.sel(layer=layers)
    plans = grid_plans(chosen, direction, queries, keys, density=density)
    size = checked_size(size) if size is not None else finest_grid(trace, direction)
    maps = level_map(chosen, level, plans, size, spans)
    named = f"{_LONG_NAMES[level]}, {ATTRIBUTES[direction]['long_name'].partition(' (')[0]}"
    return maps.rename(f"{level}_{direction}").assign_attrs(
        direction=direction,
        long_name=f"{named}, relative to even attention" if density else named,
        normalisation="density" if density else "none",
    )
