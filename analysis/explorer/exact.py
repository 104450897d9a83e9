"""What an explorer asks, answered from the trace itself: exact values, computed when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import dask.base
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.explorer.facts import describe_relation, describe_trace, relations_of, usable_mask
from attrace.analysis.explorer.plan import exact_plan, listed_keys
from attrace.analysis.maps.attribution import attribution_map
from attrace.analysis.maps.levels import level_map
from attrace.analysis.maps.marginals import MarginalPlan
from attrace.analysis.maps.masks import coverage, query_weights
from attrace.analysis.maps.plan import GridPlan
from attrace.analysis.maps.weights import LayerWeights, read_weights, weights_of
from attrace.analysis.trace.trace import require_trace
from attrace.schemas import InputError, Level

if TYPE_CHECKING:
    from attrace.analysis.explorer.plan import ReportPlan
    from attrace.analysis.trace.trace import Trace

MOST_GROUPS: Final = 10
"""Groups of steps of a time strip, at most."""

KEPT_ANSWERS: Final = 256
"""Answers that are kept to be given again."""

PARTS: Final[Mapping[str, tuple[Level, str]]] = {
    "map": ("ulam", ""),
    "layers": ("llam", "layer"),
    "heads": ("hlam", "head"),
    "groups": ("tlam", "group"),
}
"""The level of what is asked for, and the choice that it does without."""

Maps = dict[str, NDArray[np.float32]]


class ExactAnswers:
    """Answers what an explorer asks of a trace (`explorer.js` says what that is).

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    groups
        Groups of steps of the time strip; 10 by default (fewer where there are fewer steps).
    weights
        Of layers and heads in every mean over them, as for `attribution_map`.

    Raises
    ------
    InputError
        If the trace has no finished step, no grid of queries or no scores.
    """

    def __init__(self, trace: Trace, *, groups: int | None = None, weights: LayerWeights = None) -> None:
        require_trace(trace)
        self._weights = read_weights(weights)
        traces = relations_of(trace)
        count = min(MOST_GROUPS, trace.steps) if groups is None else groups
        self.plans = [exact_plan(traces[0], count, self._weights)]
        for other in traces[1:]:
            try:
                self.plans.append(exact_plan(other, count, self._weights))
            except InputError:  # this context cannot be shown
                continue
        described = [describe_relation(plan, self._start(plan)) for plan in self.plans]
        self.facts = describe_trace(trace, described) | {"exact": True}
        self._answer = lru_cache(maxsize=KEPT_ANSWERS)(self._computed)

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.float32]]]:
        """The head of the answer, and an array for each part that was asked for.

        Raises
        ------
        InputError
            If the question is none.
        """
        try:
            asked = {name: question[name] for name in ("relation", "from", "region", "layer", "head", "group", "unit")}
            maps, share = self._answer(json.dumps(asked), tuple(question["parts"]))
            return {"id": question.get("id"), "share": share}, [maps[part] for part in question["parts"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"expected a question of an explorer, found {str(question)[:200]}") from error

    def _computed(self, text: str, parts: tuple[str, ...]) -> tuple[Maps, float | None]:
        asked = json.loads(text)
        known = asked["from"] in ("generated", "keys") and asked["unit"] in ("even", "share") and asked["relation"] >= 0
        if not known or min(asked["layer"], asked["head"], asked["group"]) < -1:
            raise InputError(f"expected a question of an explorer, found {text[:200]}")
        plan = self.plans[asked["relation"]]
        lazy = {part: self._map(plan, asked, *PARTS[part]) for part in parts}
        maps = {part: _laid_out(plan, part, made, asked["from"]) for part, made in dask.base.compute(lazy)[0].items()}
        return maps, _share(plan, asked, maps["map"]) if "map" in maps else None

    def _map(self, plan: ReportPlan, asked: Mapping[str, Any], level: Level, without: str) -> xr.DataArray:
        """The map of a level through what is chosen, lazily."""
        trace = plan.trace
        if asked["layer"] >= 0 and without != "layer":
            trace = trace.sel(layer=trace.layers[asked["layer"]])
        if asked["head"] >= 0 and without != "head":
            trace = trace.sel(head=plan.trace.heads[asked["head"]])
        if asked["group"] >= 0 and without != "group":
            trace = trace.sel(time=plan.trace.time[plan.spans[asked["group"]]].tolist())
        groups = len(plan.spans) if level == "tlam" else None
        density = asked["unit"] == "even"
        chosen = self._region(plan, asked)
        if asked["from"] == "generated" and plan.view == "tokens":
            return _over_tokens(trace, level, chosen, density=density, groups=groups, weights=self._weights)
        direction: Any = "g2r" if asked["from"] == "generated" else "r2g"
        return attribution_map(
            trace,
            level,
            direction=direction,
            size=plan.grids[direction],
            density=density,
            groups=groups,
            weights=self._weights,
            **{"queries" if direction == "g2r" else "keys": chosen},
        )

    def _region(self, plan: ReportPlan, asked: Mapping[str, Any]) -> Any:
        """The chosen patches as queries or keys that count; None for all."""
        region = asked["region"]
        if region == "all":
            return None
        if region == "mask":
            return usable_mask(plan.trace)
        top, left, bottom, right = region
        rows, columns = plan.grids["r2g" if asked["from"] == "generated" else "g2r"]
        if not (0 <= top < bottom <= rows and 0 <= left < right <= columns):
            raise InputError(f"region: {region} lies outside the grid of {rows} x {columns}, or is empty")
        if asked["from"] == "keys" and plan.view == "tokens":
            lines = listed_keys(plan.classes[0].site_class)[top:bottom]
            return [key for first, size in lines for key in range(first, first + size)]
        chosen = np.zeros((rows, columns))
        chosen[top:bottom, left:right] = 1
        return chosen

    def _start(self, plan: ReportPlan) -> dict[str, list[int]]:
        """The patches that are chosen at first: the middle of the mask, or of the picture."""
        middle = {
            "generated": [length // 2 for length in plan.grids["r2g"]],
            "keys": [length // 2 for length in plan.grids["g2r"]],
        }
        mask = usable_mask(plan.trace)
        if mask is not None:
            inside = coverage(mask, plan.grids["r2g"])
            rows, columns = np.indices(inside.shape)
            middle["generated"] = [round(float((axis * inside).sum() / inside.sum())) for axis in (rows, columns)]
        return middle


def _over_tokens(
    trace: Trace, level: Level, queries: Any, *, density: bool, groups: int | None, weights: LayerWeights
) -> xr.DataArray:
    """How much each key of a list gets of the attention of the queries, lazily: (..., row, column), one row a key."""
    plans = []
    for selected in trace.classes:
        site_class = selected.site_class
        if site_class.query_grid is None:
            continue
        of_queries = query_weights(site_class, queries)
        marginals = MarginalPlan(selected, trace.selected_steps, of_queries, None, ("g2r",))
        gain = np.full(site_class.keys, site_class.keys if density else 1.0)
        plans.append(GridPlan(marginals, "g2r", slice(0, site_class.keys), (site_class.keys, 1), gain))
    of_pairs = weights_of(trace, weights, [plan.marginals.selected for plan in plans])
    return level_map(trace, level, plans, plans[0].grid, groups=groups, weights=of_pairs)


def _laid_out(plan: ReportPlan, part: str, made: xr.DataArray, origin: str) -> NDArray[np.float32]:
    """Values as the explorer takes them: map after map, NaN for a layer or head without one; padding as its mean."""
    if part == "layers":
        made = made.reindex(layer=list(plan.trace.layers))
    if part == "heads":
        made = made.reindex(head=list(plan.trace.heads))
    values = np.asarray(made.values, np.float64)
    if origin == "generated" and plan.view == "tokens":
        values = values.reshape(-1, values.shape[-2]) @ plan.classes[0].keys.pooling.T
    return np.ascontiguousarray(values.ravel(), np.float32)


def _share(plan: ReportPlan, asked: Mapping[str, Any], values: NDArray[np.float32]) -> float | None:
    """How much of the attention of the chosen patches lies on the keys that are shown; None where it is all of it."""
    counts = {one.site_class.keys for one in plan.classes}
    laid = all(one.keys.kept == plan.grids["g2r"] for one in plan.classes)
    if asked["from"] == "keys" or not any(one.partial for one in plan.classes) or len(counts) > 1 or not laid:
        return None
    total = float((values.astype(np.float64) * plan.classes[0].keys.sizes).sum())
    share = total / counts.pop() if asked["unit"] == "even" else total
    return share if np.isfinite(share) else None
