"""Values and output projections: what a recording with them holds, what it leaves out, and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from support import models, transformers
from support.reading import read_array, read_class_scores, read_manifest
from torch import nn

from attrace.analysis.integrity.verify import verify
from attrace.recorder import record
from attrace.schemas import SiteClass


def run(pipeline: Any) -> NDArray[Any]:
    given = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "np"}
    return np.asarray(pipeline("a cat", generator=models.noise(), **given).images)


def call(unet: nn.Module, contexts: torch.Tensor) -> torch.Tensor:
    """A call of a U-Net for each context."""
    random, sample = models.noise(), torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        for step, context in enumerate(contexts):
            sample = unet(torch.randn(1, 4, 8, 8, generator=random), 9 - step, encoder_hidden_states=context[None])[0]
    return sample


def outputs_of(denoiser: nn.Module) -> dict[str, list[NDArray[np.float64]]]:
    """What each module with `to_k` gives in every call, (row, query, channel), without its projection's bias."""
    found: dict[str, list[NDArray[np.float64]]] = {}

    def note(path: str, module: Any) -> Any:
        def hook(_module: Any, _args: Any, result: torch.Tensor) -> None:
            found.setdefault(path, []).append((result - module.to_out[0].bias).detach().double().numpy())

        return hook

    for path, module in denoiser.named_modules():
        if hasattr(module, "to_k"):
            module.register_forward_hook(note(path, module))
    return found


def values_in_every_step(path: Path, one: SiteClass, layer: int) -> NDArray[np.float64]:
    """The values of a site: (time, head, key, feature)."""
    steps = read_array(path, f"{one.group}/key_step")[: read_manifest(path).steps, layer]
    return np.asarray(read_array(path, f"{one.group}/value_vector")[steps, layer], np.float64)


@pytest.mark.parametrize("encoding", ["factors", "scores"])
def test_values_and_weights_give_what_the_layer_gave(encoding: Any, tmp_path: Path) -> None:
    pipeline, path = models.stable_diffusion(), tmp_path / "run.zarr"
    expected = run(pipeline)
    given = outputs_of(pipeline.unet)
    with record(pipeline, path, encoding=encoding, values=True) as recording:
        found = run(pipeline)
    np.testing.assert_array_equal(found, expected)  # the picture is the same, bit for bit
    manifest = read_manifest(path)
    assert {one.encoding for one in manifest.classes} == {encoding}
    for one in manifest.classes:
        weights = read_array(path, f"{one.group}/output").astype(np.float64)
        assert weights.shape == (len(one.sites), one.heads, one.features, one.channels)
        stored = read_array(path, f"{one.group}/key_step")
        np.testing.assert_array_equal(stored, 0)  # the text is the same in every step: its values are stored once
        for layer, site in enumerate(one.sites):
            over_keys = softmax(read_class_scores(path, one, layer), -1)
            sums = np.einsum("thqk,thkf->thqf", over_keys, values_in_every_step(path, one, layer))
            output = np.einsum("thqf,hfc->tqc", sums, weights[layer])
            truth = np.stack([rows[1] for rows in given[site.path]])  # the second row is the conditional one
            np.testing.assert_allclose(output, truth, atol=2e-6)
    assert verify(path).valid
    assert recording.statistics.bytes_written == recording.statistics.estimated_bytes + stored.itemsize * 3 * 4


def test_values_that_change_are_stored_in_every_step(tmp_path: Path) -> None:
    unet, path = models.tiny_unet(), tmp_path / "run.zarr"
    contexts = torch.randn(3, 16, 32, generator=models.noise(1))
    contexts[2] = contexts[1]
    with record(unet, path, context="text", encoding="factors", values=True):
        call(unet, contexts)
    modules = dict(unet.named_modules())
    for one in read_manifest(path).classes:
        for layer, site in enumerate(one.sites):
            assert read_array(path, f"{one.group}/key_step")[:, layer].tolist() == [0, 1, 1]
            with torch.no_grad():
                projected = modules[site.path].to_v(contexts).unflatten(-1, (one.heads, -1)).transpose(1, 2)
            np.testing.assert_allclose(values_in_every_step(path, one, layer), projected.numpy(), atol=1e-6)
    assert verify(path).valid


def test_values_that_alone_change_are_stored_anew(tmp_path: Path) -> None:
    unet, path = models.tiny_unet(), tmp_path / "run.zarr"
    contexts = torch.randn(1, 16, 32, generator=models.noise(1)).expand(2, -1, -1)
    with record(unet, path, context="text", encoding="factors", values=True):
        call(unet, contexts[:1])
        for path_of_module, module in unet.named_modules():
            if path_of_module.endswith("attn2.to_v"):
                nn.init.normal_(module.weight)
        call(unet, contexts[1:])
    for one in read_manifest(path).classes:
        np.testing.assert_array_equal(
            read_array(path, f"{one.group}/key_step"), [[0] * len(one.sites), [1] * len(one.sites)]
        )


def test_a_recording_without_values_has_none(tmp_path: Path) -> None:
    unet, path = models.tiny_unet(), tmp_path / "run.zarr"
    with record(unet, path, context="text"):
        call(unet, torch.zeros(1, 16, 32))
    assert all(one.channels is None for one in read_manifest(path).classes)
    assert not list(path.rglob("value_vector"))
    assert not list(path.rglob("output"))


def test_layers_whose_values_are_not_seen_are_named(tmp_path: Path) -> None:
    unet, path = models.tiny_unet(), tmp_path / "run.zarr"
    first, second, third = [module for name, module in unet.named_modules() if name.endswith("attn2")][:3]
    first.to_out = nn.Identity()
    second.to_out[0] = nn.Sequential(second.to_out[0])
    third.to_out[0] = nn.Linear(1, 1)
    first.processor = second.processor = third.processor = _NoOutput()
    with record(unet, path, context="text", values=True) as recording:
        call(unet, torch.zeros(2, 16, 32))
    left_out = recording.statistics.left_out
    assert len(left_out["values: no output projection (a Linear as to_out, or first in it) was found"]) == 2
    (reason,) = [one for one in left_out if one.startswith("values: expected an output projection with weights")]
    assert len(left_out[reason]) == 1
    by_path = {site.path: one.channels for one in read_manifest(path).classes for site in one.sites}
    assert sorted(channels is None for channels in by_path.values()) == [False, True, True, True]
    assert verify(path).valid


class _NoOutput:
    """Attends, and gives what attention adds up as it is."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        query, key, value = (
            projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, tokens in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("capture", ["auto", "hooks"])
@pytest.mark.parametrize("is_eager", [True, False])
def test_hooks_see_the_same_values(capture: Any, is_eager: bool, tmp_path: Path) -> None:
    unet, contexts = models.tiny_unet(), torch.randn(3, 16, 32, generator=models.noise(1))
    with record(unet, tmp_path / "call.zarr", context="text", values=True):
        call(unet, contexts)
    if is_eager:
        unet.set_attn_processor(_eager())
    with record(unet, tmp_path / "hooks.zarr", context="text", values=True, capture=capture, strict=True) as recording:
        call(unet, contexts)
    assert not [reason for reason in recording.statistics.left_out if reason.startswith("values")]
    for one in read_manifest(tmp_path / "call.zarr").classes:
        for layer in range(len(one.sites)):
            expected, found = (
                values_in_every_step(tmp_path / f"{name}.zarr", one, layer) for name in ("call", "hooks")
            )
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("capture", ["auto", "hooks"])
def test_values_that_are_edited_after_their_projection_are_not_those_of_hooks(capture: Any, tmp_path: Path) -> None:
    unet, path = models.tiny_unet(), tmp_path / "run.zarr"
    unet.set_attn_processor(_EditedValues())
    with record(unet, path, context="text", values=True, capture=capture, strict=True) as recording:
        call(unet, torch.randn(3, 16, 32, generator=models.noise(1)))
    assert read_manifest(path).steps == 3
    assert len(recording.statistics.left_out["values: they were not seen to be what attention adds up"]) == 4
    assert all(one.channels is None for one in read_manifest(path).classes)


class _EditedValues:
    """Attends by its own products, with values that are not those of the projection."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        shares = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        return attn.to_out[0]((shares @ value.flip(2)).transpose(1, 2).flatten(2))


def _eager() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


def test_a_single_key_has_no_values(tmp_path: Path) -> None:
    unet, path = models.tiny_unet(), tmp_path / "run.zarr"
    with record(unet, path, context="reference", values=True) as recording:
        call(unet, torch.zeros(1, 1, 32))
    assert len(recording.statistics.left_out["values: a single key gives every patch the same"]) == 4


def test_joint_attention_has_the_values_of_its_relation(tmp_path: Path) -> None:
    denoiser, path = transformers.flux_transformer(), tmp_path / "run.zarr"
    given = transformers.flux_call(4, 6)
    places = given["img_ids"]
    reference = torch.cat([torch.ones(6, 1), torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0))], dim=1)
    given["img_ids"] = torch.cat([places, reference])
    given["hidden_states"] = torch.cat([given["hidden_states"], torch.randn(1, 6, 16, generator=models.noise())], dim=1)
    with torch.no_grad(), transformers.joint_calls(denoiser) as calls, record(denoiser, path, values=True) as recording:
        denoiser(**given)
    with_values, without = sorted(read_manifest(path).classes, key=lambda one: one.channels is None)
    (site,) = with_values.sites
    (call,) = calls.by_path[site.path]
    np.testing.assert_allclose(values_in_every_step(path, with_values, 0)[0], call.value[0, :, -6:], atol=1e-6)
    weights = denoiser.get_submodule(site.path).to_out[0].weight.detach()
    np.testing.assert_array_equal(read_array(path, f"{with_values.group}/output")[0].reshape(32, 32), weights.T)
    assert [site.path for site in without.sites] == [f"single_transformer_blocks.{one}.attn" for one in (0, 1)]
    left_out = {reason: len(paths) for reason, paths in recording.statistics.left_out.items()}
    assert left_out == {
        "keys of text and self, which context= did not ask for": 3,
        "values: no output projection (a Linear as to_out, or first in it) was found": 2,
    }
    assert verify(path).valid
