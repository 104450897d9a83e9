"""Weighted maps are those of the definition in float64, whatever the weights come from; bad weights are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from support.exact import LayerMaps, bicubic, exact_marginals, no_computing
from support.traces import MadeTrace, make_trace, site_class

from attrace.analysis import Trace, attribution_map, open_trace, open_traces, sram, token_map
from attrace.analysis.maps.weights import read_weights
from attrace.analysis.scores.trace_scores import map_name
from attrace.schemas import Direction, InputError, Level, SelectionError

CLASSES = (
    site_class("reference/48x16h2d8", query_grid=(8, 6), layers=("down.0.attn2", "up.0.attn2")),
    site_class(
        "reference/12x6h3d4",
        query_grid=(4, 3),
        key_grid=(2, 3),
        heads=3,
        features=4,
        layers=("mid.0.attn2",),
        first_order=1,
    ),
)
LAYERS = ("down.0.attn2", "up.0.attn2", "mid.0.attn2")
SIZE = (5, 7)
BY_LAYER = {"down.0.attn2": 0.5, "up.0.attn2": 0.0, "mid.0.attn2": 3.0}
BY_HEAD = {"down.0.attn2": [1.0, 0.0], "up.0.attn2": [0.25, 4.0], "mid.0.attn2": [0.0, 2.0, 1.0]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeTrace:
    return make_trace(tmp_path_factory.mktemp("weights") / "run.zarr", CLASSES, steps=4)


@pytest.fixture
def trace(made: MadeTrace) -> Trace:
    return open_trace(made.path)


def maps_of(made: MadeTrace, direction: Direction) -> list[LayerMaps]:
    """Marginals of every layer, relative to even attention, on their grids."""
    found = []
    for one in CLASSES:
        grid = one.query_grid if direction == "r2g" else one.key_segments[0].grid
        assert grid is not None
        for layer, site in enumerate(one.sites):
            steps = []
            for scores in made.scores[one.group][:, layer]:
                even = np.full(one.queries, 1 / one.queries), np.full(one.keys, 1 / one.keys)
                marginal = exact_marginals(scores, *even)[direction == "g2r"]
                steps.append((marginal * marginal.shape[1]).reshape(one.heads, *grid))
            found.append(LayerMaps(site.path, site.order, np.array(steps)))
    return sorted(found, key=lambda one: one.order)


def weighted(
    maps: list[LayerMaps], level: Level, weights: Mapping[str, Any], *, groups: list[slice]
) -> NDArray[np.float64]:
    """The weighted mean by its definition, one pair of layer and head at a time."""

    def mean(pairs: list[tuple[float, NDArray[np.float64]]]) -> NDArray[np.float64]:
        total = sum(weight for weight, _ in pairs)
        one: NDArray[np.float64] = sum(weight * heat for weight, heat in pairs) / total  # type: ignore[assignment]
        return one if total else np.full(SIZE, np.nan)

    def pair(one: LayerMaps, head: int, steps: slice) -> tuple[float, NDArray[np.float64]]:
        number = weights[one.path]
        weight = number[head] if isinstance(number, list) else number / one.values.shape[1]
        return weight, np.maximum(bicubic(one.values[steps, head].mean(axis=0), SIZE), 0)

    every = slice(None)
    with np.errstate(invalid="ignore"):
        if level == "llam":
            return np.stack([mean([pair(one, head, every) for head in range(one.values.shape[1])]) for one in maps])
        if level == "hlam":
            having = [[one for one in maps if one.values.shape[1] > head] for head in range(3)]
            return np.stack([mean([pair(one, head, every) for one in some]) for head, some in enumerate(having)])
        spans = groups if level == "tlam" else [every]
        found = [mean([pair(one, head, span) for one in maps for head in range(one.values.shape[1])]) for span in spans]
        return np.stack(found) if level == "tlam" else found[0]


@pytest.mark.parametrize("weights", [BY_LAYER, BY_HEAD], ids=["by-layer", "by-head"])
@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("level", ["ulam", "tlam", "hlam", "llam"])
def test_every_level_is_the_weighted_mean_of_the_definition(
    made: MadeTrace, trace: Trace, level: Level, direction: Direction, weights: Mapping[str, Any]
) -> None:
    groups = 2 if level == "tlam" else None
    with no_computing():
        heat = attribution_map(trace, level, direction=direction, size=SIZE, weights=weights, groups=groups)
    assert heat.dtype == np.float32
    if level == "llam" and weights is BY_LAYER:  # there is nothing for a number of a layer to weigh
        weights = dict.fromkeys(weights, 1.0)
    expected = weighted(maps_of(made, direction), level, weights, groups=[slice(0, 2), slice(2, 4)])
    np.testing.assert_allclose(heat.values, expected, rtol=1e-5, atol=1e-6)


def test_a_selection_of_layers_and_heads_shares_the_weights_anew(made: MadeTrace, trace: Trace) -> None:
    part = trace.sel(layer=["down.0.attn2", "mid.0.attn2"], head=0)
    found = attribution_map(part, "ulam", size=SIZE, weights=BY_LAYER).values
    maps = [one for one in maps_of(made, "r2g") if one.path != "up.0.attn2"]
    parts = [np.maximum(bicubic(one.values[:, 0].mean(axis=0), SIZE), 0) * BY_LAYER[one.path] for one in maps]
    np.testing.assert_allclose(found, np.sum(parts, axis=0) / 3.5, rtol=1e-5)


def test_weights_come_from_a_file_numbers_or_an_array(trace: Trace, tmp_path: Path) -> None:
    expected = attribution_map(trace, "ulam", weights=BY_HEAD).values
    pairs = {(layer, head): number for layer, several in BY_HEAD.items() for head, number in enumerate(several)}
    file = tmp_path / "heads.json"
    file.write_text(json.dumps(BY_HEAD))
    values = [[*several, np.nan][:3] for several in BY_HEAD.values()]
    array = xr.DataArray(values, {"layer": list(BY_HEAD), "head": range(3)}, ("layer", "head"), "effect")
    xr.Dataset({"effect": array.assign_attrs(context="reference")}).to_netcdf(tmp_path / "heads.nc", engine="scipy")
    for weights in (pairs, file, str(file), tmp_path / "heads.nc", array):
        np.testing.assert_array_equal(attribution_map(trace, "ulam", weights=weights).values, expected)


def test_labels_are_typed_as_figures_show_them_and_later_ones_go_first(trace: Trace) -> None:
    heat = attribution_map(trace, "ulam", size=SIZE, weights={"*": 0, "mid.0": 2})
    alone = attribution_map(trace.sel(layer="mid.0.attn2"), "ulam", size=SIZE)
    np.testing.assert_allclose(heat.values, alone.values, rtol=1e-6)


def test_a_map_and_its_printed_name_say_the_weights(trace: Trace, tmp_path: Path) -> None:
    heat = attribution_map(trace, "ulam", weights=BY_LAYER)
    assert heat.attrs["weights"] == "given numbers"
    assert heat.attrs["long_name"].endswith(", relative to even attention, weighted by given numbers")
    assert map_name(heat) == "density, weighted by given numbers, 8 x 6"
    (tmp_path / "mine.json").write_text(json.dumps(BY_LAYER))
    assert attribution_map(trace, "ulam", weights=tmp_path / "mine.json").attrs["weights"] == "mine.json"
    assert "weights" not in attribution_map(trace, "ulam").attrs
    assert "weights" not in attribution_map(trace, "llam", weights=BY_LAYER).attrs


def test_chosen_patches_take_weights(trace: Trace) -> None:
    heat = sram(trace, (1, 2), size=SIZE, weights={"*": 0, "mid.0": 1})
    alone = sram(trace.sel(layer="mid.0"), _at(8, 6, 1, 2), size=SIZE)
    np.testing.assert_allclose(heat.values, alone.values, rtol=1e-6)


def _at(rows: int, columns: int, row: int, column: int) -> NDArray[np.float64]:
    mask = np.zeros((rows, columns))
    mask[row, column] = 1
    return mask


def test_words_take_weights(tmp_path: Path) -> None:
    text = site_class("text/64x16h2d8", key_grid=(4, 4))
    trace = open_trace(make_trace(tmp_path / "text.zarr", (text,)).path)
    heat = token_map(trace, [3], weights={"down.0": 0, "up.0": 1})
    np.testing.assert_allclose(heat.values, token_map(trace, [3], layers="up.0").values, rtol=1e-6)


def test_many_traces_take_weights(made: MadeTrace, trace: Trace) -> None:
    maps = attribution_map(open_traces(made.path), "ulam", weights=BY_LAYER)
    assert maps.attrs["weights"] == "given numbers"
    np.testing.assert_array_equal(maps.values[0], attribution_map(trace, "ulam", weights=BY_LAYER).values)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"down.0.attn2": 1, "up.0.attn2": 1}, "no weight of layer mid.0.attn2; it has down.0.attn2, up.0.attn2"),
        ({"*": 1, "side.0": 2}, "has no layer 'side.0'; it has down.0.attn2"),
        ({"*": [1, 2]}, "no weight of head 2 of layer mid.0.attn2"),
        ({"*": 0}, "all selected layers and heads have the weight 0"),
        ({"*": 1, "up.0": -1}, "at least 0, found another one at layer up.0"),
        ({"*": float("inf")}, "at least 0, found another one"),
        ({"*": float("nan")}, "at least 0, found another one"),
        ({"*": "much"}, "expected numbers"),
        ({"*": 1, ("up.0", 1): 2}, "by layer, or for every layer by head"),
        ({3: 1}, "expected a layer"),
        ({}, "by layer, or for every layer by head"),
        (7, "found int"),
        (xr.DataArray([1.0], dims="layer"), "with labels"),
        (xr.DataArray([1.0], {"head": [0]}, ("head",)), "found dims"),
        ("effect", "holds no measured effects"),
        ("nowhere.nc", "no file nowhere.nc"),
    ],
)
def test_bad_weights_are_told(trace: Trace, weights: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem.replace("*", "[*]")):
        attribution_map(trace, "ulam", weights=weights)


def test_a_short_label_of_two_layers_is_told(tmp_path: Path) -> None:
    alike = site_class(layers=("up.0.a.attn2", "up.0.b.attn2"))
    trace = open_trace(make_trace(tmp_path / "run.zarr", (alike,)).path)
    with pytest.raises(SelectionError, match="may be"):
        attribution_map(trace, "ulam", weights={"up.0": 1})


def test_a_file_that_holds_no_effects_is_told(tmp_path: Path) -> None:
    broken, other, text = tmp_path / "broken.nc", tmp_path / "other.nc", tmp_path / "text.json"
    broken.write_bytes(b"nothing of the kind")
    xr.Dataset({"entropy": ("layer", [1.0])}).to_netcdf(other, engine="scipy")
    text.write_text("[1, 2]")
    for file, problem in ((broken, "attrace ablate wrote"), (other, "found entropy"), (text, "found list")):
        with pytest.raises(InputError, match=problem):
            read_weights(file)


def test_effects_of_another_context_are_told(trace: Trace, tmp_path: Path) -> None:
    effect = xr.DataArray([1.0, 1.0, 1.0], {"layer": list(LAYERS)}, ("layer",), "effect")
    file = tmp_path / "text.nc"
    xr.Dataset({"effect": effect.assign_attrs(context="text")}).to_netcdf(file, engine="scipy")
    with pytest.raises(InputError, match="of the context 'text', the selected one is 'reference'"):
        attribution_map(trace, "ulam", weights=file)
