"""Attention is taken away as hooks of our own take it away, in every family, and the model is left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from numpy.typing import NDArray
from support import transformers
from support.adapters import add_ip_adapter
from support.models import box_mask, demo, noise, picture, stable_diffusion
from torch import Tensor, nn

import attrace
from attrace.recorder.jobs import effects as effects_module
from attrace.recorder.jobs.ablation import Ablation, surveyed
from attrace.recorder.jobs.pipelines import generate
from attrace.recorder.labels.target import find_target
from attrace.schemas import CaptureError, InputError

Picture = NDArray[np.uint8]

INPUTS: dict[str, Any] = {
    "image": picture(seed=0),
    "mask_image": box_mask(),
    "reference_image": picture(seed=1),
    "num_inference_steps": 3,
}
MASK = np.asarray(box_mask(64, 64)) > 127


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return demo()


def made(pipeline: Any, **others: Any) -> Picture:
    return np.asarray(pipeline(**INPUTS | others, generator=noise(3)).images[0])


@contextmanager
def given_to_output(module: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what the output projection of a module is given: (row, query, head * feature)."""
    projection: Any = module.to_out
    handle = projection[0].register_forward_pre_hook(lambda _, args: (edit(args[0].clone()),))
    try:
        yield
    finally:
        handle.remove()


def difference(found: Picture, before: Picture) -> dict[tuple[str, str], float]:
    """Mean changes by measure and region."""
    pixels = np.abs(found.astype(float) - before) / 255
    return {
        (measure, region): float((pixels**power)[inside].mean())
        for measure, power in (("absolute", 1), ("squared", 2))
        for region, inside in (("whole", np.ones(MASK.shape, bool)), ("inside", MASK))
    }


def zeros(tensor: Tensor) -> Tensor:
    return tensor * 0


def mean(tensor: Tensor) -> Tensor:
    return tensor.mean(dim=1, keepdim=True).expand_as(tensor)


@pytest.mark.parametrize(("baseline", "edit"), [("zero", zeros), ("mean", mean)])
def test_the_effect_of_a_layer_is_that_of_a_hook(pipeline: Any, baseline: Any, edit: Any) -> None:
    changes = attrace.ablate(pipeline, INPUTS, seeds=3, masks=MASK, baseline=baseline)
    before = made(pipeline)
    assert changes["layer"].size == 7
    for layer in changes["layer"].values.tolist():
        with given_to_output(pipeline.denoiser.get_submodule(layer), edit):
            expected = difference(made(pipeline), before)
        for (measure, region), value in expected.items():
            assert float(changes[measure].sel(input="0", region=region, layer=layer)) == pytest.approx(value, abs=1e-12)
    assert (changes["absolute"].sel(region="inside") > 0).all()
    assert changes.attrs == {"context": "reference", "baseline": baseline, "pipeline": "ReferenceInpaintPipeline"}
    np.testing.assert_array_equal(made(pipeline), before)


def test_the_effect_of_a_head_is_that_of_a_hook(pipeline: Any) -> None:
    changes = attrace.ablate(pipeline, INPUTS, seeds=3, layers="mid_block.*", heads=True)
    assert dict(changes.sizes) == {"input": 1, "region": 2, "layer": 1, "head": 2}
    assert changes["absolute"].sel(region="inside").isnull().all()  # there is no mask
    module = pipeline.denoiser.get_submodule(changes["layer"].item())
    width, before = module.to_out[0].in_features // 2, made(pipeline)
    for head in (0, 1):

        def edit(tensor: Tensor, first: int = head * width) -> Tensor:
            tensor[..., first : first + width] = 0
            return tensor

        with given_to_output(module, edit):
            expected = difference(made(pipeline), before)
        found = changes["squared"].sel(region="whole", head=head).item()
        assert found == pytest.approx(expected["squared", "whole"], abs=1e-12)


def test_several_inputs_are_measured_each_with_its_noise_and_mask(pipeline: Any) -> None:
    other = INPUTS | {"reference_image": picture(seed=5)}
    both = attrace.ablate(
        pipeline, [INPUTS, other], seeds=[3, 4], masks=[MASK, None], layers="mid_block.*", names=["one", "two"]
    )
    assert both["input"].values.tolist() == ["one", "two"]
    for name, inputs, seed, mask in (("one", INPUTS, 3, MASK), ("two", other, 4, None)):
        alone = attrace.ablate(pipeline, inputs, seeds=seed, masks=mask, layers="mid_block.*").isel(input=0, drop=True)
        assert both.sel(input=name, drop=True).identical(alone)


class Runs:
    """Counts the pictures that are made, and stops before one too many."""

    def __init__(self, patch: pytest.MonkeyPatch, most: int | None = None) -> None:
        self.count, self._most = 0, most
        patch.setattr(effects_module, "generate", self._counted)

    def _counted(self, *arguments: Any) -> Any:
        if self.count == self._most:
            raise KeyboardInterrupt
        self.count += 1
        return generate(*arguments)


def test_a_measurement_that_was_stopped_goes_on(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, told = tmp_path / "runs.jsonl", list[tuple[int, int]]()
    layers = ["down*", "mid*"]
    Runs(monkeypatch, most=3)
    with pytest.raises(KeyboardInterrupt):
        attrace.ablate(pipeline, INPUTS, seeds=3, layers=layers, kept=kept)
    again = Runs(monkeypatch)
    progress: Any = lambda *one: told.append(one)  # noqa: E731
    found = attrace.ablate(pipeline, INPUTS, seeds=3, layers=layers, kept=kept, progress=progress)
    assert again.count == 2  # the picture with all attention, and the layer that was left
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.identical(attrace.ablate(pipeline, INPUTS, seeds=3, layers=layers))
    attrace.ablate(pipeline, INPUTS, seeds=4, layers=layers, kept=kept)
    assert again.count == 10  # nothing of another seed was kept


def test_a_model_that_fails_is_left_as_it_was_found(pipeline: Any) -> None:
    before = made(pipeline)
    modules = list(pipeline.denoiser.modules())
    target = find_target(pipeline, None, None, None)
    with surveyed(target, None, None) as survey:
        made(pipeline)
    site = survey.sites(None)[0]
    handle = site.candidate.module.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="on purpose"), Ablation(target, site, key_grid=None):
        made(pipeline)
    handle.remove()
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in modules)
    np.testing.assert_array_equal(made(pipeline), before)


def fails(*_: Any) -> None:
    raise RuntimeError("on purpose")


def test_a_layer_that_is_never_called_is_told(pipeline: Any) -> None:
    target = find_target(pipeline, None, None, None)
    with surveyed(target, None, None) as survey:
        made(pipeline)
    site = survey.sites(None)[0]
    with pytest.raises(CaptureError, match="was not seen"), Ablation(target, site, key_grid=None):
        pass
    with pytest.raises(InputError, match="has heads 0 to 1"):
        Ablation(target, site, head=2, key_grid=None)


def test_processors_that_call_no_kernel_are_reached_too(pipeline: Any) -> None:
    fused = attrace.ablate(pipeline, INPUTS, seeds=3, heads=True)
    eager = demo()
    eager.denoiser.set_attn_processor(AttnProcessor())
    found = attrace.ablate(eager, INPUTS, seeds=3, heads=True)
    np.testing.assert_allclose(found["absolute"], fused["absolute"], atol=2e-4)


PROMPTED: dict[str, Any] = {"prompt": "a cat", "height": 32, "width": 32, "num_inference_steps": 2}


class TestStableDiffusion:
    def test_text_is_taken_away_from_both_branches_of_guidance(self) -> None:
        pipeline = stable_diffusion()
        changes = attrace.ablate(pipeline, PROMPTED, layers="mid_block.*attn2", baseline="zero")
        assert changes.attrs["context"] == "text"
        layer = changes["layer"].item()
        before = np.asarray(pipeline(**PROMPTED, generator=noise()).images[0])
        with given_to_output(pipeline.unet.get_submodule(layer), zeros):
            found = np.asarray(pipeline(**PROMPTED, generator=noise()).images[0])
        expected = float(np.abs(found.astype(float) - before).mean() / 255)
        assert changes["absolute"].sel(region="whole").item() == pytest.approx(expected, abs=1e-12)
        with pytest.raises(InputError, match="the attention of the model is to text"):
            attrace.ablate(pipeline, PROMPTED, layers="mid_block.*attn2", context="reference")

    def test_an_adapter_is_taken_away_alone(self) -> None:
        pipeline = stable_diffusion()
        embeddings = add_ip_adapter(pipeline.unet, 4)
        inputs = PROMPTED | {"ip_adapter_image_embeds": [embeddings]}
        changes = attrace.ablate(pipeline, inputs)
        assert changes.attrs["context"] == "image-prompt"
        before = np.asarray(pipeline(**inputs, generator=noise()).images[0])
        for layer in changes["layer"].values.tolist():
            processor = pipeline.unet.get_submodule(layer.partition(".to_k_ip")[0])
            processor.scale = [0.0]
            without = np.asarray(pipeline(**inputs, generator=noise()).images[0])
            processor.scale = [1.0]
            expected = float(np.abs(without.astype(float) - before).mean() / 255)
            found = changes["absolute"].sel(region="whole", layer=layer).item()
            assert found == pytest.approx(expected, abs=1e-4)

    def test_an_adapter_without_a_kernel_is_refused(self) -> None:
        pipeline = stable_diffusion()
        embeddings = add_ip_adapter(pipeline.unet, 4)
        for module in pipeline.unet.modules():
            if len(getattr(getattr(module, "processor", None), "to_k_ip", ())) > 0:
                module.processor.__class__ = IPAdapterAttnProcessor
        inputs = PROMPTED | {"ip_adapter_image_embeds": [embeddings]}
        with pytest.raises(CaptureError, match="choose a processor that calls scaled_dot_product_attention"):
            attrace.ablate(pipeline, inputs, layers="mid_block.*to_k_ip.*")


@contextmanager
def hidden_by_mask(
    monkeypatch: pytest.MonkeyPatch, number: int, calls: int, queries: slice, keys: slice, head: int | None
) -> Iterator[None]:
    """Hide keys from queries by a mask, in one of the attention calls that every call of the denoiser makes."""
    attend, count = F.scaled_dot_product_attention, 0

    def masked(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal count
        if query.shape[2] != keys.stop:  # of a text encoder or an autoencoder
            return attend(query, key, value, attn_mask, *args, **kwargs)
        count += 1
        if (count - 1) % calls == number:
            attn_mask = torch.zeros(1, query.shape[1], query.shape[2], key.shape[2], dtype=query.dtype)
            heads = slice(None) if head is None else slice(head, head + 1)
            attn_mask[:, heads, queries, keys] = -torch.inf
        return attend(query, key, value, attn_mask, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
        yield
    assert count > 0


KONTEXT: dict[str, Any] = {
    "image": picture(40, 24, seed=2),
    "prompt": "a cat",
    "height": 32,
    "width": 48,
    "num_inference_steps": 2,
    "max_sequence_length": transformers.TEXT_TOKENS,
    "_auto_resize": False,
    "max_area": 32 * 48,
}


@pytest.fixture(scope="module")
def kontext() -> Any:
    return transformers.flux_kontext()


def edited(kontext: Any) -> Picture:
    return np.asarray(kontext(**KONTEXT, generator=noise()).images[0])


@pytest.mark.parametrize("head", [None, 1])
def test_keys_of_a_reference_in_joint_attention_are_hidden_from_the_picture(
    kontext: Any, monkeypatch: pytest.MonkeyPatch, head: int | None
) -> None:
    changes = attrace.ablate(kontext, KONTEXT, heads=head is not None)
    assert changes.attrs["context"] == "reference"
    before, text = edited(kontext), transformers.TEXT_TOKENS
    queries, keys = slice(text, text + 24), slice(text + 24, text + 24 + 15)
    for number, layer in enumerate(changes["layer"].values.tolist()):
        with hidden_by_mask(monkeypatch, number, changes["layer"].size, queries, keys, head):
            found = edited(kontext)
        expected = float(np.abs(found.astype(float) - before).mean() / 255)
        one = changes["absolute"].sel(region="whole", layer=layer)
        assert (one if head is None else one.sel(head=head)).item() == pytest.approx(expected, abs=1e-5)
        assert expected > 0
    np.testing.assert_array_equal(edited(kontext), before)


def test_there_is_no_mean_of_a_part_of_the_keys(kontext: Any) -> None:
    with pytest.raises(InputError, match="attends to the reference and to other keys in one"):
        attrace.ablate(kontext, KONTEXT, baseline="mean")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"masks": [MASK]}, "row, column"),
        ({"masks": np.zeros((32, 32))}, "selects something"),
        ({"baseline": "median"}, "expected 'zero' or 'mean'"),
        ({"layers": "side.*"}, "no attention module matches"),
        ({"context": "text"}, "the attention of the model is to reference"),
        ({"seeds": [1, 2]}, "a seed, a mask and a name for each input"),
    ],
)
def test_what_cannot_be_measured_is_told(pipeline: Any, options: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        attrace.ablate(pipeline, INPUTS, **options)
