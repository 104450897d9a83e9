"""From marginals to the map of a level: over the steps, on one grid, averaged over layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.maps.marginals import marginal_array
from attrace.analysis.maps.plans import GridPlan, Size
from attrace.analysis.maps.resampler import laid_on_patches
from attrace.analysis.maps.resize import resize
from attrace.analysis.trace.trace import Trace
from attrace.schemas import Level

LEVEL_DIMS: Final[dict[Level, tuple[str, ...]]] = {
    "ulam": ("row", "column"),
    "tlam": ("time_group", "row", "column"),
    "hlam": ("head", "row", "column"),
    "llam": ("layer", "row", "column"),
}
"""Dimensions of the map of each level."""


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
        **({} if trace.picture is None else {"picture": trace.picture}),
    )


def _class_maps(trace: Trace, plan: GridPlan, size: Size, spans: Sequence[slice]) -> xr.DataArray:
    """Maps of every layer and head of a class: (time_group, layer, head, row, column); NaN where nothing was called."""
    passed = marginal_array(trace, plan.marginals, plan.quantity)
    if plan.shares is not None:
        passed, plan = laid_on_patches(passed, plan.shares), replace(plan, shares=None)
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
    """Mean or sum over the steps, as maps: (time, layer, head, query or key) to (1, layer, head, row, column)."""
    blocks, layers, heads, tokens = passed.chunks
    made: dict[str, Any] = {"dtype": passed.dtype, "meta": np.empty((0,) * 5, passed.dtype)}
    in_blocks = ((1,) * len(blocks), layers, heads, tokens, (2,))
    sums = da.map_blocks(_sum_and_count, passed, chunks=in_blocks, new_axis=4, **made).rechunk({0: -1})
    finish = partial(_on_grid, plan=plan, size=size)
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


def _on_grid(sums: NDArray[Any], plan: GridPlan, size: Size) -> NDArray[Any]:
    """Mean or sum over all steps, laid on the grid, resized and clamped: (1, layer, head, row, column)."""
    total, count = np.moveaxis(sums.sum(axis=0)[:, :, plan.places], -1, 0)
    with np.errstate(invalid="ignore"):
        over_steps = (np.where(count > 0, total, np.nan) if plan.total else total / count) * plan.shown
    on_grid = resize(over_steps.astype(total.dtype).reshape(*total.shape[:2], *plan.grid), size)
    maps: NDArray[Any] = np.maximum(on_grid, 0)[None]
    return maps
