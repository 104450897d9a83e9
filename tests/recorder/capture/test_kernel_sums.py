"""The log-sum-exp of torch's fused kernels: taken where it is right, and formed anew where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from support import transformers
from support.reading import read_array, read_manifest
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attrace.recorder import record
from attrace.recorder.capture import kernel_sums, scores
from attrace.recorder.capture.kernel_sums import KernelSums, TrustedSums
from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import Candidate
from attrace.recorder.labels import joint

SHAPE = (2, 3, 40, 16)
"""Row, head, token, feature."""


def projections(dtype: torch.dtype = torch.float32, mask: Tensor | None = None) -> Projections:
    random = torch.Generator().manual_seed(0)
    query, key = (2 * torch.randn(SHAPE, generator=random).to(dtype) for _ in range(2))
    return Projections(query, key, SHAPE[-1] ** -0.5, mask, is_self=True)


def attend(given: Projections) -> Tensor:
    return scaled_dot_product_attention(given.query, given.key, given.key, attn_mask=given.mask)


def site(name: str = "block") -> Candidate:
    return Candidate(name, nn.Identity(), nn.Identity(), nn.Identity(), heads=SHAPE[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-4), (torch.float16, 1e-4)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_tells_its_sums_and_attends_as_ever(dtype: torch.dtype, tolerance: float, masked: bool) -> None:
    hidden = torch.zeros(SHAPE[0], 1, 1, SHAPE[2]).index_fill_(3, torch.tensor([5, 17]), float("-inf"))
    given = projections(dtype, hidden.to(dtype) if masked else None)
    expected = attend(given)
    with KernelSums() as sums:
        assert torch.equal(attend(given), expected)
    scores = (given.query.double() @ given.key.double().mT).numpy() * given.scale
    if masked:
        scores += hidden.numpy()
    np.testing.assert_allclose(sums.lse, logsumexp(scores, axis=-1), rtol=1e-6, atol=tolerance)


def test_a_kernel_that_forms_none() -> None:
    given = projections()
    with sdpa_kernel(SDPBackend.MATH), KernelSums() as sums:
        attend(given)
    assert sums.lse is None
    assert TrustedSums().add(site(), given, sums.lse).kernel_lse is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda lse: lse / np.log(2),  # another base
        lambda lse: lse.mT.contiguous().reshape(lse.shape),  # another layout
        lambda lse: lse[..., :0],  # what a kernel returns that was not asked for them
    ],
)
def test_sums_that_are_not_what_they_are_taken_for_are_left(damage: Callable[[Tensor], Tensor]) -> None:
    given, trusted, one = projections(), TrustedSums(), site()
    right = scores.row_log_sum_exp(given)
    assert trusted.add(one, given, damage(right)).kernel_lse is None
    assert trusted.add(site("other"), given, right).kernel_lse is right


def test_values_are_looked_at_once_for_each_site(monkeypatch: pytest.MonkeyPatch) -> None:
    given, trusted, one = projections(), TrustedSums(), site()
    right = scores.row_log_sum_exp(given)
    assert trusted.add(one, given, right).kernel_lse is right
    monkeypatch.setattr(kernel_sums, "row_log_sum_exp", lambda _: pytest.fail("compared again"))
    assert trusted.add(one, given, right).kernel_lse is right


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_sums_are_formed_only_where_the_kernel_gives_none(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formed = []

    def form(given: Projections) -> Tensor:
        formed.append(given)
        return scores.row_log_sum_exp(given)

    monkeypatch.setattr(joint, "row_log_sum_exp", form)
    denoiser = transformers.flux_transformer()
    denoiser.set_attention_backend(backend)
    with torch.no_grad(), transformers.joint_calls(denoiser) as calls, record(denoiser, tmp_path / "run.zarr"):
        denoiser(**transformers.flux_call(4, 6))
    (one,) = read_manifest(tmp_path / "run.zarr").classes
    assert len(formed) == (len(one.sites) if backend == "_native_math" else 0)
    lse = read_array(tmp_path / "run.zarr", f"{one.group}/lse")
    for layer, found in enumerate(one.sites):
        (call,) = calls.by_path[found.path]
        np.testing.assert_allclose(lse[0, layer], logsumexp(call.scores()[:, 7:], axis=-1), atol=2e-6)
