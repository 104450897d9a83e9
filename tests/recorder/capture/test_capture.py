"""The two capture methods on single modules: masks, scales, grouped heads, other people's attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from numpy.typing import NDArray
from support import models
from support.reading import read_array, read_manifest, read_scores
from torch import Tensor, nn

from attrace.recorder import record
from attrace.recorder.capture.methods import METHODS, choose_methods
from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import find_candidates
from attrace.schemas import CaptureError

HEADS, FEATURES, QUERIES, KEYS = 2, 4, 9, 5


class Denoiser(nn.Module):
    """One attention module, called once."""

    def __init__(self, attention: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.attention = attention
        self.arguments = arguments

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        output: Tensor = self.attention(hidden, context, **self.arguments)
        return output


def attention(**members: Any) -> Attention:
    torch.manual_seed(0)
    described = {"query_dim": 8, "cross_attention_dim": 6, "heads": HEADS, "dim_head": FEATURES}
    return Attention(**(described | members)).eval()


def inputs(rows: int = 1, keys: int = KEYS, channels: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(rows, QUERIES, 8, generator=random), torch.randn(rows, keys, channels, generator=random)


def capture(name: str, denoiser: nn.Module, *arguments: Any) -> dict[str, Projections]:
    """What one method sees in one call, by path."""
    candidates = find_candidates(denoiser)
    (method,) = (one for one in METHODS if one.name == name)
    seen: dict[str, Projections] = {}
    watching = method(lambda candidate, projections: seen.update({candidate.path: projections}), lambda: True)
    watching.attach(candidates)
    try:
        with torch.no_grad():
            denoiser(*arguments)
    finally:
        watching.detach()
    return seen


def probabilities(seen: Projections) -> NDArray[np.float64]:
    """The softmax over the keys, of what was captured."""
    scores = seen.scale * seen.query.double() @ seen.key.double().transpose(-1, -2)
    if seen.mask is not None and seen.mask.dtype == torch.bool:
        scores = scores.masked_fill(~seen.mask, -torch.inf)
    elif seen.mask is not None:
        scores = scores + seen.mask
    return np.asarray(scores.softmax(-1))


def true_probabilities(module: Attention, hidden: Tensor, context: Tensor, mask: Tensor | None) -> NDArray[np.float64]:
    """As diffusers' own eager code computes them: (row, head, query, key)."""
    module = module.double()
    query, key = (
        module.head_to_batch_dim(one) for one in (module.to_q(hidden.double()), module.to_k(context.double()))
    )
    if mask is not None:
        mask = module.prepare_attention_mask(mask.double(), context.shape[1], context.shape[0])
    with torch.no_grad():
        scores = module.get_attention_scores(query, key, mask)
    module.float()
    return np.asarray(scores.unflatten(0, (-1, HEADS)))


@pytest.mark.parametrize("method", ["hooks", "attention"])
@pytest.mark.parametrize(
    "shape", [None, (3, 1, KEYS), (3, QUERIES, KEYS), (3 * HEADS, 1, KEYS), (3 * HEADS, QUERIES, KEYS)]
)
def test_masks_of_every_shape(shape: tuple[int, ...] | None, method: str) -> None:
    mask = None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 3
    module, (hidden, context) = attention(), inputs(rows=3)
    (seen,) = capture(method, Denoiser(module, attention_mask=mask), hidden, context).values()
    assert (seen.mask is None) == (mask is None)
    truth = true_probabilities(module, hidden, context, mask)
    np.testing.assert_allclose(probabilities(seen), truth, atol=1e-6)


@pytest.mark.parametrize("method", ["hooks", "attention"])
def test_self_attention_is_told_by_identity_and_not_by_name(method: str) -> None:
    module = attention(cross_attention_dim=8)
    hidden = inputs()[0]
    for context, expected in ((None, True), (hidden, True), (hidden.clone(), False)):
        (seen,) = capture(method, Denoiser(module), hidden, context).values()
        assert seen.is_self is expected


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1)])
def test_hooks_see_what_no_kernel_of_torch_computes(processor: Any) -> None:
    module = attention(processor=processor)
    hidden, context = inputs()
    (seen,) = capture("hooks", Denoiser(module), hidden, context).values()
    np.testing.assert_allclose(probabilities(seen), true_probabilities(module, hidden, context, None), atol=1e-6)


def test_a_scale_that_only_the_eager_processor_uses() -> None:
    hidden, context = inputs()
    for processor, scale in ((AttnProcessor(), 1.0), (AttnProcessor2_0(), FEATURES**-0.5)):
        denoiser = Denoiser(attention(scale_qk=False, processor=processor))
        (seen,) = capture("hooks", denoiser, hidden, context).values()
        assert seen.scale == scale
    (seen,) = capture("attention", denoiser, hidden, context).values()
    assert seen.scale == FEATURES**-0.5


def test_query_key_norm_is_seen_by_interception_alone() -> None:
    module = attention(qk_norm="rms_norm")
    candidates = find_candidates(Denoiser(module))
    assert choose_methods(candidates, "auto") == {"attention": "attention"}
    with pytest.raises(CaptureError, match=r"not by 'hooks', because it normalises"):
        choose_methods(candidates, "hooks")
    hidden, context = inputs()
    (seen,) = capture("attention", Denoiser(module), hidden, context).values()
    query = module.norm_q(module.to_q(hidden).unflatten(-1, (HEADS, FEATURES)).transpose(1, 2))
    np.testing.assert_array_equal(seen.query, query.detach())


def test_rotary_embedding_is_refused_by_hooks() -> None:
    class Rotary(Attention):  # type: ignore[misc]
        def forward(self, hidden: Tensor, context: Tensor, image_rotary_emb: Tensor) -> Tensor:  # noqa: ARG002
            output: Tensor = super().forward(hidden, context)
            return output

    torch.manual_seed(0)
    module = Rotary(query_dim=8, cross_attention_dim=6, heads=HEADS, dim_head=FEATURES)
    with pytest.raises(CaptureError, match=r"image_rotary_emb.*capture='attention'"):
        capture("hooks", Denoiser(module, image_rotary_emb=torch.ones(1)), *inputs())


class Other(nn.Module):
    """Attention as the original latent diffusion code has it: projections, einsum, a boolean mask of keys."""

    def __init__(self, kernel: str, key_heads: int = HEADS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.kernel, self.key_heads = HEADS, kernel, key_heads
        self.to_q, self.to_k = nn.Linear(8, HEADS * FEATURES), nn.Linear(6, key_heads * FEATURES)

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        query = self.to_q(hidden).unflatten(-1, (-1, FEATURES)).transpose(1, 2)
        key = self.to_k(context).unflatten(-1, (-1, FEATURES)).transpose(1, 2)
        if self.kernel == "einsum":
            scores: Tensor = torch.einsum("bhqf,bhkf->bhqk", query, key) * FEATURES**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
            output: Tensor = scores.softmax(-1)
        elif self.kernel == "folded":
            output = F.scaled_dot_product_attention(query.flatten(0, 1), key.flatten(0, 1), key.flatten(0, 1))
        elif self.kernel == "causal":
            output = F.scaled_dot_product_attention(query=query, key=key, value=key, is_causal=True, scale=0.3)
        elif self.kernel == "grouped":
            output = F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
        else:
            output = F.scaled_dot_product_attention(F.scaled_dot_product_attention(query, key, key), key, key)
        return output


def test_einsum_attention_with_a_mask_of_keys() -> None:
    module, (hidden, context) = Other("einsum"), inputs(rows=2)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], dtype=torch.bool)
    (seen,) = capture("hooks", Denoiser(module, mask=mask), hidden, context).values()
    np.testing.assert_allclose(probabilities(seen), module(hidden, context, mask).detach(), atol=1e-6)


@pytest.mark.parametrize("kernel", ["folded", "grouped"])
def test_both_methods_agree_on_other_layouts(kernel: str) -> None:
    module, (hidden, context) = Other(kernel, key_heads=1 if kernel == "grouped" else HEADS), inputs(rows=2)
    (hooks,) = capture("hooks", Denoiser(module), hidden, context).values()
    (intercepted,) = capture("attention", Denoiser(module), hidden, context).values()
    assert hooks.query.shape == (2, HEADS, QUERIES, FEATURES)
    assert hooks.key.shape == (2, HEADS, KEYS, FEATURES)
    np.testing.assert_array_equal(hooks.query, intercepted.query)
    np.testing.assert_array_equal(hooks.key, intercepted.key)
    assert hooks.scale == intercepted.scale


def test_causal_attention_and_a_scale_by_keyword() -> None:
    (seen,) = capture("attention", Denoiser(Other("causal")), *inputs()).values()
    assert seen.scale == 0.3
    assert seen.mask is not None
    np.testing.assert_array_equal(seen.mask[0, 0], np.tril(np.ones((QUERIES, KEYS), bool)))


def test_a_second_attention_call_is_refused() -> None:
    with pytest.raises(CaptureError, match="more attention calls than are known"):
        capture("attention", Denoiser(Other("twice")), *inputs(keys=KEYS))


def ip_adapter(processor: Any) -> Attention:
    torch.manual_seed(3)
    adapters = processor(hidden_size=8, cross_attention_dim=6, num_tokens=(4, 17))
    return attention(processor=adapters)


@pytest.mark.parametrize("method", ["hooks", "attention"])
def test_each_ip_adapter_is_an_attention_call_of_its_own(method: str) -> None:
    module = ip_adapter(IPAdapterAttnProcessor2_0)
    hidden, text = inputs(rows=2)
    pictures = [torch.randn(2, 1, 4, 6), torch.randn(2, 2, 17, 6)]
    seen = capture(method, Denoiser(module), hidden, (text, pictures))
    paths = ["attention", "attention.processor.to_k_ip.0", "attention.processor.to_k_ip.1"]
    assert list(seen) == paths
    for path, context, adapter in zip(paths[1:], pictures, module.processor.to_k_ip, strict=True):
        key = adapter(context).flatten(1, 2).unflatten(-1, (HEADS, FEATURES)).transpose(1, 2)
        np.testing.assert_array_equal(seen[path].key, key.detach())
        np.testing.assert_array_equal(seen[path].query, seen["attention"].query)


def test_ip_adapters_are_recorded_beside_the_text(tmp_path: Path) -> None:
    unet = models.tiny_unet()
    processors = {
        name: IPAdapterAttnProcessor(hidden_size=32 if "mid" in name else 16, cross_attention_dim=32, num_tokens=(17,))
        if name.endswith("attn2.processor")
        else AttnProcessor2_0()
        for name in unet.attn_processors
    }
    unet.set_attn_processor(processors)
    text, picture = torch.randn(1, 16, 32), torch.randn(1, 1, 17, 32)

    def call() -> None:
        with torch.no_grad():
            unet(torch.randn(1, 4, 8, 8), 5.0, encoder_hidden_states=(text, [picture]))

    with record(unet, tmp_path / "run.zarr", context="text"):
        call()
    classes = read_manifest(tmp_path / "run.zarr").classes
    assert {one.context for one in classes} == {"text", "image-prompt"}
    for one in classes:
        if one.context == "image-prompt":
            assert [(part.kind, part.grid) for part in one.key_segments] == [("cls", None), ("patch", (4, 4))]
            assert all(site.path.endswith("attn2.processor.to_k_ip.0") for site in one.sites)

    for processor in unet.attn_processors.values():
        if isinstance(processor, IPAdapterAttnProcessor):
            processor.scale = [0.0]  # its call is then left out
    with record(unet, tmp_path / "off.zarr", context="text"):
        call()
    assert {one.context for one in read_manifest(tmp_path / "off.zarr").classes} == {"text"}


@pytest.mark.parametrize("encoding", ["auto", "scores", "factors"])
def test_a_mask_of_keys_is_stored_with_factors_and_applied_to_scores(encoding: Any, tmp_path: Path) -> None:
    module = attention()
    denoiser = Denoiser(module, attention_mask=torch.tensor([[[0.0, -2.0, -torch.inf, 1.0, 0.5]]]))
    hidden, context = inputs()
    with torch.no_grad(), record(denoiser, tmp_path / "run.zarr", context="text", encoding=encoding):
        denoiser(hidden, context)
    ((_, scores),) = read_scores(tmp_path / "run.zarr").items()
    truth = true_probabilities(module, hidden, context, denoiser.arguments["attention_mask"])
    found = np.exp(scores[0] - scores[0].max(-1, keepdims=True))
    np.testing.assert_allclose(found / found.sum(-1, keepdims=True), truth[0], atol=1e-6)
    (one,) = read_manifest(tmp_path / "run.zarr").classes
    assert one.has_bias == (one.encoding == "factors")
    if one.has_bias:
        bias = read_array(tmp_path / "run.zarr", f"{one.group}/bias")
        np.testing.assert_array_equal(bias[0, 0], [0, -2, -np.inf, 1, 0.5])


def test_a_mask_of_infinity_is_told_and_the_same_in_both_encodings(tmp_path: Path) -> None:
    denoiser = Denoiser(attention(), attention_mask=torch.tensor([[[0.0, -2.0, torch.inf, 1.0, 0.5]]]))
    found: dict[Any, NDArray[np.float64]] = {}
    encodings: tuple[Any, Any] = ("scores", "factors")
    for encoding in encodings:
        path = tmp_path / f"{encoding}.zarr"
        with torch.no_grad(), record(denoiser, path, context="text", encoding=encoding):
            denoiser(*inputs())
        assert "attention: values that are not finite, first in step 0" in str(read_manifest(path).capture["warnings"])
        (found[encoding],) = read_scores(path).values()
    np.testing.assert_allclose(found["scores"], found["factors"], rtol=1e-6)
    assert np.isposinf(found["scores"][0, ..., 2]).all()


def test_a_mask_that_depends_on_the_query_takes_scores(tmp_path: Path) -> None:
    mask = torch.zeros(1, QUERIES, KEYS)
    mask[0, 3, 1] = -torch.inf
    denoiser = Denoiser(attention(), attention_mask=mask)
    with torch.no_grad(), record(denoiser, tmp_path / "run.zarr", context="text"):
        denoiser(*inputs())
    ((_, scores),) = read_scores(tmp_path / "run.zarr").items()
    assert np.argwhere(np.isneginf(scores[0, 0])).tolist() == [[3, 1]]
    with (
        pytest.raises(CaptureError, match="depends on the query"),
        record(denoiser, tmp_path / "factors.zarr", context="text", encoding="factors"),
    ):
        denoiser(*inputs())
