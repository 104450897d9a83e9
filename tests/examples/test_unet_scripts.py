"""The example scripts of U-Nets, and `attrace record` without a script, on tiny weights saved as users have them."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file
from support import models
from support.adapters import adapter_weights
from support.reading import read_manifest
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from attrace.cli import main as attrace

FOLDER = Path(__file__).parents[2] / "examples"
PBE = "Paint-by-Example, diffusers"
SD, SD2, XL = (f"Stable Diffusion {version} (DAAM)" for version in ("1.5", "2", "XL"))
PIX2PIX = "InstructPix2Pix"
SIZE = ["--size", "32", "32"]
WORD = ["--prompt", "a cat", "--word", "cat"]
TOKENS = ["--prompt", "a cat", "--grid", "8", "8"]
SCENE, MASK = ["--image", "scene.png"], ["--mask", "mask.png"]
PAINT = ["--scene", "scene.png", "--mask", "mask.png", "--reference", "reference.png"]


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models.picture().save("scene.png")
    models.picture(seed=1).save("reference.png")
    models.box_mask().save("mask.png")
    models.picture(8, 8).save("small.png")


def save(pipeline: Any) -> None:
    """Save a pipeline as its published weights are: Paint-by-Example's name their encoder by a folder of diffusers."""
    pipeline.save_pretrained("model")
    index = Path("model/model_index.json")
    members = json.loads(index.read_text())
    if "PaintByExampleImageEncoder" in members.get("image_encoder", ()):
        members["image_encoder"][0] = "paint_by_example"
        index.write_text(json.dumps(members))


def run(script: str, pipeline: Any, *arguments: str) -> Any:
    """Run a script on a pipeline for two steps; the trace's manifest."""
    save(pipeline)
    main: Callable[[list[str]], None] = runpy.run_path(str(FOLDER / f"{script}.py"))["main"]
    main(["--model", "model", "--steps", "2", "--dtype", "float32", "-o", "run.zarr", *arguments])
    return read_manifest(Path("run.zarr"))


@pytest.mark.parametrize(
    ("script", "make", "arguments", "profile"),
    [
        pytest.param(script, make, arguments, profile, marks=pytest.mark.supports(row), id=row)
        for row, script, make, arguments, profile in (
            (PBE, "paint_by_example", models.paint_by_example, [*PAINT, *SIZE], "paint-by-example"),
            (SD, "token_maps", models.stable_diffusion, [*WORD, *SIZE], "stable-diffusion"),
            (SD2, "token_maps", models.stable_diffusion_2, [*WORD, *SIZE], "stable-diffusion"),
            (XL, "token_maps", models.stable_diffusion_xl, [*WORD, *SIZE], "stable-diffusion-xl"),
            ("Prompt-to-Prompt", "prompt_to_prompt", models.stable_diffusion, [*TOKENS, *SIZE], "stable-diffusion"),
            (PIX2PIX, "instruct_pix2pix", models.instruct_pix2pix, [*SCENE, *WORD], "instruct-pix2pix"),
            ("SD inpainting", "inpainting", models.inpainting, [*SCENE, *MASK, *WORD, *SIZE], "inpainting"),
            ("x4 upscaler", "upscaler", models.upscaler, ["--image", "small.png", *WORD], "upscaler"),
        )
    ],
)  # fmt: skip
def test_script(script: str, make: Any, arguments: list[str], profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run(script, make(), *arguments)
    assert (manifest.status, manifest.capture["profile"]) == ("complete", profile)
    assert "run.zarr: Statistics(steps=" in capsys.readouterr().out


@pytest.mark.supports("ControlNet beside a U-Net")
def test_controlnet() -> None:
    pipeline = models.controlnet()
    pipeline.controlnet.save_pretrained("network")
    arguments = ["--controlnet", "network", "--image", "scene.png", *WORD, "--controlnet-output", "second.zarr"]
    assert run("controlnet", pipeline, *arguments).denoiser.class_name == "UNet2DConditionModel"
    assert read_manifest(Path("second.zarr")).denoiser.class_name == "ControlNetModel"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(models.stable_diffusion, marks=pytest.mark.supports("IP-Adapter, SD 1.5"), id="sd"),
        pytest.param(models.stable_diffusion_xl, marks=pytest.mark.supports("IP-Adapter, SDXL"), id="xl"),
    ],
)
def test_ip_adapter(make: Any) -> None:
    pipeline = make_with_adapter(make)
    arguments = ["--adapter", "adapter", "--weights", "tiny.safetensors", "--image", "reference.png"]
    manifest = run("ip_adapter", pipeline, *arguments, "--prompt", "a cat", *SIZE)
    assert {one.context for one in manifest.classes} == {"text", "image-prompt"}

    given = ["prompt=cat", "ip_adapter_image=@reference.png", "height=32", "width=32"]
    options = ["--ip-adapter", "adapter", "--ip-adapter-weights", "models/tiny.safetensors"]
    assert {one.context for one in run_command(*given, options=options).classes} == {"text", "image-prompt"}
    result = CliRunner().invoke(attrace, [*COMMAND, *options[:3], "models/none.safetensors", "--overwrite"])
    assert "cannot load an IP-Adapter from 'models/none.safetensors'" in result.output


def make_with_adapter(make: Any) -> Any:
    """A pipeline that can take an adapter, whose weights lie in a folder beside it."""
    pipeline = make()
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, projection_dim=12, num_hidden_layers=1, num_attention_heads=2,
            image_size=32, patch_size=8,
        )
    )  # fmt: skip
    pipeline.register_modules(image_encoder=encoder.eval(), feature_extractor=CLIPImageProcessor(crop_size=32, size=32))
    Path("adapter/models").mkdir(parents=True)
    save_file(adapter_weights(pipeline.unet, 12), "adapter/models/tiny.safetensors")
    return pipeline


COMMAND = ["record", "--pipeline", "model", "--steps", "2", "-o", "run.zarr"]


def run_command(*inputs: str, options: Sequence[str] = ()) -> Any:
    """Record a saved pipeline by the command line; the trace's manifest."""
    given = [part for one in inputs for part in ("--input", one)]
    result = CliRunner().invoke(attrace, [*COMMAND, "--overwrite", *options, *given])
    assert result.exit_code == 0, (result.output, result.exception)
    return read_manifest(Path("run.zarr"))


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        pytest.param(make, inputs, marks=pytest.mark.supports(row), id=row)
        for row, make, inputs in (
            (PBE, models.paint_by_example, "image=@scene.png mask_image=@mask.png example_image=@reference.png"),
            (SD, models.stable_diffusion, "prompt=cat"),
            (SD2, models.stable_diffusion_2, "prompt=cat"),
            (XL, models.stable_diffusion_xl, "prompt=cat"),
            (PIX2PIX, models.instruct_pix2pix, "prompt=cat image=@scene.png"),
            ("SD inpainting", models.inpainting, "prompt=cat image=@scene.png mask_image=@mask.png"),
            ("x4 upscaler", models.upscaler, "prompt=cat image=@small.png"),
            ("ControlNet beside a U-Net", models.controlnet, "prompt=cat image=@scene.png"),
        )
    ],
)  # fmt: skip
def test_the_command_line_needs_no_script(make: Any, inputs: str) -> None:
    pipeline = make()
    save(pipeline)
    sizes = ["height=32", "width=32"] if "height" in signature(type(pipeline).__call__).parameters else []
    assert run_command(*inputs.split(), *sizes).steps >= 2
