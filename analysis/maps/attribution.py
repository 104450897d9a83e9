"""The attribution maps of I2AM: unified, time-level, head-level and layer-level, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final

import xarray as xr

from attrace.analysis.maps.i2am import Compat, published_layers
from attrace.analysis.maps.level_map import level_map
from attrace.analysis.maps.marginals import ATTRIBUTES
from attrace.analysis.maps.plans import GridPlan, Size, checked_size, finest_grid, grid_plans
from attrace.analysis.maps.resampler import Resampler
from attrace.analysis.maps.time_groups import time_group_coordinates, time_groups
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.analysis.trace.traces import Traces, map_each
from attrace.analysis.trace.weights import Keys, Queries
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.checks import require_choice
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
    compat: Compat = None,
    resampler: Resampler = None,
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
    compat
        `i2am`: as the published code does it, to compare with its pictures and numbers: its choice of layers (unless
        `layers` or `trace.sel` chooses), all keys for `r2g`, and the sum over steps in place of the mean. Its scaling
        and threshold are in `as_published`.
    resampler
        For `g2r` of an IP-Adapter whose tokens a resampler made of the reference: lay them on its patches, by the
        resampler's last layer (`last`) or all of its layers (`rollout`), as `resampler_shares` says. `keys` is then a
        mask.

    Returns
    -------
    xarray.DataArray
        (row, column), lazy, float32 or float64, not negative. `row` and `column` count cells of the map.

    Raises
    ------
    InputError
        If no selected layer has a grid for the direction, or what counts is nothing; if `compat` or `resampler` does
        not suit the trace or the other options.
    SelectionError
        If `layers` names no layer.

    Notes
    -----
    Each (layer, head) is averaged over the steps, resized (bicubic, a = -0.75, half-pixel centres, no antialias),
    clamped at 0, and all pairs are averaged with equal weight. A step in which a site was not called is left out of
    its mean. I2AM (arXiv 2407.12331).
    """
    options = MapOptions(layers, queries, keys, density, compat, resampler)
    if isinstance(trace, Traces):
        return _of_each(trace, ulam, "ulam", direction, size, options)
    return attribution_map(trace, "ulam", direction, size, options)


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
    compat: Compat = None,
    resampler: Resampler = None,
) -> xr.DataArray:
    """Time-level attribution map: the mean over layers and heads, for each group of consecutive steps.

    Parameters
    ----------
    trace, direction, size, layers, queries, keys, density, compat, resampler
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
    options = MapOptions(layers, queries, keys, density, compat, resampler)
    if isinstance(trace, Traces):
        return _of_each(trace, partial(tlam, groups=groups, group_size=group_size), "tlam", direction, size, options)
    require_trace(trace)
    spans = time_groups(trace, groups, group_size)
    maps = attribution_map(trace, "tlam", direction, size, options, spans)
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
    compat: Compat = None,
    resampler: Resampler = None,
) -> xr.DataArray:
    """Head-level attribution map: the mean over steps and layers, for each head.

    Parameters and errors are those of `ulam`.

    Returns
    -------
    xarray.DataArray
        (head, row, column), lazy; each head is averaged over the layers that have it.
    """
    options = MapOptions(layers, queries, keys, density, compat, resampler)
    if isinstance(trace, Traces):
        return _of_each(trace, hlam, "hlam", direction, size, options)
    return attribution_map(trace, "hlam", direction, size, options)


def llam(
    trace: Trace | Traces,
    *,
    direction: Direction = "r2g",
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    density: bool = False,
    compat: Compat = None,
    resampler: Resampler = None,
) -> xr.DataArray:
    """Layer-level attribution map: the mean over steps and heads, for each layer.

    Parameters and errors are those of `ulam`.

    Returns
    -------
    xarray.DataArray
        (layer, row, column), lazy; layers in the order of their calls.
    """
    options = MapOptions(layers, queries, keys, density, compat, resampler)
    if isinstance(trace, Traces):
        return _of_each(trace, llam, "llam", direction, size, options)
    return attribution_map(trace, "llam", direction, size, options)


@dataclass(frozen=True)
class MapOptions:
    """What the maps of every level take, as `ulam` explains it."""

    layers: Layers = None
    queries: Queries = None
    keys: Keys = None
    density: bool = False
    compat: Compat = None
    resampler: Resampler = None


def attribution_map(
    trace: Trace,
    level: Level,
    direction: Direction,
    size: Size | None,
    options: MapOptions,
    spans: Sequence[slice] | None = None,
) -> xr.DataArray:
    """The map of a level; `spans` are the groups of steps of a time-level map. Else as `ulam`."""
    chosen, plans = planned(trace, level, direction, options)
    size = checked_size(size) if size is not None else _default_size(chosen, plans, direction, options)
    maps = level_map(chosen, level, plans, size, spans)
    density = options.density
    named = f"{_LONG_NAMES[level]}, {ATTRIBUTES[direction]['long_name'].partition(' (')[0]}"
    return maps.rename(f"{level}_{direction}").assign_attrs(
        direction=direction,
        long_name=f"{named}, relative to even attention" if density else named,
        normalisation="density" if density else "none",
        **{name: str(value) for name in ("compat", "resampler") if (value := getattr(options, name)) is not None},
    )


def planned(trace: Trace, level: Level, direction: Direction, options: MapOptions) -> tuple[Trace, Sequence[GridPlan]]:
    """The trace with the layers of a map selected, and what is to be computed for it.

    Raises
    ------
    InputError
        If there is no such map.
    """
    require_trace(trace)
    require_choice(direction, DIRECTIONS, "direction")
    require_choice(options.compat, (None, "i2am"), "compat")
    if options.compat is not None and (options.density or options.resampler is not None):
        raise InputError("compat='i2am' takes neither density nor resampler: the published code has none")
    chosen = trace if options.layers is None else trace.sel(layer=options.layers)
    keys = options.keys
    if options.compat is not None:
        chosen = published_layers(trace, direction, level) if chosen.selected_paths is None else chosen
        keys = "all" if keys is None and direction == "r2g" else keys
    plans = grid_plans(chosen, direction, options.queries, keys, density=options.density, resampler=options.resampler)
    return chosen, [replace(plan, total=options.compat is not None) for plan in plans]


def _default_size(trace: Trace, plans: Sequence[GridPlan], direction: Direction, options: MapOptions) -> Size:
    """The finest grid for the direction; of the layers that count, where options choose them."""
    if direction == "g2r" and (options.compat is not None or options.resampler is not None):
        return max((plan.grid for plan in plans), key=lambda grid: (grid[0] * grid[1], grid))
    return finest_grid(trace, direction)


def _of_each(
    traces: Traces,
    maker: Callable[..., xr.DataArray],
    level: Level,
    direction: Direction,
    size: Size | None,
    options: MapOptions,
) -> xr.DataArray:
    """The map of every trace, all of one size: by default the finest grid of all of them."""
    if size is None:
        # the size of a map does not depend on the layers that the caller names
        sized = replace(options, layers=None, queries=None, keys=None)
        sizes = [_default_size(*planned(trace, level, direction, sized), direction, sized) for trace in traces]
        size = max(sizes, key=lambda grid: (grid[0] * grid[1], grid))
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    return map_each(traces, maker, checked_size(size), given | {"direction": direction})
