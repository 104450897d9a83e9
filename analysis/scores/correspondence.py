"""Which part of the reference each generated patch looks at most, and how far that is from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.kernels.softmaxes import summed_softmax_over_keys
from attrace.analysis.kernels.workspace import Workspace
from attrace.analysis.maps.marginals import select_values
from attrace.analysis.trace.blocks import array_of_blocks, split
from attrace.analysis.trace.key_segments import picture_keys
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.source import ClassSource
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.schemas import InputError

SCORES_PER_TASK: Final = 2**24
"""Softmax values that a task holds; a layer with more is split along its queries."""


def correspondence(trace: Trace, *, layers: Layers = None, heads: bool = False) -> xr.DataArray:
    """Place in the reference that each generated patch attends to most.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    layers
        Module paths or globs of the layers to take; None for all whose keys lie on a grid.
    heads
        Find the place of each head by itself.

    Returns
    -------
    xarray.DataArray
        (layer[, head], query_row, query_column, axis), lazy, float64: row and column, in cells of the layer's key grid,
        of the largest softmax over keys averaged over the selected steps and heads. NaN where a layer was never called,
        and for a head that it does not have.
        The softmax runs over all keys; the largest is sought among those on the grid. The coordinates `key_rows` and
        `key_columns` (layer) tell the size of each key grid.

    Raises
    ------
    InputError
        If no selected layer has keys on a grid, or the query grids of the selected layers differ: select layers of
        one grid.
    SelectionError
        If `layers` names no layer.
    """
    require_trace(trace)
    chosen = trace if layers is None else trace.sel(layer=layers)
    usable = [one for one in chosen.classes if one.site_class.query_grid and picture_keys(one.site_class)]
    if not usable or chosen.steps == 0:
        raise InputError(
            f"trace {trace.path}: no selected layer has finished steps and both queries and keys on a grid, so there "
            "is no place in the reference to find"
        )
    grids = {one.site_class.query_grid for one in usable}
    if len(grids) > 1:
        listed = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(grid for grid in grids if grid))
        raise InputError(
            f"trace {trace.path}: the selected layers have different query grids ({listed}); select layers of one, as "
            "in {layer: correspondence(trace, layers=layer) for layer in trace.layers}"
        )
    found = xr.concat([_class_places(chosen, one, heads) for one in usable], "layer", join="outer")
    found = found.isel(layer=np.argsort(found["call_order"].values, kind="stable")).drop_vars("call_order")
    return found.rename("correspondence").assign_attrs(
        long_name="place of the largest softmax over keys, averaged over steps and heads",
        units="cells of the key grid",
        source=trace.path,
        steps=chosen.steps,
    )


def correspondence_error(found: xr.DataArray, truth: ArrayLike) -> xr.DataArray:
    """Median distance between where each patch looks most and where it comes from, in cells of the key grid.

    Parameters
    ----------
    found
        (layer[, head], query_row, query_column, axis): the result of `correspondence`.
    truth
        (query_row, query_column, axis): true row and column, in cells of the key grid as in `found`; NaN where there
        is none, which is left out.

    Returns
    -------
    xarray.DataArray
        (layer[, head]): 0 at best.

    Raises
    ------
    InputError
        If the truth has another shape.
    """
    distances = _distances(found, truth)
    medians: xr.DataArray = distances.chunk(query_row=-1, query_column=-1).median(PATCHES, skipna=True)
    return medians.rename("correspondence_error").assign_attrs(units="cells")


def pck(found: xr.DataArray, truth: ArrayLike, *, within: float = 0.1) -> xr.DataArray:
    """Share of patches that look most at a place near the true one (percentage of correct key points).

    Parameters
    ----------
    found, truth
        As for `correspondence_error`.
    within
        Largest distance, as a share of the longer side of the key grid.

    Returns
    -------
    xarray.DataArray
        (layer[, head]): 1 at best; NaN where no patch has a true place.

    Raises
    ------
    InputError
        If the truth has another shape.
    """
    distances = _distances(found, truth)
    longer = xr.ufuncs.maximum(found["key_rows"], found["key_columns"])
    near = (distances <= within * longer).where(distances.notnull())
    shares: xr.DataArray = near.mean(PATCHES, skipna=True)
    return shares.rename("pck").assign_attrs(units="1", within=within)


PATCHES: Final = ("query_row", "query_column")
"""Dims of the patches that look."""


def _distances(found: xr.DataArray, truth: ArrayLike) -> xr.DataArray:
    """Distance of each patch's place from the true one, in cells: (layer[, head], query_row, query_column)."""
    dims = (*PATCHES, "axis")
    values = np.asarray(truth, np.float64)
    expected = tuple(found.sizes[dim] for dim in dims)
    if values.shape != expected:
        raise InputError(
            f"truth: expected the shape {expected} of (query_row, query_column, axis), found {values.shape}"
        )
    distances: xr.DataArray = xr.ufuncs.sqrt(((found - xr.DataArray(values, dims=dims)) ** 2).sum("axis", skipna=False))
    return distances


@dataclass(frozen=True)
class _PlacePlan:
    """What finds the places of one class."""

    selected: SelectedClass
    steps: tuple[int, ...]
    keys: slice
    """The keys that lie on the grid."""
    columns: int
    """Columns of that grid."""
    heads: tuple[tuple[int, ...], ...]
    """Heads whose attention is averaged, for each place that is sought."""


def _class_places(trace: Trace, selected: SelectedClass, by_head: bool) -> xr.DataArray:
    """Places of a class: (layer[, head], query_row, query_column, axis)."""
    site_class = selected.site_class
    picture, grid = picture_keys(site_class), site_class.query_grid
    assert picture is not None and grid is not None  # noqa: PT018 chosen by the caller
    key_rows, key_columns = picture[1]
    heads = tuple((head,) for head in selected.heads) if by_head else (selected.heads,)
    plan = _PlacePlan(selected, trace.selected_steps, picture[0], key_columns, heads)
    rows_per_task = max(1, SCORES_PER_TASK // (site_class.keys * grid[1]))
    blocks = split(tuple(range(site_class.queries)), rows_per_task * grid[1])
    places = array_of_blocks(
        _SearchForPlaces(plan, blocks, ClassSource.of(trace.stored, site_class)),
        f"correspondence-{tokenize(trace, selected.group, rows_per_task, heads)}",
        ((1,) * len(selected.layers), (len(heads),), tuple(map(len, blocks)), (2,)),
        np.dtype(np.float64),
    )
    on_grid = places.reshape(len(selected.layers), len(heads), *grid, 2)
    count = len(selected.layers)
    coordinates: dict[str, Any] = {
        "layer": np.array(selected.paths, dtype=np.str_),
        "axis": ["row", "column"],
        "key_rows": ("layer", [key_rows] * count),
        "key_columns": ("layer", [key_columns] * count),
        "call_order": ("layer", [site_class.sites[layer].order for layer in selected.layers]),
    }
    if by_head:
        coordinates["head"] = np.array(selected.heads, np.int32)
    found = xr.DataArray(on_grid, coordinates, ("layer", "head", "query_row", "query_column", "axis"))
    return found if by_head else found.isel(head=0)


@dataclass(frozen=True)
class _SearchForPlaces:
    """Gives row and column of the largest key of some queries of one layer: (1, head, query, 2)."""

    plan: _PlacePlan
    blocks: tuple[tuple[int, ...], ...]
    source: ClassSource

    def __call__(self, block: tuple[int, ...]) -> NDArray[np.float64]:
        plan, queries = self.plan, np.array(self.blocks[block[2]])
        totals: list[NDArray[np.float64]] = []
        workspace = Workspace()
        for values in self.source.read(plan.steps, plan.selected.layers[block[0]]):
            if values is not None:
                wanted = [select_values(values, heads, queries, slice(None)) for heads in plan.heads]
                sums = [summed_softmax_over_keys(one, workspace=workspace)[:, plan.keys] for one in wanted]
                totals = [total + one for total, one in zip(totals, sums, strict=True)] if totals else sums
        if not totals:
            return np.full((1, len(plan.heads), len(queries), 2), np.nan)
        return np.stack([self._largest(total) for total in totals])[None]

    def _largest(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Row and column of the largest key of every query: (query, 2)."""
        best = np.argmax(total, axis=1)
        places = np.stack([best // self.plan.columns, best % self.plan.columns], axis=1).astype(np.float64)
        places[np.isnan(total).any(axis=1)] = np.nan
        return places
