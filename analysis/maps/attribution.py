"""The attribution maps of I2AM: unified, time-level, head-level and layer-level, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypedDict, Unpack

import xarray as xr

from attrace.analysis.maps.levels import level_map
from attrace.analysis.maps.marginals import ATTRIBUTES, Contribution
from attrace.analysis.maps.masks import Keys, Queries
from attrace.analysis.maps.plan import GridPlan, Size, checked_size, finest, finest_grid, grid_plans
from attrace.analysis.maps.resampler import Resampler
from attrace.analysis.maps.weights import LayerWeights, read_weights, weights_of, weights_of_layers
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.analysis.trace.traces import Traces, map_each
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.words import DIRECTIONS, LEVELS

LONG_NAMES: Final[Mapping[Level, str]] = {
    "ulam": "unified attribution map",
    "tlam": "time-level attribution map",
    "hlam": "head-level attribution map",
    "llam": "layer-level attribution map",
}


class MapOptions(TypedDict, total=False):
    """Options of every map, as `attribution_map` explains them."""

    size: Size | None
    layers: Layers
    density: bool
    resampler: Resampler
    weights: LayerWeights
    contribution: bool


class SubsetOptions(MapOptions, total=False):
    """Options of the maps that take a direction, and queries and keys that count."""

    direction: Direction
    queries: Queries
    keys: Keys


def attribution_map(
    trace: Trace | Traces,
    level: Level,
    *,
    direction: Direction = "r2g",
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    density: bool = True,
    resampler: Resampler = None,
    weights: LayerWeights = None,
    contribution: bool = False,
    groups: int | None = None,
    group_size: int | None = None,
) -> xr.DataArray:
    """Attribution map of a level: the mean over steps, layers and heads, but for those that the level keeps.

    Parameters
    ----------
    trace
        The trace, or a selection of it; or many, whose maps then lie along `trace`, with the metadata of each.
    level
        `ulam`, unified: one map. `tlam`, time-level: one for each group of consecutive steps. `hlam`, head-level: one
        for each head, averaged over the layers that have it. `llam`, layer-level: one for each layer, in the order of
        their calls. The functions of these names are this one.
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
        Keys that count: a mask over the reference picture, a kind of key, `all`, or numbers of keys; None for the
        patches (all keys where there are none). For `r2g` they are the J of the mean over keys; a `g2r` map is kept
        under them.
    density
        Multiply the map of each layer by the number of patches that its softmax shares out, so that 1 is what even
        attention gives. With `density=False`, as in the paper, a patch of a coarse layer weighs more than one of a fine
        layer (an `r2g` map of 8 x 8 queries is 1/64 on average, one of 64 x 64 is 1/4096), and coarse layers dominate
        every mean over layers of several grids.
    resampler
        For `g2r` of an IP-Adapter whose tokens a resampler made of the reference: lay them on its patches, by the
        resampler's last layer (`last`) or all of its layers (`rollout`), as `resampler_shares` says. `keys` is then a
        mask.
    weights
        How much each layer and head counts in the mean over them: None for all pairs alike, as in the paper; `effect`
        for the measured effect of each, which the trace holds (`attrace ablate`); a file that `attrace ablate` wrote,
        or a JSON object of numbers by layer; or numbers, none negative: a mapping from layers, or from (layer, head),
        or a DataArray (layer[, head]). Layers are named as in `layers`, and a later label goes before an earlier one:
        `{"*": 0, "up_blocks.*": 1}`. The number of a layer is shared evenly by its heads. The maps that `llam` keeps
        apart are weighted by numbers by head alone.
    contribution
        Map what keys contribute to what the layer gives a patch, by their values and its output weights, in place of
        how attention is spread: the trace was recorded with `values=True`. All heads of a layer give one contribution,
        but for `hlam`, which maps the share of each head in it: 1 on average over the heads. Layers then count alike,
        or as their heads weigh together. A layer with one key is left out.
    groups
        Of `tlam`: number of groups, of as equal a size as can be; 5 by default (fewer where there are fewer steps).
    group_size
        Of `tlam`: steps in a group, in place of `groups`; the last group may be smaller.

    Returns
    -------
    xarray.DataArray
        (row, column) after the dimension that the level keeps (`time_group`, `head` or `layer`); lazy, float32 or
        float64, not negative. `row` and `column` count cells of the map; `first_call` and `last_call` say which calls
        of the denoiser a group holds.

    Raises
    ------
    InputError
        If no selected layer has a grid for the direction, what counts is nothing, the groups do not fit the steps or
        the level, `resampler` does not suit the trace or the other options, a layer has no weight, or contributions are
        asked for and a layer has no values.
    SelectionError
        If `layers` names no layer.

    Notes
    -----
    Each (layer, head) is averaged over the steps, resized (bicubic, a = -0.75, half-pixel centres, no antialias),
    clamped at 0, and all pairs are averaged with equal weight, or with `weights`, which then sum to 1 over the pairs
    that were called. A step in which a site was not called is left out of
    its mean. I2AM (arXiv 2407.12331).
    """
    if isinstance(trace, Traces):
        options: dict[str, Any] = {
            "layers": layers,
            "queries": queries,
            "keys": keys,
            "density": density,
            "resampler": resampler,
            "contribution": contribution,
        }
        options |= {"level": level, "direction": direction, "groups": groups, "group_size": group_size}
        options["weights"] = read_weights(weights)
        # the size of a map does not depend on the layers, queries and keys that are named
        sizes = (_default_size(one, direction, grid_plans(one, direction, resampler=resampler)) for one in trace)
        return map_each(trace, attribution_map, finest(sizes) if size is None else checked_size(size), options)
    require_trace(trace)
    chosen = trace if layers is None else trace.sel(layer=layers)
    whose: Contribution | None = None if not contribution else "head" if level == "hlam" else "layer"
    counted: dict[str, Any] = {"queries": queries, "keys": keys, "density": density, "resampler": resampler}
    plans = grid_plans(chosen, direction, **counted, contribution=whose)
    shape = _default_size(chosen, direction, plans) if size is None else checked_size(size)
    of_pairs = weights_of(chosen, weights, [plan.marginals.selected for plan in plans])
    if of_pairs is not None and whose == "layer":
        of_pairs = weights_of_layers(of_pairs)
    maps = level_map(chosen, level, plans, shape, groups=groups, group_size=group_size, weights=of_pairs)
    attributes = {"normalisation": "density" if density else "none"}
    attributes |= {"quantity": "contribution"} if contribution else {}
    return described(maps, direction, attributes | ({} if resampler is None else {"resampler": resampler}))


def ulam(trace: Trace | Traces, **options: Unpack[SubsetOptions]) -> xr.DataArray:
    """Unified attribution map: the mean over steps, layers and heads, (row, column).

    `direction`, `size`, `layers`, `queries`, `keys`, `density`, `resampler`, `weights`, `contribution` and errors are
    those of `attribution_map`.
    """
    return attribution_map(trace, "ulam", **options)


def tlam(
    trace: Trace | Traces,
    *,
    groups: int | None = None,
    group_size: int | None = None,
    **options: Unpack[SubsetOptions],
) -> xr.DataArray:
    """Time-level attribution map: the mean over layers and heads, (time_group, row, column).

    A group of consecutive steps has `group_size` steps, or there are so many `groups`: 5 by default. `direction`,
    `size`, `layers`, `queries`, `keys`, `density`, `resampler`, `weights`, `contribution` and errors are those of
    `attribution_map`.
    """
    return attribution_map(trace, "tlam", groups=groups, group_size=group_size, **options)


def hlam(trace: Trace | Traces, **options: Unpack[SubsetOptions]) -> xr.DataArray:
    """Head-level attribution map: the mean over steps and layers, (head, row, column).

    `direction`, `size`, `layers`, `queries`, `keys`, `density`, `resampler`, `weights`, `contribution` and errors are
    those of `attribution_map`.
    """
    return attribution_map(trace, "hlam", **options)


def llam(trace: Trace | Traces, **options: Unpack[SubsetOptions]) -> xr.DataArray:
    """Layer-level attribution map: the mean over steps and heads, (layer, row, column).

    `direction`, `size`, `layers`, `queries`, `keys`, `density`, `resampler`, `weights`, `contribution` and errors are
    those of `attribution_map`.
    """
    return attribution_map(trace, "llam", **options)


def level_maps(
    trace: Trace,
    *,
    levels: Iterable[Level] = LEVELS,
    directions: Iterable[Direction] | None = None,
    groups: int | None = None,
    **options: Unpack[MapOptions],
) -> xr.DataTree:
    """Maps of several levels and directions, lazily: `compute()` of the tree reads what they share once.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    levels
        All by default.
    directions
        Those that have a map by default.
    groups
        Groups of steps of the time-level maps.
    **options
        `size`, `layers`, `density`, `weights`, `contribution` and `resampler` (of the `g2r` maps) as for
        `attribution_map`.

    Returns
    -------
    xarray.DataTree
        A child for each direction, whose variables are named by level: `tree["r2g/ulam"]`.

    Raises
    ------
    InputError
        If a direction has no map.
    """

    def make(level: Level, direction: Direction) -> xr.DataArray:
        of_map: dict[str, Any] = {**options, "direction": direction, "groups": groups if level == "tlam" else None}
        if direction == "r2g":  # a resampler is of the reference
            of_map["resampler"] = None
        return attribution_map(trace, level, **of_map)

    if directions is None:
        directions = mappable_directions(trace, resampler=options.get("resampler"))
    return tree_of_maps(make, levels, directions)


def tree_of_maps(
    make: Callable[[Level, Direction], xr.DataArray], levels: Iterable[Level], directions: Iterable[Direction]
) -> xr.DataTree:
    """A tree with a child for each direction, whose variables are the maps of the levels."""
    levels = list(levels)
    return xr.DataTree.from_dict(
        {direction: xr.Dataset({level: make(level, direction) for level in levels}) for direction in directions}
    )


def mappable_directions(trace: Trace, *, resampler: Resampler = None) -> tuple[Direction, ...]:
    """The directions that have a map; a reference that is one vector has no map over it.

    Raises
    ------
    InputError
        If there is none, with the reason for both.
    """
    return possible_directions(
        lambda direction: grid_plans(trace, direction, resampler=resampler if direction == "g2r" else None)
    )


def possible_directions(plan: Callable[[Direction], object]) -> tuple[Direction, ...]:
    """The directions for which a plan can be made; an InputError with all reasons where there is none."""
    found: list[Direction] = []
    reasons = []
    for direction in DIRECTIONS:
        try:
            plan(direction)
        except InputError as error:
            reasons.append(str(error))
        else:
            found.append(direction)
    if not found:
        raise InputError("; ".join(dict.fromkeys(reasons)))
    return tuple(found)


def described(maps: xr.DataArray, direction: Direction, attributes: Mapping[str, str]) -> xr.DataArray:
    """The map of a level with its name and attributes."""
    level: Level = maps.attrs["level"]
    quantity = attributes.get("quantity", "attribution")
    way = ATTRIBUTES[direction]["long_name"].partition(" attribution")[0]
    long_name = f"{LONG_NAMES[level]}, {way} {quantity}"
    if attributes["normalisation"] == "density":
        long_name += f", relative to even {'attention' if quantity == 'attribution' else quantity}"
    if "weights" in maps.attrs:
        long_name += f", weighted by {maps.attrs['weights']}"
    named: xr.DataArray = maps.rename(f"{level}_{direction}")
    return named.assign_attrs(direction=direction, long_name=long_name, **attributes)


def _default_size(trace: Trace, direction: Direction, plans: Iterable[GridPlan]) -> Size:
    """The finest grid for the direction, whatever layers are selected; of the reference's patches with a resampler."""
    resampled = [plan.grid for plan in plans if plan.shares is not None]
    return finest(resampled) if resampled else finest_grid(trace, direction)
