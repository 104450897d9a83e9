"""The model's result and the model itself are the same with and without a recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from support import models
from support.reading import read_array, read_manifest, read_scores
from torch import nn

from attrace.recorder import record

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ddim": DDIMScheduler.from_config,
    "plms": lambda config: PNDMScheduler.from_config(config, skip_prk_steps=True),
    "heun": HeunDiscreteScheduler.from_config,
    "euler": EulerDiscreteScheduler.from_config,
}

# diffusers makes NumPy arrays of torch tensors in a way that NumPy 2 will refuse one day
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

Call = Callable[[], np.ndarray]

HOOK_DICTS = [name for name in nn.Module().__dict__ if "hook" in name]


def text_call(pipeline: Any, **arguments: Any) -> Call:
    given = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "np"} | arguments
    return lambda: np.asarray(pipeline("a cat", generator=models.noise(), **given).images)


def demo_call(pipeline: Any, **arguments: Any) -> Call:
    given = {"num_inference_steps": 3, "output_type": "np"} | arguments
    return lambda: np.asarray(
        pipeline(
            models.picture(64, 64), models.box_mask(64, 64), models.picture(64, 64, 1),
            generator=models.noise(), **given,
        ).images
    )  # fmt: skip


def assert_unchanged(call: Call, pipeline: Any, path: Path, **arguments: Any) -> None:
    expected = call()
    with record(pipeline, path, **arguments) as recording:
        found = call()
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)
    assert recording.statistics.steps == read_manifest(path).steps > 0


@pytest.mark.parametrize("capture", ["hooks", "attention"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_result_is_bit_identical_with_every_scheduler(scheduler: str, capture: Any, tmp_path: Path) -> None:
    pipeline = models.stable_diffusion()
    pipeline.scheduler = SCHEDULERS[scheduler](pipeline.scheduler.config)
    assert_unchanged(text_call(pipeline), pipeline, tmp_path / "run.zarr", capture=capture)


@pytest.mark.parametrize("capture", ["hooks", "attention"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_result_is_bit_identical_in_every_precision(
    dtype: torch.dtype, guidance_scale: float, capture: Any, tmp_path: Path
) -> None:
    pipeline = models.stable_diffusion().to(dtype)
    call = text_call(pipeline, guidance_scale=guidance_scale)
    assert_unchanged(call, pipeline, tmp_path / "run.zarr", capture=capture)
    stored = {torch.float64: "float64", torch.bfloat16: "float32"}[dtype]  # bfloat16 is in no store
    assert {one.dtype for one in read_manifest(tmp_path / "run.zarr").classes} == {stored}


@pytest.mark.parametrize("capture", ["hooks", "attention"])
def test_result_of_the_demo_is_bit_identical_in_half_precision(capture: Any, tmp_path: Path) -> None:
    pipeline = models.demo().to(torch.float16)
    assert_unchanged(demo_call(pipeline, guidance_scale=2.0), pipeline, tmp_path / "run.zarr", capture=capture)
    assert {one.dtype for one in read_manifest(tmp_path / "run.zarr").classes} == {"float16"}


@pytest.mark.parametrize("capture", ["hooks", "attention"])
@pytest.mark.parametrize("make", [models.stable_diffusion_xl, models.stable_diffusion])
def test_result_of_a_wide_picture_is_bit_identical(make: Any, capture: Any, tmp_path: Path) -> None:
    pipeline = make()
    assert_unchanged(text_call(pipeline, width=24), pipeline, tmp_path / "run.zarr", capture=capture, branch="both")


def test_result_of_paint_by_example_is_bit_identical(tmp_path: Path) -> None:
    pipeline = models.paint_by_example()

    def call() -> np.ndarray:
        images = pipeline(
            example_image=models.picture(seed=1),
            image=models.picture(),
            mask_image=models.box_mask(),
            height=32,
            width=32,
            num_inference_steps=3,
            generator=models.noise(),
            output_type="np",
        ).images
        return np.asarray(images)

    assert_unchanged(call, pipeline, tmp_path / "run.zarr")


def test_every_scheduler_call_is_a_step_with_its_timestep(tmp_path: Path) -> None:
    pipeline = models.stable_diffusion()
    for scheduler, calls in (("plms", 4), ("heun", 5)):
        pipeline.scheduler = SCHEDULERS[scheduler](pipeline.scheduler.config)
        path = tmp_path / f"{scheduler}.zarr"
        with record(pipeline, path):
            text_call(pipeline)()
        np.testing.assert_array_equal(read_array(path, "time"), range(calls))
        np.testing.assert_allclose(read_array(path, "timestep"), pipeline.scheduler.timesteps.numpy())
        manifest = read_manifest(path)
        assert manifest.scheduler is not None
        assert manifest.scheduler.class_name == type(pipeline.scheduler).__name__


def hooks_of(model: nn.Module) -> dict[str, Any]:
    return {
        f"{path}.{name}": dict(getattr(module, name) or {})
        for path, module in model.named_modules()
        for name in HOOK_DICTS
    }


@pytest.mark.parametrize("capture", ["hooks", "attention"])
def test_model_is_left_as_it_was_found(capture: Any, tmp_path: Path) -> None:
    pipeline = models.stable_diffusion()
    pipeline.unet.mid_block.register_forward_hook(lambda *_: None)
    before, processors = hooks_of(pipeline.unet), dict(pipeline.unet.attn_processors)
    with record(pipeline, tmp_path / "run.zarr", capture=capture):
        assert hooks_of(pipeline.unet) != before
        text_call(pipeline)()
    assert hooks_of(pipeline.unet) == before
    assert pipeline.unet.attn_processors == processors


@pytest.mark.parametrize("error", [ValueError("on purpose"), KeyboardInterrupt()])
@pytest.mark.parametrize("capture", ["hooks", "attention"])
def test_model_is_left_as_it_was_found_after_an_exception_inside_it(
    capture: Any, error: BaseException, tmp_path: Path
) -> None:
    pipeline = models.stable_diffusion()
    site = pipeline.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise error

    handle = site.to_v.register_forward_hook(fail)
    before = hooks_of(pipeline.unet)
    with pytest.raises(type(error)) as raised, record(pipeline, tmp_path / "run.zarr", capture=capture):
        text_call(pipeline)()
    assert raised.value is error
    assert hooks_of(pipeline.unet) == before
    assert torch.overrides._get_current_function_mode_stack() == []
    manifest = read_manifest(tmp_path / "run.zarr")
    assert (manifest.status, manifest.steps) == ("interrupted", 1)
    handle.remove()
    assert np.isfinite(text_call(pipeline)()).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("capture", ["hooks", "attention"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_result_on_a_device_is_bit_identical(dtype: torch.dtype, capture: Any, tmp_path: Path) -> None:
    pipeline = models.stable_diffusion().to("cuda", dtype)
    call = text_call(pipeline, num_inference_steps=10)
    for encoding in ("scores", "factors"):
        path = tmp_path / encoding
        assert_unchanged(call, pipeline, path, capture=capture, branch="both", encoding=encoding)
        assert (read_manifest(path).device, read_manifest(path).status) == ("cuda", "complete")
    scores, factors = read_scores(tmp_path / "scores"), read_scores(tmp_path / "factors")
    for site, found in scores.items():
        np.testing.assert_allclose(found, factors[site], rtol=0, atol=1e-5 * np.abs(found).max())
