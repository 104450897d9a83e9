"""Diffusers' pipelines with a U-Net: labels, grids, branches, scores, and the result unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from support import models
from support.adapters import add_ip_adapter
from support.reading import read_array, read_manifest, read_scores
from support.truth import check_recording, kinds

from attrace.analysis import open_trace, ulam
from attrace.recorder import LabelWarning, record
from attrace.recorder.labels.call import PipelineCall
from attrace.recorder.labels.keys import Tokens
from attrace.recorder.labels.profile import find_profile
from attrace.schemas import InputError

# diffusers makes NumPy arrays of torch tensors in a way that NumPy 2 will refuse one day
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BOTH_WAYS = pytest.mark.parametrize("capture", ["hooks", "attention"])
TEXT = [("text", 5, None), ("pad", 11, None)]


def call_of(pipeline: Any, **arguments: Any) -> Callable[[], Any]:
    given = {"num_inference_steps": 2, "output_type": "np"} | arguments
    return lambda: pipeline(generator=models.noise(), **given).images


def text_call(pipeline: Any, **arguments: Any) -> Callable[[], Any]:
    return call_of(pipeline, **({"prompt": "a cat", "height": 16, "width": 24} | arguments))


def check(pipeline: Any, call: Callable[[], Any], path: Path, **options: Any) -> dict[str, Any]:
    return check_recording(pipeline, pipeline.unet, call, path, branch="both", **options)


def warnings_of(path: Path) -> str:
    return str(read_manifest(path).capture["warnings"])


@pytest.mark.supports("Paint-by-Example, diffusers")
@BOTH_WAYS
def test_paint_by_example(capture: Any, tmp_path: Path) -> None:
    pipeline, path = models.paint_by_example(), tmp_path / "run.zarr"
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    call = call_of(
        pipeline, example_image=models.picture(seed=1), image=models.picture(), mask_image=models.box_mask(),
        height=32, width=32, num_inference_steps=3,
    )  # fmt: skip
    found = check(pipeline, call, path, capture=capture)
    assert all(one.context == "reference" and kinds(one) == [("cls", 1, None)] for one in found.values())
    manifest = read_manifest(path)
    assert manifest.guidance.branches == ("unconditional", "conditional")
    assert manifest.steps == 4
    timesteps = read_array(path, "timestep").tolist()
    assert timesteps[1] == timesteps[2]  # PLMS's extra call
    trace = open_trace(path).sel(branch="conditional")
    assert float(ulam(trace, direction="r2g").sum()) > 0
    with pytest.raises(InputError, match="one key"):
        ulam(trace, direction="g2r")


@BOTH_WAYS
@pytest.mark.parametrize(
    ("make", "sites"),
    [
        pytest.param(models.stable_diffusion, 4, marks=pytest.mark.supports("Stable Diffusion 1.5 (DAAM)"), id="sd"),
        pytest.param(models.stable_diffusion_2, 4, marks=pytest.mark.supports("Stable Diffusion 2 (DAAM)"), id="sd2"),
        pytest.param(models.stable_diffusion_xl, 5, marks=pytest.mark.supports("Stable Diffusion XL (DAAM)"), id="xl"),
    ],
)
def test_text(make: Any, sites: int, capture: Any, tmp_path: Path) -> None:
    pipeline, path = make(), tmp_path / "run.zarr"
    found = check(pipeline, text_call(pipeline, negative_prompt="a dog"), path, capture=capture)
    assert len(found) >= sites
    assert {one.context for one in found.values()} == {"text"}
    by_branch = {one.branch: one for one in read_manifest(path).classes}
    assert "".join(by_branch["conditional"].tokens or ()).startswith("<|startoftext|>a</w>cat</w>")
    assert "".join(by_branch["unconditional"].tokens or ()).startswith("<|startoftext|>a</w>dog</w>")


@BOTH_WAYS
@pytest.mark.parametrize("tokens", [4, 16, 257])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(models.stable_diffusion, marks=pytest.mark.supports("IP-Adapter, SD 1.5"), id="sd"),
        pytest.param(models.stable_diffusion_xl, marks=pytest.mark.supports("IP-Adapter, SDXL"), id="xl"),
    ],
)
def test_ip_adapter(make: Any, tokens: int, capture: Any, tmp_path: Path) -> None:
    pipeline, path = make(), tmp_path / "run.zarr"
    embeddings = add_ip_adapter(pipeline.unet, tokens)
    call = text_call(pipeline, ip_adapter_image_embeds=[embeddings])
    found = check(pipeline, call, path, capture=capture)
    adapter = {site: one for site, one in found.items() if site.endswith("to_k_ip.0")}
    text = {site: one for site, one in found.items() if site.endswith("attn2")}
    assert len(adapter) == len(text) > 0
    assert {one.context for one in text.values()} == {"text"}
    assert {one.context for one in adapter.values()} == {"image-prompt"}
    patches = [("cls", 1, None), ("patch", 256, (16, 16))]
    for one in adapter.values():
        assert kinds(one) == (patches if tokens == 257 else [("other", tokens, None)])
    resampler = {site: one for site, one in found.items() if site.startswith("encoder_hid_proj")}
    assert len(resampler) == (2 if tokens == 16 else 0)
    for one in resampler.values():
        assert (one.context, one.queries, one.query_grid) == ("image-prompt", 16, None)
        assert kinds(one) == [*patches, ("other", 16, None)]

    for module in pipeline.unet.attn_processors.values():
        if hasattr(module, "scale"):
            module.scale = [0.0]  # its call is then left out
    with record(pipeline, tmp_path / "off.zarr", capture=capture, layers="*transformer_blocks*"):
        call()
    assert {one.context for one in read_manifest(tmp_path / "off.zarr").classes} == {"text"}


@pytest.mark.supports("InstructPix2Pix")
@BOTH_WAYS
def test_instruct_pix2pix(capture: Any, tmp_path: Path) -> None:
    pipeline, path = models.instruct_pix2pix(), tmp_path / "run.zarr"
    found = check(pipeline, call_of(pipeline, prompt="a cat", image=models.picture()), path, capture=capture)
    assert {one.context for one in found.values()} == {"text"}
    assert read_manifest(path).guidance.branches == ("conditional", "image", "unconditional")
    assert "comes in by the channels of the latent" in warnings_of(path)


@pytest.mark.supports("SD inpainting")
@BOTH_WAYS
def test_inpainting(capture: Any, tmp_path: Path) -> None:
    pipeline, path = models.inpainting(), tmp_path / "run.zarr"
    call = text_call(pipeline, image=models.picture(16, 24), mask_image=models.box_mask(16, 24))
    found = check(pipeline, call, path, capture=capture)
    assert {one.context for one in found.values()} == {"text"}
    assert {one.query_grid for one in found.values()} == {(8, 12), (4, 6)}
    assert "comes in by the channels of the latent" in warnings_of(path)


@pytest.mark.supports("x4 upscaler")
@BOTH_WAYS
def test_upscaler(capture: Any, tmp_path: Path) -> None:
    pipeline, path = models.upscaler(), tmp_path / "run.zarr"
    found = check(pipeline, call_of(pipeline, prompt="a cat", image=models.picture(8, 8)), path, capture=capture)
    assert any(site.endswith("attn1") for site in found)  # only_cross_attention: attn1 has the text as keys, too
    assert {one.context for one in found.values()} == {"text"}
    assert "comes in by the channels of the latent" in warnings_of(path)


@pytest.mark.supports("ControlNet beside a U-Net")
@BOTH_WAYS
def test_controlnet(capture: Any, tmp_path: Path) -> None:
    pipeline, path = models.controlnet(), tmp_path / "unet.zarr"
    call = text_call(pipeline, image=models.picture(16, 24))
    found = check(pipeline, call, path, capture=capture)
    second = check_recording(
        pipeline, pipeline.controlnet, call, tmp_path / "controlnet.zarr",
        branch="both", capture=capture, network="controlnet",
    )  # fmt: skip
    assert {one.context for one in (*found.values(), *second.values())} == {"text"}
    with (
        record(pipeline, tmp_path / "first.zarr", capture=capture, branch="both"),
        record(pipeline, tmp_path / "second.zarr", capture=capture, branch="both", network="controlnet"),
    ):
        call()
    for alone, together in (("unet", "first"), ("controlnet", "second")):
        scores = read_scores(tmp_path / f"{together}.zarr")
        for site, expected in read_scores(tmp_path / f"{alone}.zarr").items():
            np.testing.assert_array_equal(scores[site], expected)


@pytest.mark.supports("ControlNet beside a U-Net")
def test_controlnet_in_guess_mode(tmp_path: Path) -> None:
    pipeline, path = models.controlnet(), tmp_path / "controlnet.zarr"
    call = text_call(pipeline, image=models.picture(16, 24), guess_mode=True, guidance_scale=4.0)
    check_recording(pipeline, pipeline.controlnet, call, path, network="controlnet")
    manifest = read_manifest(path)
    assert (manifest.guidance.branches, manifest.guidance.scale) == (("conditional",), 4.0)
    assert "".join(manifest.classes[0].tokens or ()).startswith("<|startoftext|>a</w>cat</w>")


def test_a_model_with_no_profile_is_recorded_with_a_warning(tmp_path: Path) -> None:
    unet = models.tiny_unet()
    with torch.no_grad(), pytest.warns(LabelWarning, match=r"took its keys for reference.*4 x 4 patches"):  # noqa: SIM117
        with record(unet, tmp_path / "run.zarr"):
            unet(torch.randn(1, 4, 8, 8), 5.0, encoder_hidden_states=torch.randn(1, 17, 32))
    assert "took its keys for reference" in warnings_of(tmp_path / "run.zarr")


def test_a_tokenizer_that_takes_any_number_is_not_filled_up() -> None:
    pipeline = models.stable_diffusion()
    pipeline.tokenizer.model_max_length = 10**30
    profile = find_profile(pipeline)
    assert profile is not None
    tokens = Tokens(pipeline, PipelineCall({"prompt": "a cat"}), 1, None, profile)
    found = tokens.of(0, "conditional", 6)
    assert found is not None
    assert found.texts == ("<|startoftext|>", "a</w>", "c", "a", "t</w>", "<|endoftext|>")
    assert tokens.of(0, "conditional", 16) is None
