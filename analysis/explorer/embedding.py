"""The attention that a page carries: rows of every layer, head and patch, in whole numbers, within a limit."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dask.base
import numpy as np
from numpy.typing import NDArray

from attrace.analysis.explorer.attention import Attention, attention_of, differences, lazy_attention, quantised
from attrace.analysis.explorer.facts import describe_relation, describe_trace, relations_of, usable_mask
from attrace.analysis.explorer.plan import ReportClass, ReportPlan, Side, plan_report
from attrace.analysis.kernels.resize import bicubic_matrix, resize
from attrace.analysis.maps.masks import area_matrix, coverage
from attrace.schemas import Direction, InputError

if TYPE_CHECKING:
    from attrace.analysis.maps.plan import Size
    from attrace.analysis.maps.weights import LayerWeights
    from attrace.analysis.trace.trace import Trace

PAGE_BYTES: Final = 300_000
"""What a page takes beside attention and pictures: scripts, tables, words."""

LEVELS_OF_QUANTISATION: Final = (255, 127, 63, 31, 15)
"""Whole numbers that a row of attention is stored in, from fine to coarse: what is coarser compresses better."""

BYTES_PER_VALUE: Final = 0.3
"""What one value takes at a middling one of these, compressed, as text; noise takes twice as much."""

FIRST_SHARE: Final = 0.7
"""Part of the limit that the first context gets where there are several."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Embedding:
    """What a page carries of a trace."""

    plans: tuple[ReportPlan, ...]
    """Of each context."""
    facts: dict[str, Any]
    """What the explorer is told at once."""
    relations: list[list[dict[str, Any]]]
    """For each context the classes: how their rows become maps."""
    arrays: Arrays
    """Rows as they are stored, their scales, and shares, by the names under which the page finds them."""
    levels: int
    """Whole numbers that a row of attention is stored in."""
    left_out: dict[str, str]
    """Why a context is not shown, by its name."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        index = [
            {"name": name, "type": str(array.dtype), "shape": list(array.shape)} for name, array in self.arrays.items()
        ]
        return {"facts": self.facts, "relations": self.relations, "index": index, "state": {}}

    def rows(self) -> str:
        """The arrays one after the other, compressed, as base64."""
        return _packed(self.arrays)


def embed(trace: Trace, *, groups: int | None, limit: int, weights: LayerWeights = None) -> Embedding:
    """Compute the attention of a trace between patches, in one go, and make it fit into so many bytes.

    Raises
    ------
    InputError
        If the trace has no finished step, no grid of queries or no scores, or the limit is too small.
    """
    traces = relations_of(trace)
    pictures = len(str(describe_trace(traces[0], ()))) * 2
    budget = limit - PAGE_BYTES - pictures
    if budget <= 0:
        raise InputError(f"limit: expected more than {PAGE_BYTES + pictures} bytes, found {limit}")
    values = budget / BYTES_PER_VALUE
    while True:
        plans, left_out = _plans(traces, groups, values, weights)
        attention = _attention(plans)
        arrays, levels, size = _fitting(attention, budget)
        if size <= budget:
            break
        values = 0.95 * sum(plan.cost for plan in plans) * budget / size
    described = [describe_relation(plan, _start(plan, kept)) for plan, kept in zip(plans, attention, strict=True)]
    relations = [
        [_class_facts(plan, one, kept) for one, kept in zip(plan.classes, of_plan, strict=True)]
        for plan, of_plan in zip(plans, attention, strict=True)
    ]
    return Embedding(tuple(plans), describe_trace(traces[0], described), relations, arrays, levels, left_out)


def _plans(
    traces: list[Trace], groups: int | None, values: float, weights: LayerWeights
) -> tuple[list[ReportPlan], dict[str, str]]:
    """Plans of the contexts of which so many values fit; the first has to."""
    first = values if len(traces) == 1 else values * FIRST_SHARE
    plans, left_out = [plan_report(traces[0], groups, int(first), weights)], {}
    for other in traces[1:]:
        try:
            plans.append(plan_report(other, groups, int((values - first) / (len(traces) - 1)), weights))
        except InputError as error:
            left_out[str(other.context)] = str(error)
    return plans, left_out


def _attention(plans: list[ReportPlan]) -> list[list[Attention]]:
    """The attention of every class of every plan, computed together."""
    lazy = [[lazy_attention(plan, one) for one in plan.classes] for plan in plans]
    return [
        [attention_of(plan, one, values) for one, values in zip(plan.classes, computed, strict=True)]
        for plan, computed in zip(plans, dask.base.compute(*lazy), strict=True)
    ]


def _fitting(attention: list[list[Attention]], budget: int) -> tuple[Arrays, int, int]:
    """The attention of every class in the finest whole numbers that fit, how many these are, and the bytes it takes."""
    stored: Arrays = {}
    for levels in LEVELS_OF_QUANTISATION:
        stored = {}
        for relation, classes in enumerate(attention):
            for number, kept in enumerate(classes):
                name = f"{relation}_{number}"
                for direction, rows in kept.rows.items():
                    whole, scale = quantised(rows, levels)
                    stored |= {f"{name}_{direction}": differences(whole), f"{name}_{direction}_scale": scale}
                stored |= {} if kept.shares is None else {f"{name}_shares": kept.shares}
        size = len(_packed(stored))
        if size <= budget:
            break
    return stored, levels, size


def _packed(arrays: Arrays) -> str:
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _start(plan: ReportPlan, attention: list[Attention]) -> dict[str, list[int]]:
    """The patches that are chosen at first: those with the most attention."""
    start = {"generated": [0, 0], "keys": [0, 0]}
    directions: dict[str, Direction] = {"generated": "r2g", "keys": "g2r"}
    for side, direction in directions.items():
        grid = plan.grids[direction]
        total = np.zeros(grid)
        for one, kept in zip(plan.classes, attention, strict=True):
            shown = one.queries if side == "generated" else one.keys
            rows: Any = kept.rows.get(direction)
            if rows is not None:
                total += resize(np.nan_to_num(rows).mean(axis=(0, 1, 2, 3)).reshape(shown.kept).astype(float), grid)
        start[side] = [int(index) for index in np.unravel_index(total.argmax(), grid)]
    return start


def _class_facts(plan: ReportPlan, one: ReportClass, attention: Attention) -> dict[str, Any]:
    """How the stored rows of a class become maps."""
    trace, mask = plan.trace, usable_mask(plan.trace)
    ways: tuple[tuple[Direction, Side, Side], ...] = (("g2r", one.queries, one.keys), ("r2g", one.keys, one.queries))
    covers, resizes, gains, sizes = {}, {}, {}, {}
    for way, chosen, shown in ways:
        grid = plan.grids["r2g" if way == "g2r" else "g2r"]
        covers[way] = _axes(area_matrix, grid, chosen.kept)
        resizes[way] = None if shown.kept == plan.grids[way] else _axes(bicubic_matrix, shown.kept, plan.grids[way])
        gains[way] = float(
            np.prod(
                [np.abs(bicubic_matrix(*pair)).sum(1).max() for pair in zip(shown.kept, plan.grids[way], strict=True)]
            )
        )
        sizes[way] = chosen.sizes.tolist()
    return {
        "layers": [trace.layers.index(path) for path in one.selected.paths],
        "heads": [trace.heads.index(head) for head in one.selected.heads] if plan.heads_apart else [-1],
        "counts": attention.counts.tolist(),
        "weights": _pair_weights(plan, one),
        "by_head": plan.weights is None or bool(plan.weights.attrs["by_head"]),
        "queries": {"kept": one.queries.kept, "count": one.site_class.queries},
        "keys": {"kept": one.keys.kept, "count": one.site_class.keys},
        "cover": covers,
        "resize": resizes,
        "gain": gains,
        "sizes": sizes,
        "partial": attention.shares is not None,
        "mask": None if mask is None else coverage(mask, one.queries.kept).ravel().tolist(),
    }


def _pair_weights(plan: ReportPlan, one: ReportClass) -> list[list[float]]:
    """Weight of each layer and head that the page keeps apart, 1 where all weigh alike."""
    heads = list(one.selected.heads)
    if plan.weights is None:
        return [[1.0] * (len(heads) if plan.heads_apart else 1)] * len(one.selected.paths)
    weights = plan.weights.sel(layer=list(one.selected.paths), head=heads).values
    pairs: list[list[float]] = (weights if plan.heads_apart else weights.sum(axis=1, keepdims=True)).tolist()
    return pairs


def _axes(matrix: Any, old: Size, new: Size) -> dict[str, Any]:
    """A matrix for each axis that takes a grid to another one."""
    return {
        name: np.round(matrix(*pair), 9).tolist()
        for name, pair in zip(("rows", "columns"), zip(old, new, strict=True), strict=True)
    }
