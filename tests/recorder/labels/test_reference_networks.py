"""Self-attention that a reference network joins keys to: stand-in processors on diffusers' own U-Net."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from support import models
from support.reading import read_array, read_manifest
from torch import Tensor

from attrace.analysis import llam, open_trace
from attrace.recorder import MUTUAL_ATTENTION, REFERENCE_NETWORK, KeyContext, LabelWarning, Profile, record
from attrace.schemas import CaptureError


class JoinedProcessor:
    """Self-attention over the picture's own features and those of a reference, which a first network left here.

    `joins` says what is joined: the input of keys (as reference-only control does), the whole input, queries too
    (as IDM-VTON and Leffa do), the projected keys, or nothing; `"replaces"` takes the reference's keys alone.
    """

    def __init__(self, joins: str, references: int = 1, extra: int = 0) -> None:
        self.joins, self.references, self.extra = joins, references, extra
        self.calls: list[tuple[Tensor, Tensor, int]] = []

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        tokens = hidden_states.shape[1]
        reference = hidden_states.flip(1).repeat(1, self.references, 1) * 0.5
        reference = torch.cat([reference, reference[:, : self.extra]], 1)
        both = torch.cat([hidden_states, reference], 1)
        if self.joins == "whole":
            query, key, value = attn.to_q(both), attn.to_k(both), attn.to_v(both)
        elif self.joins == "input":
            query, key, value = attn.to_q(hidden_states), attn.to_k(both), attn.to_v(both)
        elif self.joins == "projected":
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(both)
            key = torch.cat([key, attn.to_k(reference)], 1)
        elif self.joins == "replaces":
            query, key, value = attn.to_q(hidden_states), attn.to_k(reference), attn.to_v(reference)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (query, key, value))
        self.calls.append((query.double(), key.double(), tokens))
        output = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[0](output[:, :tokens])
        return projected


def joined_unet(joins: str, **members: int) -> tuple[Any, dict[str, JoinedProcessor]]:
    unet = models.tiny_unet()
    added = {path: JoinedProcessor(joins, **members) for path in unet.attn_processors if "attn1" in path}
    unet.set_attn_processor(dict(unet.attn_processors) | added)
    return unet, {path.removesuffix(".processor"): processor for path, processor in added.items()}


def call(unet: Any) -> Tensor:
    random = models.noise()
    latents, text = torch.randn(1, 4, 8, 12, generator=random), torch.randn(1, 16, 32, generator=random)
    with torch.no_grad():
        output: Tensor = unet(latents, 5.0, encoder_hidden_states=text).sample
    return output


def references(path: Path) -> Iterator[tuple[Any, int, str]]:
    for one in read_manifest(path).classes:
        if one.context == "reference":
            yield from ((one, layer, site.path) for layer, site in enumerate(one.sites))


def scores_of(path: Path, one: Any, layer: int) -> NDArray[np.float64]:
    if one.encoding == "scores":
        return np.asarray(read_array(path, f"{one.group}/scores")[0, layer], np.float64)
    query, key = (
        read_array(path, f"{one.group}/{name}")[0, layer].astype(np.float64) for name in ("query_vector", "key_vector")
    )
    scores: NDArray[np.float64] = one.scale * query @ key.swapaxes(-1, -2)
    return scores


@pytest.mark.supports("Joined keys (IDM-VTON, Leffa)")
@pytest.mark.parametrize("joins", ["whole", "input", "projected"])
@pytest.mark.parametrize("number", [1, 2])
def test_joined_keys_are_the_reference(joins: str, number: int, tmp_path: Path) -> None:
    unet, processors = joined_unet(joins, references=number)
    expected = call(unet)
    for processor in processors.values():
        processor.calls.clear()
    with record(unet, tmp_path / "run.zarr", profile=REFERENCE_NETWORK):
        found = call(unet)
    assert torch.equal(found, expected)
    manifest = read_manifest(tmp_path / "run.zarr")
    assert {one.context for one in manifest.classes} == {"reference", "text"}
    assert manifest.capture["warnings"] == []
    sites = list(references(tmp_path / "run.zarr"))
    assert {path for *_, path in sites} == set(processors)
    for one, layer, path in sites:
        ((query, key, tokens),) = processors[path].calls
        whole = np.asarray(query[0, :, :tokens] @ key[0].transpose(-1, -2)) * one.scale
        part = whole[..., tokens:]
        assert one.query_grid is not None
        assert [segment.grid for segment in one.key_segments] == [one.query_grid] * number
        lse = read_array(tmp_path / "run.zarr", f"{one.group}/lse")[0, layer]
        np.testing.assert_allclose(lse, logsumexp(whole, axis=-1), atol=2e-6)
        scores = scores_of(tmp_path / "run.zarr", one, layer)
        np.testing.assert_allclose(scores, part, atol=1e-5)
        np.testing.assert_allclose(np.exp(scores - lse[..., None]), softmax(whole, -1)[..., tokens:], rtol=2e-5)
        np.testing.assert_allclose(softmax(scores, 1), softmax(part, 1), rtol=2e-5)
    if number == 1:
        reference = open_trace(tmp_path / "run.zarr").sel(context="reference")
        assert np.isfinite(llam(reference, direction="g2r").compute()).all()


def test_keys_of_another_number_are_a_guess(tmp_path: Path) -> None:
    unet, _ = joined_unet("input", extra=2)
    with (
        pytest.warns(LabelWarning, match=r"joined keys for no grid \(pass key_grid=\)"),
        record(unet, tmp_path / "run.zarr", profile=REFERENCE_NETWORK, layers="mid_block*attn1"),
    ):
        call(unet)
    ((one, _, _),) = references(tmp_path / "run.zarr")
    assert [(part.kind, part.grid) for part in one.key_segments] == [("patch", None)]


def test_where_nothing_is_joined_self_attention_is_left_out(tmp_path: Path) -> None:
    unet, _ = joined_unet("nothing")
    with record(unet, tmp_path / "run.zarr", profile=REFERENCE_NETWORK):
        call(unet)
    assert {one.context for one in read_manifest(tmp_path / "run.zarr").classes} == {"text"}


@pytest.mark.supports("Replaced keys (MasaCtrl)")
def test_keys_that_take_the_place_of_the_pictures_own(tmp_path: Path) -> None:
    unet, processors = joined_unet("replaces")
    with record(unet, tmp_path / "run.zarr", profile=MUTUAL_ATTENTION):
        call(unet)
    for one, layer, path in references(tmp_path / "run.zarr"):
        ((query, key, _),) = processors[path].calls
        assert not one.has_lse
        assert [segment.grid for segment in one.key_segments] == [one.query_grid]
        whole = np.asarray(query[0] @ key[0].transpose(-1, -2)) * one.scale
        np.testing.assert_allclose(scores_of(tmp_path / "run.zarr", one, layer), whole, atol=1e-5)


@pytest.mark.supports("Joined keys (IDM-VTON, Leffa)")
@pytest.mark.parametrize("context", ["reference", "text"])
def test_one_context_alone(context: Any, tmp_path: Path) -> None:
    unet, _ = joined_unet("whole")
    with record(unet, tmp_path / "run.zarr", profile=REFERENCE_NETWORK, context=context):
        call(unet)
    name = "attn1" if context == "reference" else "attn2"
    classes = read_manifest(tmp_path / "run.zarr").classes
    assert {one.context for one in classes} == {context}
    assert all(site.path.endswith(name) for one in classes for site in one.sites)


def test_hooks_are_refused(tmp_path: Path) -> None:
    unet, _ = joined_unet("projected")
    with pytest.raises(CaptureError, match="joins keys of several kinds"):
        record(unet, tmp_path / "run.zarr", profile=REFERENCE_NETWORK, capture="hooks")


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    profile = Profile("mine", (KeyContext("reference", "joined", layers="mid_block*attn1"), KeyContext("text", "text")))
    unet, _ = joined_unet("whole")
    with record(unet, tmp_path / "run.zarr", profile=profile, layers=["mid_block*attn1", "*attn2"]):
        call(unet)
    assert [path for *_, path in references(tmp_path / "run.zarr")] == [
        "mid_block.attentions.0.transformer_blocks.0.attn1"
    ]
