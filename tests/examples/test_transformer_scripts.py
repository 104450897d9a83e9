"""The example scripts of transformers and reference networks, on tiny weights saved as users have them."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from diffusers import QwenImageEditPlusPipeline
from support import models, transformers
from support.reading import read_manifest

from attrace.cli import main as attrace

FOLDER = Path(__file__).parents[2] / "examples"


def run(script: str, pipeline: Any, folder: Path, *arguments: str) -> Any:
    """Run a script on a pipeline saved to a folder, for two steps of 32 x 48 pixels; the trace's manifest."""
    pipeline.save_pretrained(folder / "model")
    main = runpy.run_path(str(FOLDER / script))["main"]
    output = folder / "run.zarr"
    common = ["--model", str(folder / "model"), "--prompt", "a cat", "--steps", "2", "--size", "32", "48"]
    main([*common, "--dtype", "float32", "-o", str(output), *arguments])
    return read_manifest(output)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    models.picture(32, 48).save(tmp_path / "reference.png")
    return str(tmp_path / "reference.png")


@pytest.mark.supports("Flux Kontext")
def test_flux_kontext(picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kontext makes every reference as large as those that it was trained on
    sizes = "diffusers.pipelines.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS"
    monkeypatch.setattr(sizes, [(48, 32)])
    manifest = run("flux_kontext.py", transformers.flux_kontext(), tmp_path, "--image", picture, "--every", "1")
    assert [(one.context, one.query_grid) for one in manifest.classes] == [("reference", (4, 6))]
    assert (manifest.status, manifest.steps, manifest.image_size) == ("complete", 2, (32, 48))


@pytest.mark.supports("Stable Diffusion 3, 3.5")
def test_sd3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run("sd3.py", transformers.stable_diffusion_3(), tmp_path, "--word", "cat")
    assert [(one.context, one.query_grid) for one in manifest.classes] == [("text", (4, 6))]
    assert manifest.steps == 1
    assert "'cat' is strongest in row" in capsys.readouterr().out


@pytest.fixture
def qwen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Qwen-Image-Edit Plus without its text encoder, which needs torchvision to read the references."""
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
    prompts = transformers.qwen_prompts()
    embeddings = (prompts["prompt_embeds"], prompts["prompt_embeds_mask"])
    monkeypatch.setattr(f"{module}.QwenImageEditPlusPipeline.encode_prompt", lambda *_, **__: embeddings)
    without_text = {"text_encoder": None, "tokenizer": None, "processor": None}
    load = partial(QwenImageEditPlusPipeline.from_pretrained, **without_text)
    monkeypatch.setattr(f"{module}.QwenImageEditPlusPipeline.from_pretrained", load)
    monkeypatch.setattr(f"{module}.calculate_dimensions", lambda *_: (48, 32))
    return transformers.qwen_image_edit_plus()


@pytest.mark.supports("Qwen-Image-Edit, Edit Plus")
def test_qwen_image_edit(picture: str, qwen: Any, tmp_path: Path) -> None:
    arguments = ["--image", picture, picture, "--layers", "*", "--every", "1"]
    manifest = run("qwen_image_edit.py", qwen, tmp_path, *arguments)
    (one,) = manifest.classes
    assert (one.context, [part.grid for part in one.key_segments]) == ("reference", [(2, 3), (2, 3)])
    assert manifest.steps == 2


def run_command(pipeline: Any, folder: Path, *options: str, **inputs: Any) -> Any:
    """Record a saved pipeline by the command line, two steps of 32 x 48 pixels; the trace's manifest."""
    pipeline.save_pretrained(folder / "model")
    given = [
        f"--input={name}={value}" for name, value in {"prompt": "cat", "height": 32, "width": 48, **inputs}.items()
    ]
    output = folder / "run.zarr"
    arguments = ["record", "--pipeline", str(folder / "model"), "--steps", "2", "-o", str(output), *options, *given]
    result = CliRunner().invoke(attrace, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return read_manifest(output)


class TestCommandLine:
    """`attrace record` reaches them without a script."""

    @pytest.mark.supports("Stable Diffusion 3, 3.5")
    def test_sd3(self, tmp_path: Path) -> None:
        manifest = run_command(transformers.stable_diffusion_3(), tmp_path, max_sequence_length=12)
        assert (manifest.capture["profile"], manifest.steps) == ("stable-diffusion-3", 2)
        assert {one.context for one in manifest.classes} == {"text"}

    @pytest.mark.supports("Flux")
    def test_flux(self, tmp_path: Path) -> None:
        manifest = run_command(transformers.flux(), tmp_path, max_sequence_length=12)
        assert manifest.capture["profile"] == "flux"
        assert [len(one.sites) for one in manifest.classes] == [3]

    @pytest.mark.supports("Flux Kontext")
    def test_kontext(self, picture: str, tmp_path: Path) -> None:
        inputs = {"image": f"@{picture}", "max_area": 32 * 48, "_auto_resize": "false", "max_sequence_length": 12}
        manifest = run_command(
            transformers.flux_kontext(), tmp_path, "--context", "reference", "--context", "text", **inputs
        )
        assert manifest.capture["profile"] == "flux-kontext"
        assert {one.context for one in manifest.classes} == {"reference", "text"}

    @pytest.mark.supports("Qwen-Image-Edit, Edit Plus")
    def test_qwen_image_edit(self, picture: str, qwen: Any, tmp_path: Path) -> None:
        options = ["--class", "QwenImageEditPlusPipeline"]
        manifest = run_command(qwen, tmp_path, *options, image=f"@{picture}")
        assert manifest.capture["profile"] == "qwen-image-edit"
        assert {one.context for one in manifest.classes} == {"reference"}


@pytest.mark.supports("Joined keys (IDM-VTON, Leffa)")
def test_reference_network(picture: str, tmp_path: Path) -> None:
    manifest = run("reference_network.py", models.stable_diffusion(), tmp_path, "--image", picture)
    assert {one.context for one in manifest.classes} == {"reference"}
    for one in manifest.classes:
        assert [part.grid for part in one.key_segments] == [one.query_grid]
        assert one.has_lse
    assert manifest.steps == 2
