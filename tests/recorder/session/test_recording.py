"""What is in a trace: guidance, batches, steps, layers, keys, labels, pictures, provenance."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import models
from support.reading import read_array, read_manifest, read_scores
from torch import Tensor

from attrace.recorder import KeyContext, LabelWarning, Profile, record
from attrace.schemas import InputError, Manifest, SelectionError


def run(pipeline: Any, prompt: Any = "a cat", **arguments: Any) -> Any:
    given = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "np"} | arguments
    return pipeline(prompt, generator=models.noise(), **given).images


def run_demo(pipeline: Any, **arguments: Any) -> Any:
    pictures = models.picture(64, 64), models.box_mask(64, 64), models.picture(64, 64, 1)
    return pipeline(*pictures, num_inference_steps=3, generator=models.noise(), **arguments).images


class TestGuidance:
    def test_conditional_half_is_kept_by_default_and_both_on_request(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        with record(pipeline, tmp_path / "one.zarr"):
            run(pipeline)
        with record(pipeline, tmp_path / "both.zarr", branch="both"):
            run(pipeline)
        with record(pipeline, tmp_path / "other.zarr", branch="unconditional"):
            run(pipeline)
        one, both, other = (read_scores(tmp_path / f"{name}.zarr") for name in ("one", "both", "other"))
        assert both.keys() == one.keys() | other.keys()
        for site, scores in both.items():
            np.testing.assert_array_equal(scores, (one | other)[site])
        manifest = read_manifest(tmp_path / "one.zarr")
        assert manifest.guidance.branches == ("unconditional", "conditional")
        assert manifest.guidance.kept == ("conditional",)
        assert manifest.guidance.scale == 7.5
        groups = {one.group for one in read_manifest(tmp_path / "both.zarr").classes}
        assert "text/64x16h2d8" in groups
        assert "text.unconditional/64x16h2d8" in groups

    def test_a_run_without_guidance_has_one_branch(self, tmp_path: Path) -> None:
        pipeline = models.demo()
        with record(pipeline, tmp_path / "run.zarr"):
            run_demo(pipeline)
        assert read_manifest(tmp_path / "run.zarr").guidance.model_dump() == {
            "branches": ("conditional",),
            "kept": ("conditional",),
            "scale": None,
        }

    def test_three_blocks_of_instruct_pix2pix_are_named(self, tmp_path: Path) -> None:
        pipeline = models.instruct_pix2pix()
        with record(pipeline, tmp_path / "run.zarr", branch="both"):
            pipeline("a cat", image=models.picture(16, 16), num_inference_steps=2, generator=models.noise())
        manifest = read_manifest(tmp_path / "run.zarr")
        assert manifest.guidance.kept == ("conditional", "image", "unconditional")
        texts = {one.branch: one.tokens for one in manifest.classes}
        assert texts["conditional"] is not None
        assert "c" in texts["conditional"]
        assert texts["image"] == texts["unconditional"]

    def test_guidance_that_ends_in_the_middle_of_a_run(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()

        def end_guidance(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if step == 0:
                pipe._guidance_scale = 0.0
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            return tensors

        with record(pipeline, tmp_path / "run.zarr"):
            run(
                pipeline,
                callback_on_step_end=end_guidance,
                callback_on_step_end_tensor_inputs=["prompt_embeds"],
            )
        assert read_manifest(tmp_path / "run.zarr").status == "complete"
        assert all(np.isfinite(scores).all() for scores in read_scores(tmp_path / "run.zarr").values())

    def test_a_bare_denoiser_is_told(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        random = models.noise()
        noisy, context = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 17, 32, generator=random)
        with record(
            unet,
            tmp_path / "run.zarr",
            context="reference",
            guidance=("unconditional", "conditional"),
            key_grid=(2, 8),
        ):
            for timestep in (9.5, torch.tensor([5, 5])):
                unet(noisy, timestep, encoder_hidden_states=context)
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.status, manifest.pipeline, manifest.scheduler) == ("complete", None, None)
        for one in manifest.classes:
            assert [(part.kind, part.grid) for part in one.key_segments] == [("cls", None), ("patch", (2, 8))]
        np.testing.assert_array_equal(read_array(tmp_path / "run.zarr", "timestep"), [9.5, 5])


class TestBatches:
    def test_a_trace_for_each_sample(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        paths = [tmp_path / "cat.zarr", tmp_path / "dog.zarr"]
        with record(pipeline, paths, reference=models.picture()) as recording:
            recording.images["generated"] = list(run(pipeline, ["a cat", "dog"]))
        assert recording.paths == tuple(paths)
        cat, dog = (read_manifest(path) for path in paths)
        assert [(one.sample, one.samples) for one in (cat, dog)] == [(0, 2), (1, 2)]
        assert cat.id != dog.id
        assert cat.classes[0].tokens is not None
        assert dog.classes[0].tokens is not None
        assert cat.classes[0].tokens[1:5] == ("a</w>", "c", "a", "t</w>")
        assert dog.classes[0].tokens[1:4] == ("d", "o", "g</w>")
        assert [part.count for part in dog.classes[0].key_segments] == [5, 11]
        first, second = (read_array(path, "images/generated") for path in paths)
        assert not np.array_equal(first, second)
        first, second = (read_array(path, "images/reference") for path in paths)
        np.testing.assert_array_equal(first, second)

    def test_several_pictures_of_one_prompt(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        paths = [tmp_path / f"{number}.zarr" for number in range(4)]
        with record(pipeline, paths):
            run(pipeline, ["a cat", "dog"], num_images_per_prompt=2)
        tokens = [read_manifest(path).classes[0].tokens for path in paths]
        assert tokens[0] == tokens[1] != tokens[2] == tokens[3]

    def test_samples_of_a_batch_are_those_of_single_runs(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        random = models.noise()
        noisy, context = torch.randn(3, 4, 8, 8, generator=random), torch.randn(3, 16, 32, generator=random)
        paths = [tmp_path / f"{number}.zarr" for number in range(3)]
        with torch.no_grad(), record(unet, paths, context="text"):
            unet(noisy, 5, encoder_hidden_states=context)
        for row, path in enumerate(paths):
            with torch.no_grad(), record(unet, tmp_path / "single.zarr", context="text", overwrite=True):
                unet(noisy[row : row + 1], 5, encoder_hidden_states=context[row : row + 1])
            single = read_scores(tmp_path / "single.zarr")
            for site, scores in read_scores(path).items():
                np.testing.assert_allclose(scores, single[site], atol=1e-5)


class TestSelection:
    def test_layers_and_steps(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        with record(pipeline, tmp_path / "all.zarr"):
            run(pipeline, num_inference_steps=5)
        with record(pipeline, tmp_path / "some.zarr", layers=["up_blocks.*"], steps=slice(1, None, 2)) as recording:
            run(pipeline, num_inference_steps=5)
        every, some = read_scores(tmp_path / "all.zarr"), read_scores(tmp_path / "some.zarr")
        assert {path for path, _ in some} == {path for path, _ in every if path.startswith("up_blocks")}
        for site, scores in some.items():
            np.testing.assert_array_equal(scores, every[site][[1, 3]])
        np.testing.assert_array_equal(read_array(tmp_path / "some.zarr", "time"), [1, 3])
        assert (recording.statistics.steps, recording.statistics.sites) == (2, 2)
        assert read_manifest(tmp_path / "some.zarr").capture["layers"] == ["up_blocks.*"]

    def test_a_layer_by_its_short_label(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        with record(pipeline, tmp_path / "run.zarr", layers="up_blocks.1.1.0.attn2") as recording:
            run(pipeline)
        assert recording.statistics.sites == 1
        with (
            pytest.raises(SelectionError, match=r"may be .*attn1 or .*attn2"),
            record(pipeline, tmp_path / "x.zarr", layers="up_blocks.1.1.0", self_attention=True),
        ):
            run(pipeline)

    def test_steps_that_never_come_are_noted(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        with record(pipeline, tmp_path / "run.zarr", steps=[1, 3, 9]):
            run(pipeline)
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.status, manifest.steps) == ("complete", 1)
        assert "3, 9" in str(manifest.capture["warnings"])

    def test_self_attention_on_request(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        with record(pipeline, tmp_path / "run.zarr", self_attention=True, layers="down_blocks.0.*"):
            run(pipeline)
        classes = {one.context: one for one in read_manifest(tmp_path / "run.zarr").classes}
        assert classes.keys() == {"self", "text"}
        assert classes["self"].key_segments[0].grid == classes["self"].query_grid == (8, 8)
        assert classes["self"].sites[0].path.endswith("attn1")
        orders = [site.order for one in classes.values() for site in one.sites]
        assert sorted(orders) == list(range(len(orders)))


class TestKeys:
    def test_a_key_that_does_not_change_is_stored_once(self, tmp_path: Path) -> None:
        pipeline = models.demo()
        with record(pipeline, tmp_path / "run.zarr") as recording:
            run_demo(pipeline)
        for one in read_manifest(tmp_path / "run.zarr").classes:
            steps = read_array(tmp_path / "run.zarr", f"{one.group}/key_step")
            np.testing.assert_array_equal(steps, np.zeros((3, len(one.sites)), np.int32))
            keys = read_array(tmp_path / "run.zarr", f"{one.group}/key_vector")
            assert np.isfinite(keys[0]).all()
            assert np.isnan(keys[1:]).all()
        done = recording.statistics
        assert done.bytes_written == done.estimated_bytes + 4 * 7 * 3  # key_step: an int32 for each site and step

    def test_a_key_that_changes_is_stored_when_it_does(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        random = models.noise()
        noisy = torch.randn(1, 4, 8, 8, generator=random)
        contexts = [torch.randn(1, 16, 32, generator=random) for _ in range(2)]
        with record(unet, tmp_path / "run.zarr", context="text", encoding="factors"):
            for number in (0, 0, 1, 1, 0):
                unet(noisy, 5, encoder_hidden_states=contexts[number])
        steps = read_array(tmp_path / "run.zarr", "text/64x16h2d8/key_step")
        np.testing.assert_array_equal(steps, np.repeat([[0], [0], [2], [2], [4]], 3, axis=1))
        scores = read_scores(tmp_path / "run.zarr")
        for one in scores.values():
            np.testing.assert_array_equal(one[0], one[4])
            assert np.abs(one[0] - one[2]).max() > 0

    def test_auto_takes_the_smaller_encoding(self, tmp_path: Path) -> None:
        sizes = {}
        pipeline = models.stable_diffusion()
        for encoding in ("scores", "factors", "auto"):
            with record(pipeline, tmp_path / encoding, encoding=encoding) as recording:
                run(pipeline, num_inference_steps=6)
            sizes[encoding] = recording.statistics.estimated_bytes
        assert sizes["auto"] < min(sizes["scores"], sizes["factors"])
        encodings = {one.features: one.encoding for one in read_manifest(tmp_path / "auto").classes}
        assert encodings == {8: "factors", 16: "scores"}


class TestLabels:
    def test_reference_of_the_demo(self, tmp_path: Path) -> None:
        pipeline = models.demo()
        with record(pipeline, tmp_path / "run.zarr"):
            run_demo(pipeline)
        manifest = read_manifest(tmp_path / "run.zarr")
        assert manifest.capture["profile"] == "attrace-demo"
        assert manifest.capture["warnings"] == []
        for one in manifest.classes:
            assert one.context == "reference"
            assert [part.grid for part in one.key_segments] == [(16, 16)]
        assert {one.query_grid for one in manifest.classes} == {(16, 16), (8, 8)}

    def test_paint_by_example_has_one_class_token(self, tmp_path: Path) -> None:
        pipeline = models.paint_by_example()
        with record(pipeline, tmp_path / "run.zarr"):
            pipeline(
                example_image=models.picture(seed=1),
                image=models.picture(),
                mask_image=models.box_mask(),
                height=32,
                width=32,
                num_inference_steps=2,
            )
        for one in read_manifest(tmp_path / "run.zarr").classes:
            assert (one.context, one.keys, one.encoding) == ("reference", 1, "scores")
            assert [part.kind for part in one.key_segments] == ["cls"]

    def test_guesses_are_told_and_kept(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        noisy, context = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 32)
        with pytest.warns(LabelWarning, match="4 x 4 patches"), record(unet, tmp_path / "run.zarr"):
            unet(noisy, 5, encoder_hidden_states=context)
        warnings = read_manifest(tmp_path / "run.zarr").capture["warnings"]
        assert isinstance(warnings, list)
        assert len(warnings) == 2
        assert "UNet2DConditionModel" in str(warnings[0])

    def test_a_profile_labels_layers_apart(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        profile = Profile(
            "two", (KeyContext("reference", "patches", "down_blocks.*"), KeyContext("text", "text")), denoiser=None
        )
        with record(unet, tmp_path / "run.zarr", profile=profile, tokens=[f"t{n}" for n in range(16)]):
            unet(torch.randn(1, 4, 8, 8), 5, encoder_hidden_states=torch.randn(1, 16, 32))
        contexts = {
            site.path: one.context for one in read_manifest(tmp_path / "run.zarr").classes for site in one.sites
        }
        assert set(contexts.values()) == {"reference", "text"}
        assert all((context == "reference") == path.startswith("down_blocks") for path, context in contexts.items())

    def test_call_order_is_found(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        with record(pipeline, tmp_path / "run.zarr"):
            run(pipeline)
        sites = [site for one in read_manifest(tmp_path / "run.zarr").classes for site in one.sites]
        paths = [site.path.partition(".attentions")[0] for site in sorted(sites, key=lambda site: site.order)]
        assert paths == ["down_blocks.0", "mid_block", "up_blocks.1", "up_blocks.1"]


class TestManifest:
    def record(self, path: Path, **arguments: Any) -> Manifest:
        pipeline = models.stable_diffusion()
        with record(pipeline, path, seed=7, model_id="tiny/model", revision="abc", **arguments) as recording:
            recording.images["generated"] = run(pipeline, negative_prompt="dog")[0]
        return read_manifest(path)

    def test_says_what_was_run(self, tmp_path: Path) -> None:
        manifest = self.record(tmp_path / "run.zarr")
        assert (manifest.status, manifest.steps, manifest.seed) == ("complete", 3, 7)
        assert (manifest.model_dtype, manifest.device) == ("float32", "cpu")
        assert manifest.image_size == (16, 16)
        assert manifest.pipeline is not None
        assert manifest.pipeline.class_name == "StableDiffusionPipeline"
        assert (manifest.pipeline.model_id, manifest.pipeline.revision) == ("tiny/model", "abc")
        assert manifest.denoiser.config is not None
        text = json.dumps(manifest.denoiser.config, sort_keys=True, separators=(",", ":"))
        assert manifest.denoiser.config_hash == hashlib.sha256(text.encode()).hexdigest()
        assert manifest.scheduler is not None
        assert manifest.scheduler.class_name == "DDIMScheduler"
        assert manifest.software["torch"] == torch.__version__
        assert manifest.call_arguments["prompt"] == "a cat"
        assert manifest.call_arguments["num_inference_steps"] == 3
        assert "generator" not in manifest.call_arguments

    def test_prompts_are_left_out_on_request(self, tmp_path: Path) -> None:
        manifest = self.record(tmp_path / "run.zarr", prompts=False)
        assert "a cat" not in manifest.model_dump_json()
        assert "dog" not in manifest.model_dump_json()
        assert manifest.call_arguments["num_images_per_prompt"] == 1
        assert all(one.tokens is None for one in manifest.classes)

    def test_a_licence_and_a_citation_are_kept(self, tmp_path: Path) -> None:
        manifest = self.record(tmp_path / "run.zarr", licence="CC-BY-4.0", citation="A. Author, 2026")
        assert (manifest.licence, manifest.citation) == ("CC-BY-4.0", "A. Author, 2026")
        with pytest.raises(InputError, match="licence"):
            self.record(tmp_path / "other.zarr", licence="two\nlines")

    def test_the_estimate_is_logged_after_the_first_step(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, logger="attrace"):
            self.record(tmp_path / "run.zarr")
        assert "4 sites" in caplog.text
        assert "3 steps" in caplog.text

    def test_a_schedule_set_anew_is_noted(self, tmp_path: Path) -> None:
        pipeline = models.stable_diffusion()
        with record(pipeline, tmp_path / "run.zarr"):
            run(pipeline)
            run(pipeline)
        manifest = read_manifest(tmp_path / "run.zarr")
        assert manifest.steps == 6
        assert "use one record()" in str(manifest.capture["warnings"])


def test_values_that_are_not_finite_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = models.stable_diffusion()
    path = "mid_block.attentions.0.transformer_blocks.0.attn2"
    with torch.no_grad():
        pipeline.unet.get_submodule(path).to_q.weight[0, 0] = float("inf")
    with record(pipeline, tmp_path / "run.zarr", encoding="factors"):
        run(pipeline, num_inference_steps=1)
    warnings = read_manifest(tmp_path / "run.zarr").capture["warnings"]
    assert isinstance(warnings, list)
    assert any(path in str(warning) and "step 0" in str(warning) for warning in warnings)
    assert caplog.text.count(f"{path}: values that are not finite, first in step 0") == 1


def test_the_recorder_is_imported_without_torch() -> None:
    code = (
        "import sys, attrace.recorder, attrace.recorder.writing.store\n"
        "assert 'record' in dir(attrace.recorder)\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_address_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"s3://bucket/run\.zarr: record to a folder, then attrace push it"):
        record(models.tiny_unet(), "s3://bucket/run.zarr", context="text")
