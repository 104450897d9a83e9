"""Plans of maps: the site classes that have a grid for a direction, and how the marginals of each are laid on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from attrace.analysis.maps.marginals import Contribution, MarginalPlan, Quantity
from attrace.analysis.maps.masks import Keys, Queries, Weights, as_mask, coverage, key_weights, query_weights
from attrace.analysis.maps.resampler import Resampler, adapters_of, has_resampler, is_resampler, resampler_shares
from attrace.analysis.trace.key_segments import picture_keys
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.trace import Trace
from attrace.schemas import Direction, InputError, SiteClass
from attrace.schemas.checks import require_choice
from attrace.schemas.words import DIRECTIONS

Size = tuple[int, int]
"""Rows and columns of a map."""


@dataclass(frozen=True)
class GridPlan:
    """How the marginals of a class become maps on its grid."""

    marginals: MarginalPlan
    quantity: Quantity
    """Which of what a pass computes the maps show."""
    patches: slice
    """Queries or keys that lie on the grid."""
    grid: Size
    gain: Weights
    """What each cell of the grid is multiplied by in the map: (cell), 0 where it is not shown."""
    shares: xr.DataArray | None = None
    """How the keys, where they are tokens of a resampler, are laid on the cells: (time, token, row, column)."""


def grid_plans(
    trace: Trace,
    direction: Direction,
    *,
    queries: Queries = None,
    keys: Keys = None,
    density: bool = True,
    resampler: Resampler = None,
    contribution: Contribution | None = None,
) -> list[GridPlan]:
    """Plans of the maps of a direction: one for each selected class that has a grid for it.

    Raises
    ------
    InputError
        If no selected class has one, or the queries or keys that count are none; or contributions are asked for and a
        layer has no values.
    """
    require_choice(direction, DIRECTIONS, "direction")
    if trace.steps == 0 or not trace.classes:
        raise InputError(f"trace {trace.path} has no finished step yet: there is nothing to map")
    if resampler is not None:
        plans = _resampled_plans(trace, direction, queries, keys, density, resampler)
    else:
        # the queries of a resampler are tokens: its own attention is mapped only where nothing else is selected
        classes = [one for one in trace.classes if not is_resampler(one.site_class)] or list(trace.classes)
        plans = [
            _grid_plan(trace, one, direction, *grid, queries, keys, density)
            for one in classes
            if (grid := _grid_of(one.site_class, direction)) is not None
        ]
    if not plans:
        raise InputError(_no_grid(trace, direction))
    usable = [plan for plan in plans if plan.gain.any() and plan.marginals.of_keys().any()]
    if not usable:
        raise InputError(f"trace {trace.path}: no selected layer with a grid for {direction} has the keys {keys!r}")
    return usable if contribution is None else _of_contributions(trace, usable, contribution)


def finest(grids: Iterable[Size]) -> Size:
    """The grid with the most cells."""
    return max(grids, key=lambda grid: (grid[0] * grid[1], grid))


def finest_grid(trace: Trace, direction: Direction) -> Size:
    """Rows and columns of the finest grid recorded for a direction, whatever layers are selected."""
    whole = replace(trace, selected_paths=None, selected_heads=None)
    return finest([grid[1] for one in whole.classes if (grid := _grid_of(one.site_class, direction)) is not None])


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


def _grid_of(site_class: SiteClass, direction: Direction) -> tuple[slice, Size] | None:
    """Which queries or keys lie on a grid, and the grid; None if none do."""
    if direction == "g2r":
        return picture_keys(site_class)
    return None if site_class.query_grid is None else (slice(0, site_class.queries), site_class.query_grid)


def _grid_plan(
    trace: Trace,
    selected: SelectedClass,
    direction: Direction,
    patches: slice,
    grid: Size,
    queries: Queries,
    keys: Keys,
    density: bool,
) -> GridPlan:
    site_class = selected.site_class
    of_queries, of_keys = query_weights(site_class, queries), key_weights(site_class, keys)
    averaged: dict[str, Any]
    if direction == "r2g":
        subset, averaged, tokens, gain = keys, {"key_weights": of_keys}, site_class.queries, of_queries
    else:
        gain = np.ones(patches.stop - patches.start) if keys is None else of_keys[patches]
        subset, averaged, tokens = queries, {"query_weights": of_queries}, site_class.keys
    if subset is None:
        marginals = MarginalPlan(selected, trace.selected_steps)
    else:
        marginals = MarginalPlan(selected, trace.selected_steps, quantities=(direction,), **averaged)
    return GridPlan(marginals, direction, patches, grid, gain * tokens if density else gain)


def _of_contributions(trace: Trace, plans: list[GridPlan], contribution: Contribution) -> list[GridPlan]:
    """The plans for contributions; a layer with one key is left out, as that gives every patch the same."""
    several = [plan for plan in plans if plan.marginals.selected.site_class.keys > 1]
    without = [plan.marginals.selected for plan in several if plan.marginals.selected.site_class.channels is None]
    if not several or len(without) == len(several):
        raise InputError(
            f"trace {trace.path} holds no values of the selected layers, of which contributions are made: record them "
            "with values=True (attrace record --values)"
        )
    if without:
        layers = ", ".join(path for one in without for path in one.paths)
        raise InputError(
            f"trace {trace.path} holds no values of {layers}, so their contribution is not known (attrace info "
            "--layers says why): choose the others with layers= (--layers)"
        )
    return [replace(plan, marginals=replace(plan.marginals, contribution=contribution)) for plan in several]


def _resampled_plans(
    trace: Trace, direction: Direction, queries: Queries, keys: Keys, density: bool, resampler: Resampler
) -> list[GridPlan]:
    """Plans of the layers that attend to tokens of a resampler, laid on its patches; none where there are none."""
    if direction != "g2r":
        raise InputError("resampler: it lays maps on the patches of the reference; use direction='g2r'")
    plans = []
    for selected in trace.classes:
        for adapter, layers in adapters_of(selected).items():
            if resampler is None or not has_resampler(trace, adapter):
                continue
            shares = resampler_shares(trace, resampler, adapter=adapter)
            grid = (shares.sizes["row"], shares.sizes["column"])
            gain = np.ones(grid[0] * grid[1]) if keys is None else coverage(as_mask(keys, "keys"), grid).ravel()
            if queries is None:
                marginals = MarginalPlan(layers, trace.selected_steps)
            else:
                of_queries = query_weights(selected.site_class, queries)
                marginals = MarginalPlan(layers, trace.selected_steps, of_queries, quantities=("g2r",))
            gain = gain * shares.attrs["sources"] if density else gain
            plans.append(GridPlan(marginals, "g2r", slice(0, gain.size), grid, gain, shares))
    return plans


def _no_grid(trace: Trace, direction: Direction) -> str:
    if direction == "r2g":
        return (
            f"trace {trace.path}: the queries of the selected layers lie on no grid, so there is no map over the "
            "generated picture; marginals(trace) has the values"
        )
    if all(one.site_class.keys == 1 for one in trace.classes):
        return (
            f"trace {trace.path}: the selected layers have one key (the reference as one vector), so the softmax over "
            "keys is 1 everywhere and says nothing of where in the reference; use direction='r2g'"
        )
    if any(is_resampler(one) for one in trace.manifest.classes):
        return (
            f"trace {trace.path}: the keys of the selected layers are tokens that a resampler made of the reference; "
            "resampler='last' (--resampler last) lays them on its patches"
        )
    return (
        f"trace {trace.path}: the keys of the selected layers (context {trace.context!r}) lie on no grid, so there is "
        "no map over the reference; use direction='r2g', token_map for text, or marginals(trace) for the values"
    )
