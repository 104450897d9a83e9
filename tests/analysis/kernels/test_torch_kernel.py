"""The marginals computed by torch: those of float64 to 1e-5, on its CPU kernels and, where there is one, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from support.exact import Call, exact_marginals
from support.traces import make_trace, site_class

from attrace.analysis import marginals, open_trace, precompute
from attrace.analysis.kernels.softmaxes import require_device, softmax_marginals
from attrace.analysis.kernels.values import Factors, Scores, SiteValues
from attrace.schemas import InputError

torch = pytest.importorskip("torch", reason="a device is used through torch")

from attrace.analysis.kernels import torch_kernel  # noqa: E402

DEVICES = [
    "cpu-torch",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]

TOLERANCE = 1e-5


def weights(length: int, seed: int) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).random(length) + 1e-3
    shares: NDArray[np.float64] = values / values.sum()
    return shares


def made(spread: float, dtype: str, bias: NDArray[np.float32] | None, shape: tuple[int, int, int, int]) -> Call:
    heads, queries, keys, features = shape
    random = np.random.default_rng(queries)
    query = spread * random.normal(size=(heads, queries, features))
    key = spread * random.normal(size=(heads, keys, features))
    return Call(query.astype(dtype), key.astype(dtype), bias)


def check(values: SiteValues, scores: NDArray[np.float64], device: str, lse: Any = None) -> None:
    of_queries, of_keys = weights(scores.shape[1], 1), weights(scores.shape[2], 2)
    found = softmax_marginals(values, of_queries, of_keys, device=device)
    for one, true in zip(found, exact_marginals(scores, of_queries, of_keys, lse=lse), strict=True):
        np.testing.assert_allclose(one, true, rtol=0, atol=TOLERANCE * max(true.max(), 1e-30))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 200), st.integers(1, 90), st.integers(1, 20)),
    spread=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    stored_scores=st.booleans(),
    masked=st.sampled_from([None, -np.inf, -10000.0, -100.0, float(np.finfo(np.float32).min)]),
    block=st.sampled_from([64, 2**25]),
)
def test_marginals_are_those_of_float64(
    device: str,
    shape: tuple[int, int, int, int],
    spread: float,
    dtype: str,
    stored_scores: bool,
    masked: float | None,
    block: int,
) -> None:
    bias = None
    if masked is not None:
        random = np.random.default_rng(1)
        bias = np.where(random.random(shape[2]) < 0.4, masked, random.normal(size=shape[2])).astype(np.float32)
    call = made(spread, dtype, bias, shape)
    exact = call.scores(shape[3] ** -0.5)
    exact[exact < -1e30] = -np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_kernel, "BLOCK_SCORES", block)
        if not stored_scores:
            check(Factors(call.query, call.key, shape[3] ** -0.5, bias), exact, device)
            return
        stored = np.clip(exact, -6e4, 6e4).astype(dtype)
        stored[exact == -np.inf] = -np.inf
        check(Scores(stored), stored.astype(np.float64), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spread", [0.5, 3.0, 40.0])
def test_a_known_log_sum_exp_stands_in_for_the_sum_over_keys(device: str, spread: float) -> None:
    exact = made(spread, "float32", None, (2, 50, 30, 8)).scores(0.3)
    lse = (exact.max(axis=2) + np.log(3)).astype(np.float32)
    lse[0, 3] = np.inf  # every key of this query is elsewhere
    stored = exact.astype(np.float32)
    check(Scores(stored, lse), stored.astype(np.float64), device, lse=lse.astype(np.float64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_a_value_that_is_no_number_spoils_its_head_alone(device: str, spread: float) -> None:
    scores = (spread * np.random.default_rng(0).normal(size=(2, 12, 7))).astype(np.float32)
    scores[0, 3, 4] = np.nan
    r2g, g2r = softmax_marginals(Scores(scores), np.full(12, 1 / 12), np.full(7, 1 / 7), device=device)
    assert np.isnan(r2g[0]).any()
    assert np.isnan(g2r[0]).any()
    assert np.isfinite([*r2g[1], *g2r[1]]).all()


def test_a_program_that_allows_tf32_loses_no_precision() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        call = made(1.0, "float32", None, (1, 60, 20, 8))
        r2g, _ = softmax_marginals(
            Factors(call.query, call.key, 0.3), weights(60, 1), weights(20, 2), device="cpu-torch"
        )
    finally:
        torch.set_float32_matmul_precision(before)
    exact, _ = exact_marginals(call.scores(0.3), weights(60, 1), weights(20, 2))
    np.testing.assert_allclose(r2g, exact, rtol=1.2e-7)  # computed in float64, given in float32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    classes = (
        site_class(cls=True, group="reference/64x17h2d8", dtype="float16"),
        site_class("reference/64x6h3d8", key_grid=(2, 3), heads=3, layers=("mid",), encoding="scores"),
    )
    return make_trace(tmp_path / "run.zarr", classes, steps=12).path


@pytest.mark.parametrize("device", DEVICES)
def test_the_marginals_of_a_trace(path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = computed(marginals(open_trace(path)))
    calls = counted(monkeypatch)
    found = computed(marginals(open_trace(path), device=device))
    assert len(calls) == 3 * 12  # layers x steps
    assert found.keys() == expected.keys()
    for group, dataset in expected.items():
        for name in ("r2g", "g2r"):
            np.testing.assert_allclose(found[group][name], dataset[name], rtol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_they_are_kept(path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    kept = precompute(path, device=device)
    assert len(calls) == 3 * 12
    computed(marginals(kept, device=device))  # read, not computed again
    assert len(calls) == 3 * 12


def computed(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """The computed datasets by group."""
    return {node.path: node.to_dataset().compute() for node in tree.leaves}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices that torch's kernel is called for from now on."""
    calls: list[Any] = []
    whole = torch_kernel.torch_marginals

    def counting(*arguments: Any) -> Any:
        calls.append(arguments[-1])
        return whole(*arguments)

    monkeypatch.setattr(torch_kernel, "torch_marginals", counting)
    return calls


def test_a_device_that_is_not_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpu", "cpu", "cuda:x", "mps"):
        with pytest.raises(InputError, match=f"device='{name}': expected cuda, cuda:1 and so on, or cpu-torch"):
            marginals(open_trace(path), device=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_device("cuda")
    require_device("cuda:1")
    with pytest.raises(InputError, match="device='cuda:2': torch finds 2 CUDA devices here"):
        precompute(path, device="cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device='cuda': torch finds no CUDA device here"):
        precompute(path, device="cuda")
