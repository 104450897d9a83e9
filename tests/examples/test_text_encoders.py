"""`attrace record` of whole saved pipelines whose processors need torchvision: the text encoders run too."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from diffusers import DiffusionPipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from PIL import Image
from scipy.special import logsumexp
from support import models, text_encoders, text_pipelines, transformers
from support.reading import read_array, read_class_scores, read_manifest

from attrace.cli import main as attrace
from attrace.schemas import Manifest

EXAMPLES = Path(__file__).parents[2] / "examples"

ROWS, COLUMNS = 64, 96

"""Of the pictures, in pixels."""


@pytest.fixture(autouse=True)
def torchvision() -> None:
    pytest.importorskip("torchvision", reason="the processors of Flux 2 and Qwen-Image-Edit need torchvision")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    models.picture(ROWS, COLUMNS).save(tmp_path / "reference.png")
    return tmp_path / "reference.png"


@pytest.fixture(autouse=True)
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """References of a few patches, not of a million pixels."""
    for name in ("edit", "edit_plus"):
        module = f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}.calculate_dimensions"
        monkeypatch.setattr(module, lambda *_, pair=name == "edit_plus": (48, 32) if pair else (48, 32, None))


def record_saved(pipeline: Any, folder: Path, picture: Path | None, *options: str, **inputs: Any) -> Path:
    """Record a saved pipeline by the command line, and compare with the same run without a recording."""
    pipeline.save_pretrained(folder / "model")
    output, saved = folder / "run.zarr", folder / "run.png"
    inputs = {"prompt": "a cat", "height": ROWS, "width": COLUMNS, **inputs}
    command = ["record", "--pipeline", str(folder / "model"), "--steps", "2", "--seed", "0", "-o", str(output)]
    given = [f"--input={name}={value}" for name, value in inputs.items()]
    if picture is not None:
        given.append(f"--input=image=@{picture}")
        inputs["image"] = Image.open(picture)
    result = CliRunner().invoke(attrace, [*command, "--save-image", str(saved), *options, *given])
    assert result.exit_code == 0, (result.output, result.exception)

    loaded = DiffusionPipeline.from_pretrained(folder / "model")
    with transformers.joint_calls(loaded.transformer) as calls:
        expected = loaded(**inputs, num_inference_steps=2, generator=models.noise()).images[0]
    np.testing.assert_array_equal(np.asarray(Image.open(saved)), np.asarray(expected))
    compare(output, calls)
    return output


def compare(path: Path, calls: transformers.JointCalls) -> None:
    """Every score and log-sum-exp of a trace with those of the model's own calls, in float64."""
    manifest = read_manifest(path)
    branches = manifest.guidance.branches
    texts = {one.branch: one.keys for one in manifest.classes if one.context == "text"}
    for one in manifest.classes:
        queries = slice(texts[one.branch], texts[one.branch] + one.queries)
        keys = slice(0, queries.start) if one.context == "text" else slice(queries.stop, None)
        for layer, site in enumerate(one.sites):
            for step in range(manifest.steps):
                call = calls.by_path[site.path][step * len(branches) + branches.index(one.branch)]
                whole = call.scores()[:, queries]
                lse = read_array(path, f"{one.group}/lse")[step, layer]
                np.testing.assert_allclose(lse, logsumexp(whole, axis=-1), atol=2e-6)
                found = read_class_scores(path, one, layer)[step]
                np.testing.assert_allclose(found, whole[..., keys], atol=1e-5)


@pytest.mark.parametrize("pipeline", [QwenImagePipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline])
def test_qwen_image(pipeline: Any, picture: Path, tmp_path: Path) -> None:
    edits = pipeline is not QwenImagePipeline
    added = {"processor": text_encoders.qwen_vl_processor()} if edits else {}
    contexts = ["reference", "text"] if edits else ["text"]
    options = ["--branch", "both", *(part for one in contexts for part in ("--context", one))]
    path = record_saved(
        text_pipelines.qwen_image(pipeline, **added), tmp_path, picture if edits else None, *options,
        negative_prompt="dog", true_cfg_scale=2.0,
    )  # fmt: skip
    manifest = read_manifest(path)
    assert (manifest.status, manifest.steps) == ("complete", 2)
    assert manifest.capture["profile"] == ("qwen-image-edit" if edits else "qwen-image")
    assert manifest.guidance.branches == ("conditional", "unconditional")
    assert {(one.context, one.branch) for one in manifest.classes} == {
        (context, branch) for context in contexts for branch in manifest.guidance.branches
    }
    for one in manifest.classes:
        assert one.query_grid == (4, 6)
        if one.context == "reference":
            assert [part.grid for part in one.key_segments] == [(2, 3)]


@pytest.mark.parametrize("references", [0, 1])
def test_flux_2(references: int, picture: Path, tmp_path: Path) -> None:
    pipeline = text_pipelines.flux_2(text_encoders.pixtral_processor())
    contexts = ["reference", "text"][1 - references :]
    options = [part for one in contexts for part in ("--context", one)]
    path = record_saved(pipeline, tmp_path, picture if references else None, *options)
    manifest = read_manifest(path)
    assert (manifest.status, manifest.steps, manifest.capture["profile"]) == ("complete", 2, "flux-2")
    assert {one.context: [part.grid for part in one.key_segments] for one in manifest.classes} == {
        "reference": [(8, 12)], "text": [None],
    } if references else {"text": [None]}  # fmt: skip
    assert {site.path for one in manifest.classes for site in one.sites} == {
        "transformer_blocks.0.attn", "single_transformer_blocks.0.attn",
    }  # fmt: skip


def run_script(name: str, pipeline: Any, folder: Path, *arguments: str) -> Manifest:
    """Run an example script on a saved pipeline, for two steps; the trace's manifest."""
    pipeline.save_pretrained(folder / "model")
    main = runpy.run_path(str(EXAMPLES / name))["main"]
    common = ["--model", str(folder / "model"), "--prompt", "a cat", "--steps", "2", "--every", "1", "--layers", "*"]
    size = ["--size", str(ROWS), str(COLUMNS)]
    main([*common, *size, "--dtype", "float32", "-o", str(folder / "run.zarr"), *arguments])
    return read_manifest(folder / "run.zarr")


def test_the_script_of_flux_2_names_the_tokens_of_its_processor(tmp_path: Path) -> None:
    pipeline = text_pipelines.flux_2(text_encoders.pixtral_processor())
    (one,) = run_script("flux_2.py", pipeline, tmp_path, "--word", "cat").classes
    assert (one.context, one.keys) == ("text", 512)
    assert "user\u010aa cat<|im_end|>" in text_encoders.texts_of(one.tokens)


def test_the_script_of_qwen_image_edit(picture: Path, tmp_path: Path) -> None:
    pipeline = text_pipelines.qwen_image(QwenImageEditPlusPipeline, processor=text_encoders.qwen_vl_processor())
    (one,) = run_script("qwen_image_edit.py", pipeline, tmp_path, "--image", str(picture), str(picture)).classes
    assert (one.context, [part.grid for part in one.key_segments]) == ("reference", [(2, 3), (2, 3)])
