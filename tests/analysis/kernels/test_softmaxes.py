"""The kernel gives both softmaxes' means to 1e-5 of float64, in every branch, compiled and in NumPy."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from support.exact import Call, exact_marginals, softmax

from attrace.analysis.kernels import numba_kernel, numpy_kernel, softmaxes
from attrace.analysis.kernels.softmaxes import (
    Method,
    head_softmaxes,
    key_shares,
    softmax_marginals,
    summed_softmax_over_keys,
)
from attrace.analysis.kernels.values import Factors, Scores, SiteValues
from attrace.analysis.kernels.workspace import Workspace
from attrace.schemas import InputError

METHODS: list[Method] = ["numba", "numpy"]

TOLERANCE = 1e-5
"""Of the largest value, as the kernel promises."""


def made(
    heads: int,
    queries: int,
    keys: int,
    features: int,
    *,
    spread: float = 1.5,
    dtype: str = "float32",
    bias: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> Call:
    random = np.random.default_rng(seed)
    query = (spread * random.normal(size=(heads, queries, features))).astype(dtype)
    key = (spread * random.normal(size=(heads, keys, features))).astype(dtype)
    return Call(query, key, bias)


def weights(length: int, seed: int = 1) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    values = random.random(length) * (random.random(length) < 0.8)
    values[0] += 1e-3
    shares: NDArray[np.float64] = values / values.sum()
    return shares


def check(values: SiteValues, scores: NDArray[np.float64], method: Method, lse: Any = None) -> None:
    of_queries, of_keys = weights(scores.shape[1]), weights(scores.shape[2], seed=2)
    found = softmax_marginals(values, of_queries, of_keys, method=method)
    exact = exact_marginals(scores, of_queries, of_keys, lse=lse)
    for one, true in zip(found, exact, strict=True):
        assert one.shape == true.shape
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, true, rtol=0, atol=TOLERANCE * max(true.max(), 1e-30))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(
    heads=st.integers(1, 3),
    queries=st.integers(1, 300),
    keys=st.one_of(st.integers(1, 40), st.integers(120, 140)),
    features=st.integers(1, 20),
    spread=st.sampled_from([0.01, 1.0, 2.0, 4.0, 30.0]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    stored_scores=st.booleans(),
    masked=st.sampled_from([None, -np.inf, -10000.0, -100.0, float(np.finfo(np.float32).min)]),
    seed=st.integers(0, 100),
)
def test_marginals_are_those_of_float64(
    method: Method,
    heads: int,
    queries: int,
    keys: int,
    features: int,
    spread: float,
    dtype: str,
    stored_scores: bool,
    masked: float | None,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    bias = None
    if masked is not None:
        bias = np.where(random.random(keys) < 0.4, masked, random.normal(size=keys)).astype(np.float32)
    call = made(heads, queries, keys, features, spread=spread, dtype=dtype, bias=bias, seed=seed)
    scale = features**-0.5
    exact = call.scores(scale)
    exact[exact < -1e30] = -np.inf
    if not stored_scores:
        check(Factors(call.query, call.key, scale, bias), exact, method)
        return
    stored = np.clip(exact, -6e4, 6e4).astype(dtype)
    stored[exact == -np.inf] = -np.inf
    check(Scores(stored), stored.astype(np.float64), method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", [0.5, 3.0, 6.0, 40.0])
def test_a_known_log_sum_exp_stands_in_for_the_sum_over_keys(method: Method, spread: float) -> None:
    call = made(2, 50, 30, 8, spread=spread)
    hidden = made(2, 50, 11, 8, spread=spread, seed=5)
    elsewhere = Call(call.query, hidden.key).scores(0.3)
    exact = call.scores(0.3)
    everything = np.concatenate([exact, elsewhere], axis=2)
    largest = everything.max(axis=2)
    lse = largest + np.log(np.exp(everything - largest[..., None]).sum(axis=2))
    stored = lse.astype(np.float32)
    check(Factors(call.query, call.key, 0.3, lse=stored), exact, method, lse=stored.astype(np.float64))
    as_scores = exact.astype(np.float32)
    check(Scores(as_scores, lse=stored), as_scores.astype(np.float64), method, lse=stored.astype(np.float64))


def branch_of(values: SiteValues, monkeypatch: pytest.MonkeyPatch, method: Method) -> str:
    """Which way a head takes: unshifted, shifted or stabilised."""
    taken: list[str] = []
    shift_of_maxima, stabilised = softmaxes._shift_of_maxima, numpy_kernel.two_stabilised_softmaxes

    def shifted(*maxima: Any) -> float | None:
        taken.append("shifted")
        return shift_of_maxima(*maxima)

    def both(*arguments: Any) -> Any:
        taken.append("stabilised")
        return stabilised(*arguments)

    monkeypatch.setattr(softmaxes, "_shift_of_maxima", shifted)
    monkeypatch.setattr(softmaxes, "two_stabilised_softmaxes", both)
    heads, queries, keys = softmaxes._shape(values)
    assert heads == 1
    softmax_marginals(values, np.full(queries, 1 / queries), np.full(keys, 1 / keys), method=method)
    return taken[-1] if taken else "unshifted"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("low", "high", "branch"),
    [
        (-74, 74, "unshifted"),
        (20, 76, "shifted"),
        (-200, -120, "shifted"),
        (-130, 130, "stabilised"),
        (1e4, 1e4 + 90, "shifted"),
    ],
)
def test_each_branch_of_the_guard(
    monkeypatch: pytest.MonkeyPatch, method: Method, low: float, high: float, branch: str
) -> None:
    scores = np.random.default_rng(0).uniform(low, high, size=(1, 40, 20))
    scores[0, 0], scores[0, :, 0] = low, low
    scores[0, 5, 5] = high
    values = Scores(scores.astype(np.float32))
    check(values, values.scores.astype(np.float64), method)
    assert branch_of(values, monkeypatch, method) == branch


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_are_not_kept_are_made_again(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    monkeypatch.setattr(numpy_kernel, "KEPT_SCORES", 100)
    monkeypatch.setattr(numba_kernel, "KEPT_SCORES", 100)
    for spread in (1.5, 5.0):
        call = made(2, 700, 130, 8, spread=spread)
        check(Factors(call.query, call.key, 0.35), call.scores(0.35), method)


@pytest.mark.parametrize("method", METHODS)
def test_every_float16_is_decoded(method: Method) -> None:
    finite = np.arange(65536, dtype=np.uint16).view(np.float16)
    small = finite[np.isfinite(finite) & (np.abs(finite) <= 60)].reshape(1, -1)[:, : 2**15 - 1]
    scores = np.resize(small, (1, 300, 111)).astype(np.float16)
    check(Scores(scores), scores.astype(np.float64), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_key_hidden_from_every_query_gets_and_gives_nothing(method: Method) -> None:
    bias = np.zeros(6, np.float32)
    bias[2] = -np.inf
    call = made(1, 9, 6, 4, bias=bias)
    r2g, g2r = softmax_marginals(
        Factors(call.query, call.key, 0.5, bias), np.full(9, 1 / 9), np.array([0, 0, 1.0, 0, 0, 0]), method=method
    )
    assert np.all(r2g == 0)
    assert g2r[0, 2] == 0
    np.testing.assert_allclose(g2r.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stored_scores", [True, False])
def test_all_keys_hidden_gives_zero(method: Method, stored_scores: bool) -> None:
    call = made(1, 5, 3, 4)
    values: SiteValues = Factors(call.query, call.key, 0.5, np.full(3, -np.inf, np.float32))
    if stored_scores:
        values = Scores(np.full((1, 5, 3), -np.inf, np.float16))
    r2g, g2r = softmax_marginals(values, np.full(5, 0.2), np.full(3, 1 / 3), method=method)
    assert np.all(r2g == 0)
    assert np.all(g2r == 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_values_that_are_not_numbers_spoil_their_head_alone(method: Method, broken: float, spread: float) -> None:
    scores = (spread * np.random.default_rng(0).normal(size=(2, 12, 7))).astype(np.float32)
    scores[0, 3, 4] = broken
    r2g, g2r = softmax_marginals(Scores(scores), np.full(12, 1 / 12), np.full(7, 1 / 7), method=method)
    assert np.isnan(r2g[0]).any()
    assert np.isnan(g2r[0]).any()
    assert np.isfinite(r2g[1]).all()
    assert np.isfinite(g2r[1]).all()


def test_both_methods_agree() -> None:
    call = made(2, 333, 77, 16, dtype="float16")
    values = Factors(call.query, call.key, 0.25)
    compiled, plain = (softmax_marginals(values, weights(333), weights(77), method=method) for method in METHODS)
    for one, other in zip(compiled, plain, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=5e-6)


def test_float64_is_computed_in_float64() -> None:
    call = made(1, 20, 10, 8, dtype="float64")
    found = softmax_marginals(Factors(call.query, call.key, 0.3), weights(20), weights(10), method="numba")
    for one, true in zip(found, exact_marginals(call.scores(0.3), weights(20), weights(10)), strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, true, rtol=1e-13)


def test_a_workspace_is_used_again_and_changes_nothing() -> None:
    workspace = Workspace()
    room = workspace.array("work", 30, 9)
    assert workspace.array("work", 30, 9) is room
    for seed in range(3):
        call = made(2, 30, 9, 4, seed=seed, dtype="float16")
        values = Factors(call.query, call.key, 0.5)
        again = softmax_marginals(values, weights(30), weights(9), method="numba", workspace=workspace)
        fresh = softmax_marginals(values, weights(30), weights(9), method="numba")
        for one, other in zip(again, fresh, strict=True):
            np.testing.assert_array_equal(one, other)


def test_numpy_stands_in_where_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    call = made(1, 20, 10, 8)
    values = Factors(call.query, call.key, 0.3)
    expected = softmax_marginals(values, weights(20), weights(10), method="numpy")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    for one, other in zip(softmax_marginals(values, weights(20), weights(10)), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_environment_chooses_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    call = made(1, 20, 10, 8)
    values = Factors(call.query, call.key, 0.3)
    monkeypatch.setenv(softmaxes.METHOD_VARIABLE, "numpy")
    expected = softmax_marginals(values, weights(20), weights(10), method="numpy")
    np.testing.assert_array_equal(softmax_marginals(values, weights(20), weights(10))[0], expected[0])
    monkeypatch.setenv(softmaxes.METHOD_VARIABLE, "fortran")
    with pytest.raises(InputError, match="expected auto, numba or numpy, found 'fortran'"):
        softmax_marginals(values, weights(20), weights(10))


@pytest.mark.parametrize("stored_scores", [True, False])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_shares_of_keys_and_summed_softmax(stored_scores: bool, spread: float) -> None:
    bias = np.array([0, -np.inf, 0.5, 0, 0, -3], np.float32)
    call = made(3, 25, 6, 4, spread=spread, bias=bias)
    exact = call.scores(0.5)
    values: SiteValues = Factors(call.query, call.key, 0.5, bias)
    if stored_scores:
        values = Scores(exact.astype(np.float32))
        exact = values.scores.astype(np.float64)
    over_keys = softmax(exact, 2)
    np.testing.assert_allclose(key_shares(values, weights(6)), over_keys @ weights(6), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(summed_softmax_over_keys(values), over_keys.sum(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("known_sums", [True, False])
@pytest.mark.parametrize("stored_scores", [True, False])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_both_softmaxes_of_a_head_averaged_over_queries(known_sums: bool, stored_scores: bool, spread: float) -> None:
    bias = np.array([0, 0.5, -np.inf, 0, 0, -3], np.float32)
    call = made(3, 25, 6, 4, spread=spread, bias=bias)
    exact = call.scores(0.5)
    lse = (np.logaddexp.reduce(exact, axis=2) + 1).astype(np.float32) if known_sums else None
    values: SiteValues = Factors(call.query, call.key, 0.5, bias, lse)
    if stored_scores:
        values = Scores(exact.astype(np.float32), lse)
        exact = values.scores.astype(np.float64)
    pooling = np.random.default_rng(0).random((4, 25))
    over_keys = softmax(exact, 2) if lse is None else np.exp(exact - lse[..., None])
    for head in range(3):
        found = head_softmaxes(values, head, pooling, slice(1, 6))
        for one, true in zip(found, (over_keys, softmax(exact, 1)), strict=True):
            np.testing.assert_allclose(one, pooling @ true[head][:, 1:], rtol=3e-3, atol=1e-5)


def test_shares_with_a_known_log_sum_exp() -> None:
    call = made(2, 10, 5, 4)
    exact = call.scores(0.5)
    lse = (np.log(np.exp(exact).sum(axis=2)) + 1).astype(np.float32)
    shares = key_shares(Factors(call.query, call.key, 0.5, lse=lse), np.full(5, 0.2))
    np.testing.assert_allclose(shares, np.exp(exact - lse[..., None]).mean(axis=2), rtol=1e-5)
