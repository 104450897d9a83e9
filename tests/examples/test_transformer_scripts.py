"""The example scripts of transformers and reference networks, on tiny weights saved as users have them."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from diffusers import QwenImageEditPlusPipeline
from support import models, text_pipelines, transformers
from support.reading import read_array, read_manifest
from support.text_encoders import texts_of

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


@pytest.fixture
def large_picture(tmp_path: Path) -> str:
    """The smallest that Flux 2 takes."""
    models.picture(64, 96).save(tmp_path / "large.png")
    return str(tmp_path / "large.png")


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


@pytest.mark.supports("Flux")
@pytest.mark.parametrize("repaints", [False, True])
def test_flux(repaints: bool, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--image", picture, "--strength", "1"] if repaints else []
    manifest = run("flux.py", transformers.flux(), tmp_path, "--word", "cat", "--every", "1", *start)
    assert [(one.context, one.query_grid) for one in manifest.classes] == [("text", (4, 6))]
    assert (manifest.pipeline.class_name, manifest.steps) == ("FluxImg2ImgPipeline" if repaints else "FluxPipeline", 2)
    assert "'cat' is strongest in row" in capsys.readouterr().out


@pytest.mark.supports("Flux Redux")
def test_flux_redux(picture: str, tmp_path: Path) -> None:
    text_pipelines.flux_redux().save_pretrained(tmp_path / "prior")
    arguments = ["--prior", str(tmp_path / "prior"), "--image", picture, "--every", "1"]
    manifest = run("flux_redux.py", transformers.flux(), tmp_path, *arguments)
    (one,) = manifest.classes
    assert (one.context, one.query_grid, [part.grid for part in one.key_segments]) == ("reference", (4, 6), [(3, 3)])
    assert (manifest.steps, manifest.capture["warnings"]) == (2, [])


@pytest.mark.supports("Flux 2")
def test_flux_2_with_references(large_picture: str, tmp_path: Path) -> None:
    arguments = ["--image", large_picture, large_picture, "--every", "1", "--layers", "*"]
    manifest = run("flux_2.py", text_pipelines.flux_2(), tmp_path, *arguments)
    (one,) = manifest.classes
    assert (one.context, [part.grid for part in one.key_segments]) == ("reference", [(8, 12), (8, 12)])
    assert one.query_grid == (4, 6)
    assert [site.path for site in one.sites] == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    assert manifest.steps == 2


@pytest.mark.supports("Flux 2")
def test_flux_2_with_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run("flux_2.py", text_pipelines.flux_2(), tmp_path, "--word", "cat", "--every", "1")
    (one,) = manifest.classes
    assert (one.context, one.keys) == ("text", 512)
    assert texts_of(one.tokens).startswith("<|im_start|>system\u010aYou are an AI")
    assert "<|im_start|>user\u010aa cat<|im_end|>" in texts_of(one.tokens)
    assert "'cat' is strongest in row" in capsys.readouterr().out


@pytest.mark.supports("Qwen-Image")
def test_qwen_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run("qwen_image.py", text_pipelines.qwen_image(), tmp_path, "--word", "cat", "--every", "1")
    (one,) = manifest.classes
    assert (one.context, one.query_grid, one.branch) == ("text", (2, 3), "conditional")
    assert texts_of(one.tokens).endswith("user\u010aa cat<|im_end|>\u010a<|im_start|>assistant\u010a")
    assert (manifest.steps, manifest.guidance.branches) == (2, ("conditional", "unconditional"))
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

    @pytest.mark.supports("Flux 2")
    def test_flux_2(self, large_picture: str, tmp_path: Path) -> None:
        manifest = run_command(text_pipelines.flux_2(), tmp_path, image=f"@{large_picture}")
        assert manifest.capture["profile"] == "flux-2"
        assert {one.context for one in manifest.classes} == {"reference"}

    @pytest.mark.supports("Flux 2")
    @pytest.mark.parametrize("is_distilled", [False, True])
    def test_flux_2_klein(self, is_distilled: bool, tmp_path: Path) -> None:
        manifest = run_command(text_pipelines.flux_2_klein(is_distilled=is_distilled), tmp_path, guidance_scale=4.0)
        assert (manifest.capture["profile"], manifest.capture["warnings"], manifest.steps) == ("flux-2", [], 2)
        branches, scale = (("conditional",), None) if is_distilled else (("conditional", "unconditional"), 4.0)
        assert (manifest.guidance.branches, manifest.guidance.scale) == (branches, scale)
        assert [(one.context, one.branch, one.keys) for one in manifest.classes] == [("text", "conditional", 512)]

    @pytest.mark.supports("Qwen-Image")
    def test_qwen_image(self, tmp_path: Path) -> None:
        manifest = run_command(text_pipelines.qwen_image(), tmp_path, negative_prompt="dog")
        assert (manifest.capture["profile"], manifest.steps) == ("qwen-image", 2)
        assert [(one.context, one.tokens) for one in manifest.classes] == [("text", None)]

    @pytest.mark.supports("Flux Kontext")
    def test_kontext(self, picture: str, tmp_path: Path) -> None:
        inputs = {"image": f"@{picture}", "max_area": 32 * 48, "_auto_resize": "false", "max_sequence_length": 12}
        manifest = run_command(
            transformers.flux_kontext(), tmp_path, "--context", "reference", "--context", "text", **inputs
        )
        assert manifest.capture["profile"] == "flux-kontext"
        assert {one.context for one in manifest.classes} == {"reference", "text"}

    @pytest.mark.supports("Qwen-Image-Edit, Edit Plus")
    @pytest.mark.parametrize("pictures", [1, 2])
    def test_qwen_image_edit(self, pictures: int, picture: str, qwen: Any, tmp_path: Path) -> None:
        options = ["--class", "QwenImageEditPlusPipeline", "--reference", "image"]
        more = [f"--input=image=@{picture}"] * (pictures - 1)
        manifest = run_command(qwen, tmp_path, *options, *more, image=f"@{picture}")
        assert manifest.capture["profile"] == "qwen-image-edit"
        (one,) = manifest.classes
        assert (one.context, [part.grid for part in one.key_segments]) == ("reference", [(2, 3)] * pictures)
        kept = {path.name for path in (tmp_path / "run.zarr" / "images").iterdir() if path.is_dir()}
        assert kept == {"generated", "reference", "reference-1"} - ({"reference-1"} if pictures == 1 else set())


@pytest.mark.supports("Replaced keys (MasaCtrl)")
def test_reference_network_that_replaces_keys(picture: str, tmp_path: Path) -> None:
    arguments = ["--image", picture, "--replace", "--start", "1"]
    manifest = run("reference_network.py", models.stable_diffusion(), tmp_path, *arguments)
    assert manifest.capture["profile"] == "mutual-attention"
    for one in manifest.classes:
        assert (one.context, [part.grid for part in one.key_segments]) == ("reference", [one.query_grid])
        assert not one.has_lse
        assert all(site.path.startswith("up_blocks.") for site in one.sites)
    assert read_array(tmp_path / "run.zarr", "time").tolist() == [1]


@pytest.mark.supports("Joined keys (IDM-VTON, Leffa)")
def test_reference_network(picture: str, tmp_path: Path) -> None:
    manifest = run("reference_network.py", models.stable_diffusion(), tmp_path, "--image", picture)
    assert {one.context for one in manifest.classes} == {"reference"}
    for one in manifest.classes:
        assert [part.grid for part in one.key_segments] == [one.query_grid]
        assert one.has_lse
    assert manifest.steps == 2
