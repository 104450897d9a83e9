"""What a report knows: maps, quantised attention, pictures, words; plain data that the page is made of."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import dask.base
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.explorer.attention import Attention, attention_of, lazy_attention, quantised
from attrace.analysis.explorer.pictures import UNITS, picture_pixels
from attrace.analysis.explorer.plan import ReportClass, ReportPlan, Side, listed_keys, plan_report
from attrace.analysis.figures.text import labels_along
from attrace.analysis.kernels.resize import bicubic_matrix
from attrace.analysis.maps.attribution import level_maps
from attrace.analysis.maps.masks import area_matrix, coverage, trace_mask
from attrace.analysis.maps.sram import picture_size, strongest_patches
from attrace.analysis.maps.weights import LayerWeights, read_weights
from attrace.analysis.scores.trace_scores import score_table, score_trace
from attrace.analysis.trace.trace import Trace
from attrace.schemas import Direction, InputError

PAGE_BYTES: Final = 2_000_000
"""What the page takes beside its arrays: the scripts of Bokeh, tables, words."""

LEVELS_OF_QUANTISATION: Final = (255, 127, 63, 31, 15)
"""Whole numbers that a row of attention is stored in, from fine to coarse: what is coarser compresses better."""

BYTES_PER_VALUE: Final = 0.7
"""Upper bound of what one value takes at the coarsest of these, compressed, as text."""


@dataclass(frozen=True)
class Contents:
    """Everything that a page shows."""

    plan: ReportPlan
    levels: int
    """Whole numbers that a row of attention is stored in."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    """By the names under which the page's script finds them."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain JSON for the page's script."""
    scores: xr.Dataset = field(default_factory=xr.Dataset)
    """What `score_trace` gives."""
    mask: NDArray[np.bool_] | None = None
    """The mask over the generated picture."""


def gather(trace: Trace, *, groups: int | None, limit: int, weights: LayerWeights = None) -> Contents:
    """Compute what a report shows, in one go, and make it fit into so many bytes.

    Raises
    ------
    InputError
        If the trace has no finished step, no grid of queries or no scores, or the limit is too small.
    """
    if trace.pictures > 1 and trace.picture is None:
        trace = trace.sel(picture=0)
    pictures = {
        f"picture_{side}": pixels
        for side, name in (("generated", "generated"), ("reference", trace.reference_name))
        if (pixels := picture_pixels(trace, name)) is not None
    }
    budget = limit - PAGE_BYTES - _text_bytes(pictures)
    if budget <= 0:
        raise InputError(f"limit: expected more than {PAGE_BYTES + _text_bytes(pictures)} bytes, found {limit}")
    weights = read_weights(weights)
    plan = plan_report(trace, groups, int(budget / BYTES_PER_VALUE), weights)
    maps = _level_maps(plan, weights)
    lazy = [lazy_attention(plan, one) for one in plan.classes]
    computed, attended = dask.base.compute(maps, lazy)
    flat: dict[str, NDArray[Any]] = {
        f"{level}_{way}_{unit}": np.asarray(heat.values, np.float32).reshape(-1, *heat.shape[-2:])
        for (unit, way), levels in computed.items()
        for level, heat in levels.data_vars.items()
    }
    kept = [attention_of(plan, one, values) for one, values in zip(plan.classes, attended, strict=True)]
    flat |= {f"class_{number}_shares": one.shares for number, one in enumerate(kept) if one.shares is not None}
    stored, levels = _fitting(kept, budget - _text_bytes(flat))
    mask = trace_mask(trace)
    usable = mask is not None and bool(mask.any()) and not bool(mask.all())
    return Contents(
        plan,
        levels,
        pictures | flat | stored,
        _facts(plan, kept, computed, mask if usable else None),
        score_trace(trace, {"r2g": mask} if usable and mask is not None else {}, weights=weights),
        mask if usable else None,
    )


Maps = Mapping[tuple[str, Direction], xr.Dataset]
"""Maps of every level by unit (`density`, `weight`) and direction."""


def _level_maps(plan: ReportPlan, weights: LayerWeights) -> Maps:
    """Maps of every level and direction, as weights and relative to even attention, lazily."""
    options: dict[str, Any] = {"groups": len(plan.spans), "weights": weights}
    return {
        (unit, way): level_maps(
            plan.trace, directions=[way], size=plan.grids[way], density=unit == "density", **options
        )[way].to_dataset()
        for way in plan.directions
        for unit in UNITS
    }


def _fitting(kept: list[Attention], budget: int) -> tuple[dict[str, NDArray[Any]], int]:
    """The attention of every class in the finest whole numbers that fit, and how many these are."""
    stored: dict[str, NDArray[Any]] = {}
    for levels in LEVELS_OF_QUANTISATION:
        for number, attention in enumerate(kept):
            for way, rows in attention.rows.items():
                whole, quanta = quantised(rows, levels)
                stored[f"class_{number}_{way}"], stored[f"class_{number}_{way}_quanta"] = whole, quanta
        if _text_bytes(stored) <= budget:
            break
    return stored, levels


def _text_bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of arrays as the page holds them: compressed, as base64."""
    return sum(len(base64.b64encode(gzip.compress(array.tobytes(), 6))) for array in arrays.values())


def _facts(plan: ReportPlan, kept: list[Attention], maps: Maps, mask: NDArray[np.bool_] | None) -> dict[str, Any]:
    trace = plan.trace
    layers = list(trace.layers)
    regions = ["patch", "box"] + (["mask"] if mask is not None and "g2r" in plan.kept_directions else [])
    labels = {
        f"{level}_{way}": _labels(heat)
        for way in plan.directions
        for level, heat in maps["weight", way].data_vars.items()
    }
    facts = {
        "view": plan.view,
        "directions": [way for way in ("g2r", "r2g") if way in plan.kept_directions],
        "regions": regions,
        "grids": plan.grids,
        "sizes": {
            "generated": picture_size(trace, "g2r")
            if trace.manifest.image_size or "generated" in trace.images
            else None,
            "reference": picture_size(trace, "r2g")
            if plan.view == "picture" and trace.reference_name in trace.images
            else None,
        },
        "start": _start(plan, maps),
        "layers": layers,
        "heads": list(trace.heads),
        "groups": group_labels(plan),
        "tokens": list(token_labels(plan) or ()),
        "units": UNITS,
        "names": names_of(plan),
        "by_head": plan.weights is None or bool(plan.weights.attrs["by_head"]),
        "classes": [
            _class_facts(plan, one, attention, mask, layers) for one, attention in zip(plan.classes, kept, strict=True)
        ],
        "labels": labels,
        "llam": {
            way: [layers.index(path) for path in maps["weight", way]["layer"].values.tolist()]
            for way in plan.directions
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts, allow_nan=False))
    return plain


def names_of(plan: ReportPlan) -> dict[str, str]:
    """What the two sides are called."""
    keys = "Text" if plan.trace.context == "text" else "Keys"
    return {"generated": "Generated picture", "reference": "Reference" if plan.view == "picture" else keys}


def _labels(heat: Any) -> list[str]:
    dim = str(heat.dims[0])
    return ["all steps, layers and heads"] if dim == "row" else labels_along(heat, dim)


def _start(plan: ReportPlan, maps: Maps) -> dict[str, list[int]]:
    """The patches that are chosen at first: those with the most attention."""
    start = {"generated": [0, 0], "reference": [0, 0]}
    for way in plan.directions:
        heat = maps["density", way]["ulam"]
        if bool(np.isfinite(heat.values).any()):
            best = strongest_patches(plan.trace, heat)[0]
            start["generated" if way == "r2g" else "reference"] = [best.row, best.column]
    return start


def group_labels(plan: ReportPlan) -> list[str]:
    """Which calls of the denoiser each group of steps holds."""
    calls = [(int(plan.trace.time[span.start]), int(plan.trace.time[span.stop - 1])) for span in plan.spans]
    return [f"step {first}" if first == last else f"steps {first}\N{EN DASH}{last}" for first, last in calls]


def token_labels(plan: ReportPlan) -> tuple[str, ...] | None:
    """Texts of the keys, where they are a list; their kinds where the texts are not known."""
    if plan.view != "tokens":
        return None
    site_class = plan.classes[0].site_class
    kinds = [segment.kind for segment in site_class.key_segments for _ in range(segment.count)]
    texts = site_class.tokens or tuple(f"{place}: {kind}" for place, kind in enumerate(kinds))
    return tuple(
        texts[first] if size == 1 else f"padding (the mean of {size})" for first, size in listed_keys(site_class)
    )


def _class_facts(
    plan: ReportPlan, one: ReportClass, attention: Attention, mask: NDArray[np.bool_] | None, layers: list[str]
) -> dict[str, Any]:
    ways: tuple[tuple[Direction, Side, Side], ...] = (("g2r", one.queries, one.keys), ("r2g", one.keys, one.queries))
    covers, resizes, gains = {}, {}, {}
    for way, chosen, shown in ways:
        grid = plan.grids["r2g" if way == "g2r" else "g2r"]
        covers[way] = _axes(area_matrix, grid, chosen.kept)
        resizes[way] = None if shown.kept == plan.grids[way] else _axes(bicubic_matrix, shown.kept, plan.grids[way])
        gains[way] = float(
            np.prod(
                [np.abs(bicubic_matrix(*pair)).sum(1).max() for pair in zip(shown.kept, plan.grids[way], strict=True)]
            )
        )
    return {
        "layers": [layers.index(path) for path in one.selected.paths],
        "heads": list(one.selected.heads) if plan.heads_apart else [-1],
        "counts": attention.counts.tolist(),
        "weights": _pair_weights(plan, one),
        "queries": {"kept": one.queries.kept, "count": one.site_class.queries},
        "keys": {"kept": one.keys.kept, "count": one.site_class.keys},
        "cover": covers,
        "resize": resizes,
        "gain": gains,
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


def _axes(matrix: Any, old: tuple[int, int], new: tuple[int, int]) -> dict[str, Any]:
    """A matrix for each axis that takes a grid to another one."""
    return {
        name: matrix(*pair).tolist() for name, pair in zip(("rows", "columns"), zip(old, new, strict=True), strict=True)
    }


def scores_table(scores: xr.Dataset) -> list[list[str]]:
    """The numbers of `attrace score` as lines of text, with a header."""
    rows = [
        [row.score.replace("_", " "), f"{row.of}, {row.map}" if row.map else row.of, _number(row.value), row.better]
        for row in score_table(scores)
    ]
    return [["score", "of", "value", "better"], *rows]


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "infinite" if value > 0 else "nothing to compare"
