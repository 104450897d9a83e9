"""Maps of every level and direction are those of the definition, are lazy, and read each chunk once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.base
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray
from support.exact import (
    Call,
    CountedTokens,
    LayerMaps,
    counted_reads,
    exact_marginals,
    level_of,
    no_computing,
    random_calls,
    write_calls,
)
from support.traces import make_trace, site_class

from attrace.analysis import (
    Trace,
    attribution_map,
    hlam as default_hlam,
    llam as default_llam,
    marginals,
    open_trace,
    tlam as default_tlam,
    ulam as default_ulam,
)
from attrace.analysis.maps.levels import time_groups
from attrace.schemas import Direction, InputError, KeySegment, SelectionError, SiteClass

# without density, so that expected values are plain means; what density multiplies them by is tested by itself
hlam = partial(default_hlam, density=False)
llam = partial(default_llam, density=False)
tlam = partial(default_tlam, density=False)
ulam = partial(default_ulam, density=False)

DIRECTIONS: list[Direction] = ["r2g", "g2r"]
LEVELS: dict[str, Callable[..., xr.DataArray]] = {"ulam": ulam, "tlam": tlam, "hlam": hlam, "llam": llam}
STEPS = 7

CLASSES = (
    site_class("reference/48x17h2d8", query_grid=(8, 6), cls=True, layers=("down.0", "up.0")),
    site_class(
        "reference/12x6h3d4",
        query_grid=(4, 3),
        key_grid=(2, 3),
        heads=3,
        features=4,
        encoding="scores",
        dtype="float16",
        layers=("mid",),
        first_order=1,
    ),
)


def exact_layers(
    classes: tuple[SiteClass, ...],
    calls: dict[Any, Call],
    direction: Direction,
    *,
    steps: int = STEPS,
    queries: NDArray[Any] | None = None,
    keys: NDArray[Any] | None = None,
) -> list[LayerMaps]:
    """Marginals of every layer on their grids; `queries` and `keys` are masks over the pictures."""
    found = []
    for one in classes:
        counted = CountedTokens.of(one, queries, keys)
        of_queries, of_keys, patches = counted.of_queries, counted.of_keys, counted.patches
        grid = counted.grids[direction]
        for layer, site in enumerate(one.sites):
            values = np.full((steps, one.heads, *grid), np.nan)
            for step in range(steps):
                call = calls.get((one.group, step, layer))
                if call is None:
                    continue
                scores = call.scores(one.scale)
                scores = scores.astype(one.dtype).astype(np.float64) if one.encoding == "scores" else scores
                lse = None if call.lse is None else call.lse.astype(np.float64)
                r2g, g2r = exact_marginals(scores, of_queries / of_queries.sum(), of_keys / of_keys.sum(), lse=lse)
                shown = r2g * of_queries if direction == "r2g" else g2r[:, patches] * of_keys[patches]
                values[step] = shown.reshape(one.heads, *grid)
            found.append(LayerMaps(site.path, site.order, values))
    return found


def check(found: xr.DataArray, expected: NDArray[Any], rtol: float = 1e-5) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=rtol * np.nanmax(expected))


@pytest.fixture(scope="module")
def calls() -> dict[Any, Call]:
    calls = random_calls(CLASSES, STEPS)
    # gaps: one step of a layer, and every step of the last group of another
    for place in [("reference/48x17h2d8", 2, 0), ("reference/12x6h3d4", 5, 0), ("reference/12x6h3d4", 6, 0)]:
        del calls[place]
    return calls


@pytest.fixture(scope="module")
def trace(calls: dict[Any, Call], tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(write_calls(tmp_path_factory.mktemp("maps") / "run.zarr", CLASSES, calls, steps=STEPS))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", [None, (5, 9)])
def test_every_level_and_direction(
    trace: Trace, calls: dict[Any, Call], level: str, direction: Direction, size: tuple[int, int] | None
) -> None:
    with no_computing():
        found = LEVELS[level](trace, direction=direction, size=size)
    finest = (8, 6) if direction == "r2g" else (4, 4)
    groups = [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 5), slice(5, 7)]
    check(found, level_of(exact_layers(CLASSES, calls, direction), level, size or finest, groups))
    assert found.dtype == np.float32
    assert found.name == f"{level}_{direction}"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query_grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    key_grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    cls=st.booleans(),
    heads=st.integers(1, 3),
    encoding=st.sampled_from(["factors", "scores"]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    spread=st.sampled_from([0.5, 3.0, 25.0]),
    direction=st.sampled_from(DIRECTIONS),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_encoding(
    tmp_path_factory: pytest.TempPathFactory,
    query_grid: tuple[int, int],
    key_grid: tuple[int, int],
    cls: bool,
    heads: int,
    encoding: str,
    dtype: str,
    spread: float,
    direction: Direction,
    masked: bool,
    seed: int,
) -> None:
    one = site_class(
        "reference/made",
        query_grid=query_grid,
        key_grid=key_grid,
        cls=cls,
        heads=heads,
        encoding=encoding,
        dtype=dtype,
    )
    calls = random_calls((one,), 2, seed=seed, spread=spread)
    random = np.random.default_rng(seed)
    masks: dict[str, Any] = {}
    if masked:
        masks = {"queries": random.random((7, 5)) < 0.5, "keys": random.random((4, 9)) < 0.5}
        masks["queries"][0, 0] = masks["keys"][0, 0] = True
    path = write_calls(tmp_path_factory.mktemp("any") / "run.zarr", (one,), calls, steps=2)
    found = ulam(open_trace(path), direction=direction, size=(4, 4), **masks)
    exact = exact_layers((one,), calls, direction, steps=2, **masks)
    check(found, level_of(exact, "ulam", (4, 4)))
    assert found.dtype == (np.float64 if dtype == "float64" else np.float32)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("given_masks", [("queries",), ("keys",), ("queries", "keys")])
def test_subsets_under_masks(
    trace: Trace, calls: dict[Any, Call], direction: Direction, given_masks: tuple[str, ...]
) -> None:
    random = np.random.default_rng(3)
    masks: dict[str, Any] = {name: random.random((13, 10)) < 0.3 for name in given_masks}
    found = ulam(trace, direction=direction, **masks)
    check(found, level_of(exact_layers(CLASSES, calls, direction, **masks), "ulam", found.shape))  # type: ignore[arg-type]


def test_chosen_keys_of_r2g(trace: Trace, calls: dict[Any, Call]) -> None:
    one = CLASSES[0]
    found = llam(trace, keys="cls")  # the other class has no such key and is left out
    assert found.layer.values.tolist() == ["down.0", "up.0"]
    weights = np.eye(17)[0]
    values = np.stack(
        [
            exact_marginals(calls[one.group, step, 1].scores(one.scale), np.full(48, 1 / 48), weights)[0]
            for step in range(7)
        ]
    )
    check(found[1], values.mean(axis=(0, 1)).reshape(8, 6))
    np.testing.assert_array_equal(llam(trace, keys=[0], layers=["down.0", "up.0"]), found)


def test_a_known_log_sum_exp_and_bias_reach_the_maps(tmp_path: Path) -> None:
    one = site_class(has_lse=True, has_bias=True)
    calls = random_calls((one,), 2)
    for call in calls.values():
        call.bias = np.where(np.arange(16) == 3, -np.inf, 0.1).astype(np.float32)
        scores = call.scores(one.scale)
        call.lse = (np.log(np.exp(scores).sum(axis=2)) + 0.7).astype(np.float32)
    trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=2))
    for direction, size in (("r2g", (8, 8)), ("g2r", (4, 4))):
        exact = exact_layers((one,), calls, direction, steps=2)  # type: ignore[arg-type]
        check(ulam(trace, direction=direction), level_of(exact, "ulam", size))  # type: ignore[arg-type]
    parts: dict[str, Any] = {"keys": np.eye(4, dtype=bool)}
    check(ulam(trace, **parts), level_of(exact_layers((one,), calls, "r2g", steps=2, **parts), "ulam", (8, 8)))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_density_is_relative_to_even_attention(trace: Trace, calls: dict[Any, Call], direction: Direction) -> None:
    exact = exact_layers(CLASSES, calls, direction)
    tokens = {"r2g": (48, 48, 12), "g2r": (17, 17, 6)}[direction]
    for one, count in zip(exact, tokens, strict=True):
        one.values *= count
    found = llam(trace, direction=direction, density=True)
    check(found, level_of(exact, "llam", (8, 6) if direction == "r2g" else (4, 4)))
    assert found.attrs["normalisation"] == "density"
    assert found.attrs["long_name"].endswith("relative to even attention")


class TestLabels:
    def test_dims_and_coordinates(self, trace: Trace) -> None:
        assert ulam(trace).dims == ("row", "column")
        assert tlam(trace).dims == ("time_group", "row", "column")
        assert hlam(trace).dims == ("head", "row", "column")
        assert llam(trace).dims == ("layer", "row", "column")
        assert hlam(trace)["head"].values.tolist() == [0, 1, 2]
        assert llam(trace).layer.values.tolist() == ["down.0", "up.0", "mid"]
        assert ulam(trace).row.values.tolist() == list(range(8))

    def test_attributes(self, trace: Trace) -> None:
        attributes = llam(trace.sel(time=[0, 1]), direction="g2r", layers="up*").attrs
        assert attributes == {
            "level": "llam",
            "direction": "g2r",
            "long_name": "layer-level attribution map, generated-to-reference attribution",
            "normalisation": "none",
            "units": "1",
            "source": trace.path,
            "context": "reference",
            "branch": "conditional",
            "layers": 1,
            "steps": 2,
        }

    def test_time_groups_tell_their_calls(self, trace: Trace) -> None:
        found = tlam(trace.sel(time=[1, 3, 4, 6]), groups=2)
        assert found.first_call.values.tolist() == [1, 4]
        assert found.last_call.values.tolist() == [3, 6]

    @pytest.mark.parametrize(
        ("arguments", "lengths"),
        [({}, [1, 1, 2, 1, 2]), ({"groups": 1}, [7]), ({"groups": 7}, [1] * 7), ({"group_size": 3}, [3, 3, 1])],
    )
    def test_groups(self, trace: Trace, arguments: dict[str, Any], lengths: list[int]) -> None:
        assert [span.stop - span.start for span in time_groups(trace, **arguments)] == lengths
        assert tlam(trace, **arguments).sizes["time_group"] == len(lengths)

    def test_few_steps_make_fewer_groups(self, trace: Trace) -> None:
        assert tlam(trace.sel(time=[0, 1])).sizes["time_group"] == 2

    def test_the_default_size_does_not_depend_on_the_selection(self, trace: Trace) -> None:
        assert ulam(trace, layers="mid").shape == (8, 6)
        assert ulam(trace.sel(layer="mid"), direction="g2r").shape == (4, 4)


class TestSelections:
    def test_layers_heads_and_steps(self, trace: Trace, calls: dict[Any, Call]) -> None:
        part = trace.sel(head=[1, 2], time=[0, 1, 3]).sel(layer=["mid", "up*"])
        exact = [one for one in exact_layers(CLASSES, calls, "r2g") if one.path != "down.0"]
        for one in exact:
            one.values = one.values[[0, 1, 3]][:, 1:]
        check(ulam(part), level_of(exact, "ulam", (8, 6)))
        assert hlam(part)["head"].values.tolist() == [1, 2]
        check(llam(part), level_of(exact, "llam", (8, 6)))

    def test_layers_as_an_argument(self, trace: Trace) -> None:
        np.testing.assert_array_equal(ulam(trace, layers="up*"), ulam(trace.sel(layer="up.0")))

    def test_one_step_equals_its_group(self, trace: Trace) -> None:
        np.testing.assert_allclose(ulam(trace.sel(time=3)), tlam(trace, groups=7)[3], rtol=1e-6)

    def test_another_branch(self, tmp_path: Path) -> None:
        classes = (
            site_class(),
            site_class("reference.unconditional/64x16h2d8", branch="unconditional", context="reference"),
        )
        calls = random_calls(classes, 2)
        trace = open_trace(write_calls(tmp_path / "run.zarr", classes, calls, steps=2))
        for one in classes:
            expected = level_of(exact_layers((one,), calls, "r2g", steps=2), "ulam", (8, 8))
            check(ulam(trace.sel(branch=one.branch)), expected)


class TestMarginals:
    def test_both_directions_on_every_token(self, trace: Trace, calls: dict[Any, Call]) -> None:
        one = CLASSES[0]
        with no_computing():
            found = marginals(trace)[one.group]
        assert found["r2g"].dims == ("time", "layer", "head", "query")
        assert found["g2r"].dims == ("time", "layer", "head", "key")
        of_keys = np.r_[0, np.full(16, 1 / 16)]
        r2g, g2r = exact_marginals(calls[one.group, 4, 1].scores(one.scale), np.full(48, 1 / 48), of_keys)
        np.testing.assert_allclose(found["r2g"][4, 1], r2g, rtol=1e-5)
        np.testing.assert_allclose(found["g2r"][4, 1], g2r, rtol=1e-5)
        assert bool(found["r2g"][2, 0].isnull().all())
        assert bool(found["g2r"][2, 0].isnull().all())
        assert found["g2r"].key_kind.values[0] == "cls"
        assert float(found["g2r"][0, 0, 0].sum()) == pytest.approx(1, abs=1e-5)

    def test_chosen_keys_leave_out_classes_without_them(self, trace: Trace) -> None:
        found = marginals(trace, keys="cls")
        assert [node.path for node in found.leaves] == ["/reference/48x17h2d8"]
        with pytest.raises(InputError, match="no selected layer has the keys 'text'"):
            marginals(trace, keys="text")


class TestLaziness:
    def test_each_chunk_is_read_once_for_all_levels(self, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
        maps = [make(trace, direction=direction) for make in LEVELS.values() for direction in DIRECTIONS]
        with counted_reads(monkeypatch) as read:
            dask.base.compute(*maps)
        data = Counter(key for key in read if "/key_step/" not in key)
        assert set(data.values()) == {1}
        assert sum("/query_vector/" in key for key in data) == 2 * STEPS - 1
        assert sum("/scores/" in key for key in data) == STEPS - 2  # the two gaps are not read

    def test_a_key_that_does_not_change_is_read_once_a_task(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trace = open_trace(make_trace(tmp_path / "run.zarr", steps=20, static_keys=True).path)
        with counted_reads(monkeypatch) as read:
            ulam(trace).compute()
        counted = Counter(key for key in read if "/key_vector/" in key)
        assert counted == {
            f"reference/64x16h2d8/key_vector/c/0/{layer}/0/0/0": 2 for layer in range(2)
        }  # 2 tasks of 10 steps

    def test_a_selection_reads_only_what_it_needs(self, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
        with counted_reads(monkeypatch) as read:
            ulam(trace.sel(layer="up.0", time=[1, 2])).compute()
        assert {key for key in read if "/query_vector/" in key} == {
            f"reference/48x17h2d8/query_vector/c/{step}/1/0/0/0" for step in (1, 2)
        }

    def test_graphs_are_small(self, tmp_path: Path) -> None:
        trace = open_trace(make_trace(tmp_path / "run.zarr", steps=50).path)
        graph = ulam(trace).data.__dask_graph__()
        assert len(graph) < 100  # 2 layers in 5 tasks each, and what puts them together

    def test_equal_maps_have_equal_names(self, trace: Trace) -> None:
        assert ulam(trace).data.name == ulam(trace).data.name
        assert ulam(trace).data.name != ulam(trace.sel(time=[0, 1])).data.name
        assert ulam(trace).data.name != ulam(trace, keys=np.eye(4, dtype=bool)).data.name

    def test_one_thread_and_many_agree(self, trace: Trace) -> None:
        with dask.config.set(scheduler="synchronous"):
            alone = ulam(trace).values
        np.testing.assert_allclose(ulam(trace), alone, rtol=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"direction": "g2g"}, "expected r2g or g2r, found 'g2g'"),
            ({"size": (0, 4)}, r"size: expected \(rows, columns\)"),
            ({"size": 8}, r"size: expected \(rows, columns\)"),
            ({"keys": "text"}, "no selected layer with a grid for r2g has the keys 'text'"),
            ({"queries": np.zeros((4, 4), bool)}, "queries: the mask selects nothing"),
            ({"keys": "cls", "direction": "g2r"}, "no selected layer with a grid for g2r has the keys 'cls'"),
        ],
    )
    def test_arguments(self, trace: Trace, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            ulam(trace, **arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"groups": 2, "group_size": 2}, "not both"),
            ({"groups": 8}, "expected 1 to 7 groups of 7 steps, found 8"),
            ({"groups": 0}, "found 0"),
            ({"group_size": 0}, "at least 1 step"),
        ],
    )
    def test_groups(self, trace: Trace, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            tlam(trace, **arguments)

    def test_levels(self, trace: Trace) -> None:
        with pytest.raises(InputError, match="level: expected ulam, tlam, hlam or llam, found 'foo'"):
            attribution_map(trace, "foo")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="groups and group_size are those of tlam"):
            attribution_map(trace, "llam", groups=2)

    def test_layers(self, trace: Trace) -> None:
        with pytest.raises(SelectionError, match="no layer 'attn9'"):
            ulam(trace, layers="attn9")

    def test_one_key_has_no_map_over_the_reference(self, tmp_path: Path) -> None:
        one = site_class("reference/64x1h2d8", key_grid=None, cls=True)
        trace = open_trace(make_trace(tmp_path / "run.zarr", (one,)).path)
        with pytest.raises(InputError, match=r"one key .* is 1 everywhere .* use direction='r2g'"):
            ulam(trace, direction="g2r")
        assert ulam(trace).shape == (8, 8)
        assert float(ulam(trace).sum()) == pytest.approx(1, abs=1e-5)

    def test_text_has_no_map_over_a_reference(self, tmp_path: Path) -> None:
        one = site_class("text/64x5h2d8", key_grid=None, keys=5, key_segments=(KeySegment(kind="text", count=5),))
        trace = open_trace(make_trace(tmp_path / "run.zarr", (one,)).path)
        with pytest.raises(InputError, match=r"context 'text'\) lie on no grid.*token_map"):
            ulam(trace, direction="g2r")
        assert ulam(trace).shape == (8, 8)

    def test_queries_without_a_grid(self, tmp_path: Path) -> None:
        one = site_class().model_copy(update={"query_grid": None})
        trace = open_trace(make_trace(tmp_path / "run.zarr", (one,)).path)
        with pytest.raises(InputError, match="queries of the selected layers lie on no grid"):
            ulam(trace)
        assert ulam(trace, direction="g2r").shape == (4, 4)

    def test_no_step_yet(self, tmp_path: Path) -> None:
        trace = open_trace(write_calls(tmp_path / "run.zarr", (site_class(),), {}, steps=0, status=None))
        for make in LEVELS.values():
            with pytest.raises(InputError, match="no finished step yet"):
                make(trace)


def test_what_is_not_finite_is_left_out_with_a_warning(tmp_path: Path) -> None:
    one = site_class()
    calls = random_calls((one,), 2)
    calls[one.group, 1, 0].query[0, 3] = np.nan
    trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=2))
    with pytest.warns(RuntimeWarning, match="scores that are NaN or infinite"):
        found = ulam(trace, direction="r2g", keys=[0]).compute(scheduler="synchronous")
    assert found.shape == (8, 8)


def test_layers_without_a_grid_are_left_out(tmp_path: Path) -> None:
    classes = (
        site_class(),
        site_class("reference/16x1h2d8", query_grid=(4, 4), key_grid=None, cls=True, layers=("x",)),
    )
    trace = open_trace(make_trace(tmp_path / "run.zarr", classes).path)
    assert ulam(trace).attrs["layers"] == 3
    assert ulam(trace, direction="g2r").attrs["layers"] == 2


def test_a_layer_that_was_never_called_is_nan(tmp_path: Path) -> None:
    one = site_class()
    calls = random_calls((one,), 2)
    for step in range(2):
        del calls[one.group, step, 0]
    trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=2))
    assert bool(llam(trace)[0].isnull().all())
    np.testing.assert_array_equal(llam(trace)[1], ulam(trace))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_density_is_one_for_even_attention_in_every_layer(tmp_path: Path, direction: Direction) -> None:
    even = open_trace(make_trace(tmp_path / "even.zarr", CLASSES, spread=0.0).path)
    for level in LEVELS.values():
        np.testing.assert_allclose(level(even, direction=direction, size=(6, 5), density=True), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("direction", "tokens"),
    [("r2g", {"down.0": 48, "up.0": 48, "mid": 12}), ("g2r", {"down.0": 17, "up.0": 17, "mid": 6})],
)
def test_density_weighs_layers_by_what_their_softmax_shares_out(
    trace: Trace, direction: Direction, tokens: dict[str, int]
) -> None:
    plain, density = (llam(trace, direction=direction, density=density).compute() for density in (False, True))
    assert set(plain.layer.values) == set(tokens)
    for layer, count in tokens.items():
        np.testing.assert_allclose(density.sel(layer=layer), plain.sel(layer=layer) * count, rtol=1e-5)
    assert density.attrs["normalisation"] == "density"
    assert plain.attrs["normalisation"] == "none"
