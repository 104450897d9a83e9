"""Hooks are trusted where the module's own attention call was seen to use what they saw; all else is said."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0, SlicedAttnProcessor
from support import models
from support.reading import read_manifest, read_scores
from torch import Tensor, nn

from attrace.recorder import Recording, record
from attrace.schemas import CaptureError

MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn2"
OWN = "self-attention of the picture (self_attention=True records it)"


def call(unet: Any, text: Any = None) -> None:
    random = models.noise()
    text = torch.randn(1, 16, 32, generator=random) if text is None else text
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8, generator=random), 5.0, encoder_hidden_states=text)


def recorded(unet: Any, path: Path, **arguments: Any) -> Recording:
    given: dict[str, Any] = {"context": "text", "strict": True} | arguments
    with record(unet, path, **given) as recording:
        call(unet)
    return recording


def with_processor(processor: Any) -> Any:
    unet = models.tiny_unet()
    unet.get_submodule(MIDDLE).set_processor(processor)
    return unet


class Editing:
    """Attends with other keys than it projects, as the editors of MasaCtrl do, or edits its probabilities after."""

    def __init__(self, edits: str, kernel: str) -> None:
        self.edits, self.kernel = edits, kernel
        self.key = torch.empty(0)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (query, key, value))
        if self.edits == "keys":
            key = self.key = key.flip(2)
        if self.kernel == "torch":
            output = F.scaled_dot_product_attention(query, key, value)
        else:
            shares = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
            if self.edits == "probabilities":
                shares = shares.flip(-1)
            output = shares @ value
        projected: Tensor = attn.to_out[0](output.transpose(1, 2).flatten(2))
        return projected


class TestWhatHooksSaw:
    def test_keys_that_are_edited_are_recorded_as_they_were_used(self, tmp_path: Path) -> None:
        processor = Editing("keys", "torch")
        unet = with_processor(processor)
        recorded(unet, tmp_path / "run.zarr", layers=MIDDLE, encoding="scores")
        module = unet.get_submodule(MIDDLE)
        ((_, scores),) = read_scores(tmp_path / "run.zarr").items()
        assert read_manifest(tmp_path / "run.zarr").capture["method"] == "attention"
        queries: list[Tensor] = []
        handle = module.to_q.register_forward_hook(lambda _module, _args, output: queries.append(output))
        call(unet)
        handle.remove()
        query = queries[0].unflatten(-1, (module.heads, -1)).transpose(1, 2)
        np.testing.assert_allclose(scores[0], (query @ processor.key.transpose(-1, -2) * module.scale)[0], atol=1e-5)

    def test_hooks_that_were_asked_for_are_refused_where_they_see_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match=rf"{MIDDLE} attends with other queries or keys.*capture='auto'"):
            recorded(with_processor(Editing("keys", "torch")), tmp_path / "run.zarr", capture="hooks")

    def test_edits_before_a_softmax_of_its_own_are_refused(self, tmp_path: Path) -> None:
        unet = with_processor(Editing("keys", "eager"))
        with pytest.raises(CaptureError, match=rf"{MIDDLE} was not seen to use.*capture='hooks'"):
            recorded(unet, tmp_path / "run.zarr")
        recorded(unet, tmp_path / "hooks.zarr", capture="hooks")
        assert f"{MIDDLE} was not seen to use" in str(read_manifest(tmp_path / "hooks.zarr").capture["warnings"])

    def test_edits_after_the_softmax_are_noted(self, tmp_path: Path) -> None:
        recorded(with_processor(Editing("probabilities", "eager")), tmp_path / "run.zarr")
        manifest = read_manifest(tmp_path / "run.zarr")
        assert manifest.capture["method"] == "attention+hooks"
        assert f"{MIDDLE} edits its probabilities after the softmax" in str(manifest.capture["warnings"])

    @pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1), Editing("nothing", "eager")])
    def test_eager_attention_that_edits_nothing_is_confirmed(self, processor: Any, tmp_path: Path) -> None:
        recorded(with_processor(processor), tmp_path / "run.zarr")
        assert read_manifest(tmp_path / "run.zarr").capture["warnings"] == []


@pytest.mark.parametrize("flips", [False, True])
def test_a_call_of_xformers_confirms_hooks(flips: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library, which needs a GPU: (row, token, head, feature), as it takes them."""

    def compute(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None, **_: Any) -> Tensor:  # noqa: ARG001
        shares = torch.einsum("bqhf,bkhf->bhqk", query, key).div(query.shape[-1] ** 0.5).exp()
        return torch.einsum("bhqk,bkhf->bqhf", shares / shares.sum(-1, keepdim=True), value)

    ops = SimpleNamespace(memory_efficient_attention=compute)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)

    def attend(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (one.unflatten(-1, (attn.heads, -1)) for one in (query, key, value))
        output = ops.memory_efficient_attention(query, key.flip(1) if flips else key, value)
        projected: Tensor = attn.to_out[0](output.flatten(2))
        return projected

    unet = with_processor(attend)
    if flips:
        with pytest.raises(CaptureError, match="was not seen to use"):
            recorded(unet, tmp_path / "run.zarr")
    else:
        recorded(unet, tmp_path / "run.zarr")
    assert ops.memory_efficient_attention is compute


class OneAdapter(nn.Module):
    """As the first IP-Adapter code has it: one projection, and picture tokens that end the text."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = nn.Linear(32, width, bias=False), nn.Linear(32, width, bias=False)
        self.tokens = tokens

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        text, picture = encoder_hidden_states[:, : -self.tokens], encoder_hidden_states[:, -self.tokens :]

        def split(projected: Tensor) -> Tensor:
            heads: Tensor = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return heads

        query = split(attn.to_q(hidden_states))
        output = F.scaled_dot_product_attention(query, split(attn.to_k(text)), split(attn.to_v(text)))
        output = output + F.scaled_dot_product_attention(
            query, split(self.to_k_ip(picture)), split(self.to_v_ip(picture))
        )
        projected: Tensor = attn.to_out[0](output.transpose(1, 2).flatten(2))
        return projected


@pytest.mark.parametrize("capture", ["auto", "hooks", "attention"])
def test_an_adapter_of_one_projection_is_recorded(capture: Any, tmp_path: Path) -> None:
    unet = with_processor(OneAdapter(32, tokens=4))
    recorded(unet, tmp_path / "run.zarr", capture=capture, layers="mid_block*attn2*")
    classes = {one.context: one for one in read_manifest(tmp_path / "run.zarr").classes}
    assert {context: one.keys for context, one in classes.items()} == {"text": 12, "image-prompt": 4}
    assert [site.path for site in classes["image-prompt"].sites] == [f"{MIDDLE}.processor.to_k_ip"]


@pytest.mark.parametrize("capture", ["auto", "attention"])
def test_an_adapter_that_is_switched_off_is_not_taken_for_the_next(capture: Any, tmp_path: Path) -> None:
    unet = models.tiny_unet()
    for path, module in unet.named_modules():
        if path.endswith("attn2"):
            width = module.to_q.out_features
            module.set_processor(IPAdapterAttnProcessor2_0(width, 32, num_tokens=(4, 9), scale=[0.0, 1.0]))
    pictures = [torch.randn(1, 1, tokens, 32) for tokens in (4, 9)]
    with record(unet, tmp_path / "run.zarr", context="text", capture=capture, layers=f"{MIDDLE}*") as recording:
        for _ in range(2):
            call(unet, (torch.randn(1, 16, 32), pictures))
    sites = {site.path: one.keys for one in read_manifest(tmp_path / "run.zarr").classes for site in one.sites}
    assert sites == {MIDDLE: 16, f"{MIDDLE}.processor.to_k_ip.1": 9}
    left_out = recording.statistics.left_out["not called in the first recorded step"]
    assert left_out == (f"{MIDDLE}.processor.to_k_ip.0",)


class TestLeftOut:
    def test_every_attention_call_is_recorded_or_listed(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        recording = recorded(unet, tmp_path / "run.zarr", layers=["up_blocks*"])
        left_out = recording.statistics.left_out
        assert {reason: len(paths) for reason, paths in left_out.items()} == {OWN: 2, "layers= did not choose it": 4}
        manifest = read_manifest(tmp_path / "run.zarr")
        assert manifest.capture["left_out"] == {reason: list(paths) for reason, paths in left_out.items()}
        sites = {site.path for one in manifest.classes for site in one.sites}
        modules = {path for path, module in unet.named_modules() if hasattr(module, "to_q")}
        assert sites | {path for paths in left_out.values() for path in paths} == modules

    def test_attention_of_an_unknown_module_is_listed_and_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Pooling(nn.Module):
            def forward(self, hidden: Tensor) -> Tensor:
                tokens = hidden.flatten(2).transpose(1, 2)
                return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(hidden.shape)

        unet = models.tiny_unet()
        unet.conv_in = nn.Sequential(unet.conv_in, Pooling())
        recording = recorded(unet, tmp_path / "run.zarr")
        assert recording.statistics.left_out["no to_q and to_k: what its keys are is not known"] == ("conv_in.1",)
        assert "conv_in.1: attention of 64 queries to 64 keys is not recorded" in caplog.text
