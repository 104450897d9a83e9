"""Maps of contributions are those of the definition in float64: every level and direction, masks, bias, guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp
from support.exact import (
    Call,
    CountedTokens,
    LayerMaps,
    bicubic,
    counted_reads,
    exact_contributions,
    level_of,
    no_computing,
    random_calls,
    with_values,
    write_calls,
)
from support.traces import site_class

from attrace.analysis import Trace, attribution_map, open_trace, open_traces, score_trace, sram, ulam
from attrace.analysis.maps.attribution import level_maps
from attrace.analysis.scores.trace_scores import map_name
from attrace.schemas import Direction, InputError, KeySegment, Level, SiteClass

STEPS = 6
GROUPS = [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
LEVELS: list[Level] = ["ulam", "tlam", "hlam", "llam"]
DIRECTIONS: list[Direction] = ["r2g", "g2r"]
CLASSES = (
    site_class(
        "reference/48x17h2d8", query_grid=(8, 6), cls=True, layers=("down.0", "up.0"), has_bias=True, channels=11
    ),
    site_class(
        "reference/12x6h3d4",
        query_grid=(4, 3),
        key_grid=(2, 3),
        heads=3,
        features=4,
        encoding="scores",
        layers=("mid",),
        first_order=1,
        channels=20,
    ),
)


def made_calls(*, static: bool) -> tuple[dict[Any, Call], dict[str, NDArray[Any]]]:
    """Random calls with values, some keys hidden, and a layer that is not called in one step."""
    calls, outputs = with_values(CLASSES, random_calls(CLASSES, STEPS), static=static)
    bias = np.zeros(17, np.float32)
    bias[[3, 9]] = -np.inf
    bias[5] = -1.5
    calls = {at: replace(call, bias=bias) if at[0] == CLASSES[0].group else call for at, call in calls.items()}
    del calls[CLASSES[1].group, 5, 0]
    return calls, outputs


def exact_layers(
    classes: Sequence[SiteClass],
    calls: dict[Any, Call],
    outputs: dict[str, NDArray[Any]],
    direction: Direction,
    *,
    by_head: bool = False,
    queries: NDArray[Any] | None = None,
    keys: NDArray[Any] | None = None,
    heads: Sequence[int] | None = None,
) -> list[LayerMaps]:
    """Contributions of every layer, relative to even ones, on their grids."""
    found = []
    for one in classes:
        counted = CountedTokens.of(one, queries, keys)
        of_queries, of_keys, patches = counted.of_queries, counted.of_keys, counted.patches
        grid = counted.grids[direction]
        chosen = list(range(one.heads) if heads is None else heads)
        for layer, site in enumerate(one.sites):
            maps = []
            for step in range(STEPS):
                call = calls.get((one.group, step, layer))
                if call is None or call.value is None:
                    maps.append(np.full((len(chosen) if by_head else 1, *grid), np.nan))
                    continue
                lse = None if call.lse is None else call.lse.astype(np.float64)
                parts = exact_contributions(
                    call.scores(one.scale), call.value.astype(float), outputs[one.group][layer].astype(float), lse=lse
                )[chosen]
                positive = np.maximum(parts if by_head else parts.sum(axis=0, keepdims=True), 0)
                sums = positive @ of_keys if direction == "r2g" else np.einsum("q,hqk->hk", of_queries, positive)
                sums *= len(sums) * sums.shape[1] / sums.sum()
                shown = sums * of_queries if direction == "r2g" else sums[:, patches] * of_keys[patches]
                maps.append(shown.reshape(len(sums), *grid))
            found.append(LayerMaps(site.path, site.order, np.stack(maps)))
    return found


def check(found: xr.DataArray, expected: NDArray[Any], rtol: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert float(np.nanmax(expected)) > 0
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=rtol * np.nanmax(expected))


@pytest.fixture(scope="module", params=[True, False], ids=["static", "changing"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Any, Any]:
    calls, outputs = made_calls(static=request.param)
    path = tmp_path_factory.mktemp("contributions") / "run.zarr"
    return open_trace(write_calls(path, CLASSES, calls, steps=STEPS, outputs=outputs)), calls, outputs


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.filterwarnings("ignore:.*empty slice")
def test_every_level_and_direction(made: Any, level: Level, direction: Direction) -> None:
    trace, calls, outputs = made
    with no_computing():
        found = attribution_map(trace, level, direction=direction, contribution=True)
    finest = (8, 6) if direction == "r2g" else (4, 4)
    layers = exact_layers(CLASSES, calls, outputs, direction, by_head=level == "hlam")
    check(found, level_of(layers, level, finest, GROUPS))
    assert found.dtype == np.float32
    assert found.attrs["quantity"] == "contribution"
    way = "reference-to-generated" if direction == "r2g" else "generated-to-reference"
    assert found.attrs["long_name"].endswith(f"map, {way} contribution, relative to even contribution")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_masks_over_queries_and_keys(made: Any, level: Level, direction: Direction) -> None:
    trace, calls, outputs = made
    random = np.random.default_rng(0)
    masks: dict[str, Any] = {"queries": random.random((8, 6)) > 0.6, "keys": random.random((4, 6)) > 0.4}
    for some in ({"queries": masks["queries"]}, {"keys": masks["keys"]}, masks):
        found = attribution_map(trace, level, direction=direction, contribution=True, size=(5, 5), **some)
        layers = exact_layers(CLASSES, calls, outputs, direction, by_head=level == "hlam", **some)
        check(found, level_of(layers, level, (5, 5), GROUPS))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_chosen_patches(made: Any, direction: Direction) -> None:
    trace, calls, outputs = made
    chosen = np.zeros((8, 6) if direction == "g2r" else (4, 4))
    chosen[1:3, 2] = 1
    with no_computing():
        found = sram(trace, chosen > 0, direction=direction, contribution=True)
    some: dict[str, Any] = {"queries" if direction == "g2r" else "keys": chosen}
    layers = exact_layers(CLASSES, calls, outputs, direction, **some)
    check(found, level_of(layers, "ulam", (4, 4) if direction == "g2r" else (8, 6)))
    assert found.attrs["long_name"].startswith("contribution of chosen patches")


def test_some_heads_are_a_part_of_what_the_layer_gives(made: Any) -> None:
    trace, calls, outputs = made
    found = ulam(trace.sel(head=1), direction="g2r", contribution=True)
    check(found, level_of(exact_layers(CLASSES, calls, outputs, "g2r", heads=[1]), "ulam", (4, 4)))


def test_plain_weights_sum_to_one(made: Any) -> None:
    trace, calls, outputs = made
    found = attribution_map(trace, "llam", contribution=True, density=False, size=(8, 6))
    for one in exact_layers(CLASSES, calls, outputs, "r2g"):
        if one.values.shape[2:] == (8, 6):
            np.testing.assert_allclose(found.sel(layer=one.path).sum(), 1, rtol=1e-5)
            np.testing.assert_allclose(found.sel(layer=one.path), one.values.mean(axis=(0, 1)) / 48, atol=1e-6)


def test_layers_weigh_as_they_do_by_number_or_as_their_heads_together(made: Any) -> None:
    trace, calls, outputs = made
    layers = exact_layers(CLASSES, calls, outputs, "g2r")
    by_layer = {"down.0": 0.5, "up.0": 0.0, "mid": 3.0}
    by_head = {"down.0": [0.5, 0.0], "up.0": [0.0, 0.0], "mid": [1.0, 0.5, 1.5]}
    expected = np.zeros((4, 4))
    for one in layers:
        expected += by_layer[one.path] / 3.5 * np.maximum(bicubic(np.nanmean(one.values, axis=0)[0], (4, 4)), 0)
    for weights in (by_layer, by_head):
        found = ulam(trace, direction="g2r", contribution=True, weights=weights)
        check(found, expected)
        assert map_name(found) == "contribution, density, weighted by given numbers, 4 x 4"
    heads = exact_layers(CLASSES, calls, outputs, "g2r", by_head=True)
    hlam = attribution_map(trace, "hlam", direction="g2r", contribution=True, weights=by_head)
    of_second = np.maximum(bicubic(np.nanmean(heads[2].values, axis=0)[1], (4, 4)), 0)
    np.testing.assert_allclose(hlam.sel(head=1), of_second, atol=2e-5 * of_second.max())


def test_both_directions_are_read_once(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = open_trace(made[0].path)
    with no_computing():
        lazy = level_maps(trace, levels=["ulam", "llam", "tlam"], contribution=True)
    with counted_reads(monkeypatch) as keys:
        lazy.compute(scheduler="synchronous")
    data = [key for key in keys if any(f"/{name}/" in key for name in ("query_vector", "value_vector", "output"))]
    assert len(data) == len(set(data))
    assert len([key for key in data if "/output/" in key]) == 3


def test_joint_attention_shares_with_keys_that_are_not_there(tmp_path: Path) -> None:
    one = site_class(has_lse=True, channels=24)
    calls, outputs = with_values([one], random_calls([one], STEPS), static=True)
    random = np.random.default_rng(5)
    for at, call in calls.items():
        rest = random.normal(size=(one.heads, one.queries, 9)) * 2
        whole = np.concatenate([call.scores(one.scale), rest], axis=2)
        calls[at] = replace(call, lse=logsumexp(whole, axis=2).astype(np.float32))
    trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=STEPS, outputs=outputs))
    for direction in DIRECTIONS:
        found = ulam(trace, direction=direction, contribution=True)
        size = (8, 8) if direction == "r2g" else (4, 4)
        check(found, level_of(exact_layers([one], calls, outputs, direction), "ulam", size))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("encoding", ["factors", "scores"])
def test_either_encoding_in_any_precision(tmp_path: Path, dtype: str, encoding: str) -> None:
    one = site_class(dtype=dtype, encoding=encoding, channels=24)
    calls, outputs = with_values([one], random_calls([one], STEPS), static=True)
    trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=STEPS, outputs=outputs))
    found = ulam(trace, direction="g2r", contribution=True)
    rounded = dtype == "float16" and encoding == "scores"
    expected = level_of(exact_layers([one], calls, outputs, "g2r"), "ulam", (4, 4))
    check(found, expected, 1e-2 if rounded else 1e-12 if dtype == "float64" else 2e-5)


def test_many_traces_and_scores(made: Any) -> None:
    trace = made[0]
    traces = open_traces([trace.path])
    np.testing.assert_array_equal(ulam(traces, contribution=True)[0], ulam(trace, contribution=True))
    mask = np.zeros((8, 6), bool)
    mask[2:5, 1:4] = True
    scores = score_trace(trace, {"r2g": mask}, contribution=True)
    assert scores["map"].values.tolist() == ["contribution, density, 8 x 6", "contribution, density, 4 x 4"]
    plain = score_trace(trace, {"r2g": mask})
    assert abs(scores["imacs"][0] - plain["imacs"][0]) > 1e-3


def test_layers_without_values_are_refused_by_name(tmp_path: Path) -> None:
    with_them = site_class(channels=24)
    without = site_class("reference/16x16h2d8", query_grid=(4, 4), layers=("mid.attn2",), first_order=2)
    classes = (with_them, without)
    calls, outputs = with_values([with_them], random_calls([with_them], STEPS), static=True)
    calls |= random_calls([without], STEPS)
    trace = open_trace(write_calls(tmp_path / "run.zarr", classes, calls, steps=STEPS, outputs=outputs))
    with pytest.raises(InputError, match=r"holds no values of mid\.attn2, .*layers="):
        ulam(trace, contribution=True)
    assert ulam(trace, contribution=True, layers="*.0.attn2").shape == (8, 8)
    with pytest.raises(InputError, match="record them with values=True"):
        ulam(trace, contribution=True, layers="mid.attn2")


def test_a_layer_with_one_key_is_left_out(tmp_path: Path) -> None:
    several = site_class(channels=24)
    vector = site_class(
        "reference/64x1h2d8",
        key_grid=None,
        key_segments=(KeySegment(kind="other", count=1),),
        keys=1,
        layers=("one",),
        first_order=2,
    )
    calls, outputs = with_values([several], random_calls([several], STEPS), static=True)
    calls |= random_calls([vector], STEPS)
    path = write_calls(tmp_path / "run.zarr", (several, vector), calls, steps=STEPS, outputs=outputs)
    found = attribution_map(open_trace(path), "llam", contribution=True)
    assert found["layer"].values.tolist() == ["down.0.attn2", "up.0.attn2"]


def test_values_that_are_alike_contribute_nothing(tmp_path: Path) -> None:
    one = site_class(channels=24)
    calls, outputs = with_values([one], random_calls([one], STEPS), static=False)
    calls = {at: replace(call, value=np.ones_like(call.key)) for at, call in calls.items()}
    trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=STEPS, outputs=outputs))
    np.testing.assert_array_equal(ulam(trace, contribution=True), 0)
