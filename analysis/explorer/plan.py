"""What a report holds of the attention between patches: which layers, on which grids, in how many groups of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import sparse

from attrace.analysis.maps.attribution import mappable_directions
from attrace.analysis.maps.levels import time_groups
from attrace.analysis.maps.masks import area_matrix, key_weights, normalised
from attrace.analysis.maps.plan import Size, finest_grid, grid_plans
from attrace.analysis.maps.weights import LayerWeights, weights_of
from attrace.analysis.trace.key_segments import picture_keys
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.trace import Trace
from attrace.schemas import Direction, InputError, SiteClass
from attrace.schemas.words import DIRECTIONS

KeyView = Literal["picture", "tokens", "whole"]
"""What stands beside the generated picture: the reference, a list of the keys, or all keys as one."""

MOST_TOKENS: Final = 128
"""Lines of a list of keys that lie off a grid; where there would be more, all keys are taken as one."""

FINENESS: Final = ((64, True), (48, True), (32, True), (24, True), (16, True), (16, False))
"""From fine to coarse: the most cells along a side of a grid, and whether heads are kept apart."""

FEWER_GROUPS: Final = (2, 1)
"""Groups of steps where the default number of them does not fit."""

COARSEST: Final = ((12, False), (8, False))
"""What is tried last."""

FLOAT_COST: Final = 8
"""Values of attention that take as much of the page as one float32."""


@dataclass(frozen=True)
class Side:
    """The patches of one side of a class, and the cells that a report keeps of them."""

    places: slice
    """Where they stand among all queries or keys."""
    kept: Size
    """Rows and columns of the cells."""
    pooling: sparse.csc_array
    """Share of each patch in the mean of each cell: (cell, patch), rows sum to 1."""
    coarser: bool
    """Whether a cell is the mean of several patches."""
    sizes: NDArray[np.float64]
    """How much each cell counts in the mean over all: (cell)."""

    @property
    def cells(self) -> int:
        """How many cells are kept."""
        return self.kept[0] * self.kept[1]


@dataclass(frozen=True)
class ReportClass:
    """A site class of a report."""

    selected: SelectedClass
    queries: Side
    keys: Side

    @property
    def site_class(self) -> SiteClass:
        """The class."""
        return self.selected.site_class

    @property
    def partial(self) -> bool:
        """Whether the softmax over keys runs over more keys than the page shows."""
        return self.site_class.has_lse or self.keys.places != slice(0, self.site_class.keys)


@dataclass(frozen=True)
class ReportPlan:
    """What a report holds of a trace."""

    trace: Trace
    classes: tuple[ReportClass, ...]
    spans: tuple[slice, ...]
    """Groups of the selected steps."""
    heads_apart: bool
    """Whether every head can be shown; else their mean."""
    view: KeyView
    grids: dict[Direction, Size]
    """Rows and columns of the map of each direction: `r2g` over the generated picture, `g2r` over the keys."""
    directions: tuple[Direction, ...]
    """Directions of the level maps."""
    reason: str
    """Why there is no map over the reference, or nothing."""
    weights: xr.DataArray | None = None
    """Weights of layers and heads, as `weights_of` gives them."""

    @property
    def coarser(self) -> bool:
        """Whether cells of the report are means of several patches."""
        return any(side.coarser for one in self.classes for side in (one.queries, one.keys))

    @property
    def kept_directions(self) -> tuple[Direction, ...]:
        """Directions in which patches can be chosen: all keys as one get everything of every patch."""
        return ("r2g",) if self.view == "whole" else DIRECTIONS

    @property
    def cost(self) -> int:
        """What the page takes, in values of attention; a quantum and a value of a level map count as `FLOAT_COST`."""
        ways, pairs = len(self.kept_directions), 0
        for one in self.classes:
            heads = len(one.selected.heads) if self.heads_apart else 1
            queries, keys = one.queries.cells, one.keys.cells
            floats = queries * (1 + one.partial) + keys
            pairs += heads * len(one.selected.layers) * (ways * queries * keys + FLOAT_COST * floats)
        maps = 1 + len(self.spans) + len(self.trace.heads) + len(self.trace.layers)
        shown = sum(self.grids[way][0] * self.grids[way][1] for way in self.directions)
        return len(self.spans) * pairs + 2 * FLOAT_COST * maps * shown


def plan_report(trace: Trace, groups: int | None, most: int, weights: LayerWeights = None) -> ReportPlan:
    """The finest plan that costs no more than so many values.

    Raises
    ------
    InputError
        If the queries lie on no grid, `groups` does not fit the steps, a layer has no weight, or even the coarsest plan
        costs more.
    """
    directions = mappable_directions(trace)
    if "r2g" not in directions:
        grid_plans(trace, "r2g")  # says why
    view, reason = _view(trace)
    if groups is None:
        tried = [len(time_groups(trace)), *(count for count in FEWER_GROUPS if count < trace.steps)]
    else:
        tried = [groups]
    for count, fineness in [(count, FINENESS) for count in tried] + [(tried[-1], COARSEST)]:
        for most_cells, heads_apart in fineness:
            plan = _plan_of(trace, view, most_cells, tuple(time_groups(trace, count)))
            of_pairs = weights_of(trace, weights, [one.selected for one in plan.classes])
            plan = replace(plan, heads_apart=heads_apart, directions=directions, reason=reason, weights=of_pairs)
            # a plain mean of heads cannot be weighted by head
            if plan.cost <= most and (heads_apart or of_pairs is None or not of_pairs.attrs["by_head"]):
                return plan
    raise InputError(
        f"trace {trace.path}: a report of {len(trace.layers)} layers and {tried[-1]} groups of steps does not fit the "
        "limit of its size even on grids of 8 cells a side: select layers (--layers), or raise the limit (--limit)"
    )


def exact_plan(trace: Trace, groups: int, weights: LayerWeights = None) -> ReportPlan:
    """The plan of a trace whose maps are computed when they are asked for: every patch, every head.

    Raises
    ------
    InputError
        If the queries lie on no grid, `groups` does not fit the steps, or a layer has no weight.
    """
    directions = mappable_directions(trace)
    if "r2g" not in directions:
        grid_plans(trace, "r2g")  # says why
    view, reason = _view(trace)
    plan = _plan_of(trace, view, max(finest_grid(trace, "r2g")) * 1000, tuple(time_groups(trace, groups)))
    of_pairs = weights_of(trace, weights, [one.selected for one in plan.classes])
    return replace(plan, directions=directions, reason=reason, weights=of_pairs)


def _view(trace: Trace) -> tuple[KeyView, str]:
    try:
        grid_plans(trace, "g2r")
    except InputError as error:
        lines = {listed_keys(one.site_class) for one in trace.classes}
        listed = len(lines) == 1 and 1 < len(min(lines)) <= MOST_TOKENS
        if listed and trace.context == "text":
            return "tokens", ""
        return ("tokens" if listed else "whole"), str(error)
    return "picture", ""


def listed_keys(site_class: SiteClass) -> tuple[tuple[int, int], ...]:
    """First key and number of keys of each line of a list: one key, or all of a run of padding."""
    lines, start = [], 0
    for segment in site_class.key_segments:
        size = segment.count if segment.kind == "pad" else 1
        lines += [(first, size) for first in range(start, start + segment.count, size)]
        start += segment.count
    return tuple(lines)


def _plan_of(trace: Trace, view: KeyView, most_cells: int, spans: tuple[slice, ...]) -> ReportPlan:
    classes = []
    for selected in trace.classes:
        site_class = selected.site_class
        keys = _key_side(site_class, view, most_cells)
        if site_class.query_grid is not None and keys is not None:
            queries = _grid_side(slice(0, site_class.queries), site_class.query_grid, most_cells)
            classes.append(ReportClass(selected, queries, keys))
    over_keys = _pooled(finest_grid(trace, "g2r"), most_cells) if view == "picture" else classes[0].keys.kept
    grids: dict[Direction, Size] = {"r2g": _pooled(finest_grid(trace, "r2g"), most_cells), "g2r": over_keys}
    return ReportPlan(trace, tuple(classes), spans, True, view, grids, (), "")


def _key_side(site_class: SiteClass, view: KeyView, most_cells: int) -> Side | None:
    everything = slice(0, site_class.keys)
    if view == "tokens":
        lines = listed_keys(site_class)
        pooling = sparse.block_diag([np.full((1, size), 1 / size) for _, size in lines], format="csc")
        sizes = np.array([size for _, size in lines], np.float64)
        return Side(everything, (len(lines), 1), sparse.csc_array(pooling), coarser=False, sizes=sizes)
    if view == "whole":
        weights = normalised(key_weights(site_class, None))
        return Side(everything, (1, 1), sparse.csc_array(weights[None]), coarser=False, sizes=np.ones(1))
    picture = picture_keys(site_class)
    return None if picture is None else _grid_side(*picture, most_cells)


def _grid_side(places: slice, grid: Size, most_cells: int) -> Side:
    kept = _pooled(grid, most_cells)
    rows, columns = (area_matrix(length, cells) for length, cells in zip(grid, kept, strict=True))
    pooling = sparse.csc_array(sparse.kron(rows, columns))
    return Side(places, kept, pooling, coarser=kept != grid, sizes=np.ones(kept[0] * kept[1]))


def _pooled(grid: Size, most_cells: int) -> Size:
    """A grid with so many cells along its longer side at most: divided by a whole number, so that grids nest."""
    factor = math.ceil(max(grid) / most_cells)
    return math.ceil(grid[0] / factor), math.ceil(grid[1] / factor)
