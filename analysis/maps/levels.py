"""Levels: from marginals to the map of a level, averaged over the dimensions that the level does not keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal, SupportsIndex

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.kernels.resize import resize
from attrace.analysis.maps.marginals import marginal_array
from attrace.analysis.maps.plan import GridPlan, Size
from attrace.analysis.maps.resampler import laid_on_patches
from attrace.analysis.maps.weights import weighted_mean
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError, Level
from attrace.schemas.checks import require_choice, require_type
from attrace.schemas.words import LEVELS

KEPT_DIMS: Final[dict[Level, tuple[str, ...]]] = {
    "ulam": (),
    "tlam": ("time_group",),
    "hlam": ("head",),
    "llam": ("layer",),
}
"""Dimensions that the map of each level keeps beside (row, column)."""

DEFAULT_GROUPS: Final = 5
"""Groups of steps of a time-level map."""

OverSteps = Literal["mean", "sum"]


def level_map(
    trace: Trace,
    level: Level,
    plans: Sequence[GridPlan],
    size: Size,
    *,
    groups: int | None = None,
    group_size: int | None = None,
    over_steps: OverSteps = "mean",
    weights: xr.DataArray | None = None,
) -> xr.DataArray:
    """The map of a level from the plans of its classes: each layer and head over the steps, on one grid, averaged.

    `weights` are those of `weights_of`.

    Raises
    ------
    InputError
        If there is no such level, or groups are given that it does not have.
    """
    require_choice(level, LEVELS, "level")
    if level != "tlam" and (groups, group_size) != (None, None):
        raise InputError(f"groups and group_size are those of tlam; {level} takes all steps together")
    spans = time_groups(trace, groups, group_size) if level == "tlam" else [slice(0, trace.steps)]
    maps = xr.concat([_class_maps(plan, trace, size, spans, over_steps) for plan in plans], "layer", join="outer")
    in_order = np.argsort(maps["call_order"].values, kind="stable")
    maps = maps.drop_vars("call_order").isel(layer=in_order)
    averaged = {"time_group", "layer", "head"}.difference(KEPT_DIMS[level])
    if weights is not None and "layer" not in averaged and not weights.attrs["by_head"]:
        weights = None  # numbers by layer say nothing of the mean over the heads of a layer
    mean = maps.mean(averaged, skipna=True) if weights is None else weighted_mean(maps, averaged, weights)
    levelled = mean.transpose(*KEPT_DIMS[level], "row", "column")
    if level == "tlam":
        calls = {"first_call": [span.start for span in spans], "last_call": [span.stop - 1 for span in spans]}
        levelled = levelled.assign_coords({name: ("time_group", trace.time[steps]) for name, steps in calls.items()})
    return levelled.assign_attrs(
        level=level,
        units="1",
        source=trace.path,
        context=str(trace.context),
        branch=str(trace.branch),
        layers=maps.sizes["layer"],
        steps=trace.steps,
        **({} if weights is None else {"weights": str(weights.name)}),
        **({} if trace.picture is None else {"picture": trace.picture}),
    )


def time_groups(trace: Trace, groups: int | None = None, group_size: int | None = None) -> list[slice]:
    """Groups of consecutive selected steps, as slices of them.

    Raises
    ------
    InputError
        If both numbers are given, or they do not fit the steps.
    """
    for name, number in (("groups", groups), ("group_size", group_size)):
        require_type(number, SupportsIndex | None, name, "a whole number")
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


def _class_maps(
    plan: GridPlan, trace: Trace, size: Size, spans: Sequence[slice], over_steps: OverSteps
) -> xr.DataArray:
    """Maps of every layer and head of a class: (time_group, layer, head, row, column); NaN where nothing was called."""
    marginals = marginal_array(trace, plan.marginals, plan.quantity)
    if plan.shares is not None:
        marginals = laid_on_patches(marginals, plan.shares)
    on_grid = partial(_on_grid, patches=plan.patches, grid=plan.grid, gain=plan.gain, size=size, over_steps=over_steps)
    grouped = da.concatenate([_maps_of_span(marginals[span], on_grid, size) for span in spans])
    selected = plan.marginals.selected
    coordinates = {
        "layer": np.array(selected.paths, dtype=np.str_),
        "head": np.array(plan.marginals.heads, dtype=np.int32),
        "row": np.arange(size[0]),
        "column": np.arange(size[1]),
        "call_order": ("layer", [selected.site_class.sites[layer].order for layer in selected.layers]),
    }
    return xr.DataArray(grouped, coordinates, ("time_group", "layer", "head", "row", "column"))


def _maps_of_span(marginals: da.Array, on_grid: partial[NDArray[Any]], size: Size) -> da.Array:
    """Mean or sum over the steps, as maps: (time, layer, head, query or key) to (1, layer, head, row, column)."""
    blocks, layers, heads, tokens = marginals.chunks
    made: dict[str, Any] = {"dtype": marginals.dtype, "meta": np.empty((0,) * 5, marginals.dtype)}
    in_blocks = ((1,) * len(blocks), layers, heads, tokens, (2,))
    sums = da.map_blocks(_sum_and_count, marginals, chunks=in_blocks, new_axis=4, **made).rechunk({0: -1})
    maps: da.Array = da.map_blocks(on_grid, sums, chunks=((1,), layers, heads, (size[0],), (size[1],)), **made)
    return maps


def _sum_and_count(marginals: NDArray[Any]) -> NDArray[Any]:
    """Sum over the steps without NaN, and how many it holds: (1, layer, head, query or key, sum and count)."""
    sums = marginals.sum(axis=0)
    if np.isfinite(sums).all():
        return np.stack([sums, np.full_like(sums, len(marginals))], axis=-1)[None]
    called = ~np.isnan(marginals)
    totals = np.where(called, marginals, 0).sum(axis=0)
    return np.stack([totals, called.sum(axis=0, dtype=marginals.dtype)], axis=-1)[None]


def _on_grid(
    sums: NDArray[Any],
    *,
    patches: slice,
    grid: Size,
    gain: NDArray[np.float64],
    size: Size,
    over_steps: OverSteps,
) -> NDArray[Any]:
    """Mean or sum over all steps, laid on the grid, resized and clamped: (1, layer, head, row, column)."""
    total, count = np.moveaxis(sums.sum(axis=0)[:, :, patches], -1, 0)
    with np.errstate(invalid="ignore"):
        reduced = (np.where(count > 0, total, np.nan) if over_steps == "sum" else total / count) * gain
    on_grid = resize(reduced.astype(total.dtype).reshape(*total.shape[:2], *grid), size)
    maps: NDArray[Any] = np.maximum(on_grid, 0)[None]
    return maps


def require_map(attribution: object) -> None:
    """Refuse what is no map.

    Raises
    ------
    InputError
        If it is no array, or has no dims row and column.
    """
    require_type(attribution, xr.DataArray, "attribution", "a map, as ulam(trace) gives it")
    dims = getattr(attribution, "dims", ())
    if not {"row", "column"} <= set(dims):
        raise InputError(f"expected a map with the dims row and column, found {dims}")
