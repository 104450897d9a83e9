"""The attribution maps of I2AM: unified, time-level, head-level and layer-level, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.marginals import (
    ATTRIBUTES,
    MarginalPlan,
    Quantity,
    marginal_arrays,
)
from attrace.analysis.resize import resize
from attrace.analysis.trace import Layers, SelectedClass, Trace
from attrace.analysis.traces import Traces, map_each
from attrace.analysis.weights import Keys, Queries, Weights, key_weights, picture_segment, query_weights
from attrace.schemas import Direction, InputError, Level, SiteClass
from attrace.schemas.words import DIRECTIONS

Size = tuple[int, int]
"""Rows and columns of a map."""

DEFAULT_GROUPS: Final = 5
"""Groups of steps of a time-level map."""

LEVEL_DIMS: Final[dict[Level, tuple[str, ...]]] = {
    "ulam": ("row", "column"),
    "tlam": ("time_group", "row", "column"),
    "hlam": ("head", "row", "column"),
    "llam": ("layer", "row", "column"),
}
"""Dimensions of the map of each level."""

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


@dataclass(frozen=True)
class GridPlan:
    """How the marginals of a class become maps on its grid."""

    marginals: MarginalPlan
    quantity: Quantity
    """Which of what a pass computes the maps show."""
    places: slice
    """Queries or keys that lie on the grid."""
    grid: Size
    shown: Weights
    """What each cell of the grid is multiplied by in the map: (cell), 0 where it is not shown."""


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


def level_map(
    trace: Trace, level: Level, plans: Sequence[GridPlan], size: Size, spans: Sequence[slice] | None = None
) -> xr.DataArray:
    """The map of a level from the plans of its classes: resized to `size`, averaged over what the level averages."""
    spans = spans if spans is not None else [slice(0, trace.steps)]
    maps = xr.concat([_class_maps(trace, plan, size, spans) for plan in plans], "layer", join="outer")
    in_order = np.argsort(maps["call_order"].values, kind="stable")
    maps = maps.drop_vars("call_order").isel(layer=in_order)
    averaged = [dim for dim in ("time_group", "layer", "head") if dim not in LEVEL_DIMS[level]]
    levelled = maps.mean(averaged, skipna=True).transpose(*LEVEL_DIMS[level])
    return levelled.assign_attrs(
        level=level,
        units="1",
        source=trace.path,
        context=str(trace.context),
        branch=str(trace.branch),
        layers=maps.sizes["layer"],
        steps=trace.steps,
    )


def grid_plans(
    trace: Trace, direction: Direction, queries: Queries, keys: Keys, *, density: bool = False
) -> list[GridPlan]:
    """What is to be computed for the maps of a direction: one plan for each selected class that has a grid for it.

    Raises
    ------
    InputError
        If no selected class has one, or the queries or keys that count are none.
    """
    if trace.steps == 0 or not trace.classes:
        raise InputError(f"trace {trace.path} has no finished step yet: there is nothing to map")
    gridded = [(one, place) for one in trace.classes if (place := _grid_of(one.site_class, direction)) is not None]
    if not gridded:
        raise InputError(_no_grid(trace, direction))
    plans = [_grid_plan(trace, one, places, grid, direction, queries, keys, density) for one, (places, grid) in gridded]
    usable = [plan for plan in plans if plan.shown.any() and plan.marginals.of_keys().any()]
    if not usable:
        raise InputError(f"trace {trace.path}: no selected layer with a grid for {direction} has the keys {keys!r}")
    return usable


def finest_grid(trace: Trace, direction: Direction) -> Size:
    """Rows and columns of the finest grid recorded for a direction, whatever layers are selected."""
    site_classes = [one for one in trace.manifest.classes if (one.context, one.branch) == (trace.context, trace.branch)]
    grids = [place[1] for one in site_classes if (place := _grid_of(one, direction)) is not None]
    return max(grids, key=lambda grid: (grid[0] * grid[1], grid))


def checked_size(size: Size) -> Size:
    """A size as two positive integers.

    Raises
    ------
    InputError
        If it is not that.
    """
    try:
        rows, columns = (int(length) for length in size)
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise InputError(f"size: expected (rows, columns), both at least 1, found {size!r}")
    return rows, columns


def time_groups(trace: Trace, groups: int | None = None, group_size: int | None = None) -> list[slice]:
    """Groups of consecutive selected steps, as slices of them.

    Raises
    ------
    InputError
        If both numbers are given, or they do not fit the steps.
    """
    if groups is not None and group_size is not None:
        raise InputError("give either groups (how many) or group_size (steps in each), not both")
    if trace.steps == 0:
        raise InputError(f"trace {trace.path} has no finished step yet: there is nothing to map")
    if group_size is not None:
        if group_size < 1:
            raise InputError(f"group_size: expected at least 1 step, found {group_size}")
        starts = list(range(0, trace.steps, group_size))
    else:
        count = min(DEFAULT_GROUPS, trace.steps) if groups is None else groups
        if not 1 <= count <= trace.steps:
            raise InputError(f"groups: expected 1 to {trace.steps} groups of {trace.steps} steps, found {count}")
        starts = [part * trace.steps // count for part in range(count)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], trace.steps], strict=True)]


def time_group_coordinates(trace: Trace, spans: Sequence[slice]) -> dict[str, Any]:
    """First and last call of the denoiser in each group."""
    return {
        "first_call": ("time_group", trace.time[[span.start for span in spans]]),
        "last_call": ("time_group", trace.time[[span.stop - 1 for span in spans]]),
    }


def _grid_of(site_class: SiteClass, direction: Direction) -> tuple[slice, Size] | None:
    """Which queries or keys lie on a grid, and the grid; None if none do."""
    if direction == "r2g":
        return None if site_class.query_grid is None else (slice(0, site_class.queries), site_class.query_grid)
    picture = picture_segment(site_class)
    return None if picture is None or picture[1].grid is None else (picture[0], picture[1].grid)


def _grid_plan(
    trace: Trace,
    selected: SelectedClass,
    places: slice,
    grid: Size,
    direction: Direction,
    queries: Queries,
    keys: Keys,
    density: bool,
) -> GridPlan:
    site_class = selected.site_class
    of_queries, of_keys = query_weights(site_class, queries), key_weights(site_class, keys)
    if direction == "r2g":
        subset, chosen = keys, {"key_weights": of_keys}
        shown = of_queries
    else:
        subset, chosen = queries, {"query_weights": of_queries}
        shown = np.ones(places.stop - places.start) if keys is None else of_keys[places]
    if subset is None:
        marginals = MarginalPlan(selected, trace.step_places)
    else:
        marginals = MarginalPlan(selected, trace.step_places, quantities=(direction,), **chosen)
    tokens = site_class.queries if direction == "r2g" else site_class.keys
    return GridPlan(marginals, direction, places, grid, shown * tokens if density else shown)


def _no_grid(trace: Trace, direction: Direction) -> str:
    if direction == "r2g":
        return (
            f"trace {trace.path}: the queries of the selected layers lie on no grid, so there is no map over the "
            "generated picture; marginals(trace) has the values"
        )
    single = all(one.site_class.keys == 1 for one in trace.classes)
    if single:
        return (
            f"trace {trace.path}: the selected layers have one key (the reference as one vector), so the softmax over "
            "keys is 1 everywhere and says nothing of where in the reference; use direction='r2g'"
        )
    return (
        f"trace {trace.path}: the keys of the selected layers (context {trace.context!r}) lie on no grid, so there is "
        "no map over the reference; use direction='r2g', token_map for text, or marginals(trace) for the values"
    )


def _class_maps(trace: Trace, plan: GridPlan, size: Size, spans: Sequence[slice]) -> xr.DataArray:
    """Maps of every layer and head of a class: (time_group, layer, head, row, column); NaN where nothing was called."""
    passed = marginal_arrays(trace, plan.marginals)[plan.quantity]
    grouped = da.concatenate([_maps_of_span(passed[span], plan, size) for span in spans])
    selected = plan.marginals.selected
    coordinates = {
        "layer": np.array(selected.paths, dtype=np.str_),
        "head": np.array(selected.heads, dtype=np.int32),
        "row": np.arange(size[0]),
        "column": np.arange(size[1]),
        "call_order": ("layer", [selected.site_class.sites[layer].order for layer in selected.layers]),
    }
    return xr.DataArray(grouped, coordinates, ("time_group", "layer", "head", "row", "column"))


def _maps_of_span(passed: da.Array, plan: GridPlan, size: Size) -> da.Array:
    """Mean over the steps, as maps: (time, layer, head, query or key) to (1, layer, head, row, column)."""
    blocks, layers, heads, tokens = passed.chunks
    made: dict[str, Any] = {"dtype": passed.dtype, "meta": np.empty((0,) * 5, passed.dtype)}
    in_blocks = ((1,) * len(blocks), layers, heads, tokens, (2,))
    sums = da.map_blocks(_sum_and_count, passed, chunks=in_blocks, new_axis=4, **made).rechunk({0: -1})
    finish = partial(_mean_on_grid, plan=plan, size=size)
    maps: da.Array = da.map_blocks(finish, sums, chunks=((1,), layers, heads, (size[0],), (size[1],)), **made)
    return maps


def _sum_and_count(passed: NDArray[Any]) -> NDArray[Any]:
    """Sum over the steps without NaN, and how many it holds: (1, layer, head, query or key, sum and count)."""
    sums = passed.sum(axis=0)
    if np.isfinite(sums).all():
        return np.stack([sums, np.full_like(sums, len(passed))], axis=-1)[None]
    called = ~np.isnan(passed)
    totals = np.where(called, passed, 0).sum(axis=0)
    return np.stack([totals, called.sum(axis=0, dtype=passed.dtype)], axis=-1)[None]


def _mean_on_grid(sums: NDArray[Any], plan: GridPlan, size: Size) -> NDArray[Any]:
    """Mean over all steps, laid on the grid, resized and clamped: (1, layer, head, row, column)."""
    total, count = np.moveaxis(sums.sum(axis=0)[:, :, plan.places], -1, 0)
    with np.errstate(invalid="ignore"):
        mean = total / count * plan.shown.astype(total.dtype)
    on_grid = resize(mean.reshape(*mean.shape[:2], *plan.grid), size)
    maps: NDArray[Any] = np.maximum(on_grid, 0)[None]
    return maps
