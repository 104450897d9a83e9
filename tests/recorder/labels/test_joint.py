"""Attention over text, generated picture and references at once: what is recorded of diffusers' own transformers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, QwenImageTransformer2DModel
from diffusers.models import attention_dispatch
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from support import models, transformers
from support.reading import read_array, read_manifest
from torch import Tensor, nn

from attrace.analysis import open_trace, ulam
from attrace.recorder import LabelWarning, record
from attrace.schemas import CaptureError, InputError, SiteClass, SizeLimitError

ROWS, COLUMNS = 4, 6
"""Patches of the pictures that are generated."""
GENERATED = ROWS * COLUMNS


def generate(pipeline: Any, **arguments: Any) -> NDArray[np.float64]:
    described: dict[str, Any] = {
        "prompt": "a cat",
        "height": 8 * ROWS,
        "width": 8 * COLUMNS,
        "num_inference_steps": 2,
        "generator": models.noise(),
        "output_type": "np",
    }
    if hasattr(pipeline, "text_encoder_2"):
        described["max_sequence_length"] = transformers.TEXT_TOKENS
    with torch.no_grad():
        return np.asarray(pipeline(**(described | arguments)).images)


def edit(pipeline: Any, **arguments: Any) -> NDArray[np.float64]:
    """Kontext, without the pictures of a million pixels that it was trained on."""
    size = {"_auto_resize": False, "max_area": 64 * ROWS * COLUMNS}
    return generate(pipeline, image=models.picture(40, 24), **size, **arguments)


def compare_with_model(
    path: Path, calls: transformers.JointCalls, spans: dict[str, slice], queries: slice, *, passes: int = 1
) -> None:
    """Scores, log-sum-exp and both softmaxes of a trace against float64 of what the model's own processors multiplied.

    `passes` is the number of calls of a step, the first of which is the conditional one.
    """
    for one in read_manifest(path).classes:
        for layer, site in enumerate(one.sites):
            found = calls.by_path[site.path]
            for step in range(read_manifest(path).steps):
                call = found[step * passes + (one.branch == "unconditional")]
                whole = call.scores(len(call.query) - 1)[:, queries]
                part = whole[..., spans[one.context]]
                lse = read_array(path, f"{one.group}/lse")[step, layer]
                np.testing.assert_allclose(lse, logsumexp(whole, axis=-1), atol=2e-6)
                scores = stored_scores(path, one, step, layer)
                np.testing.assert_allclose(scores, part, atol=1e-5)
                over_keys = softmax(whole, -1)[..., spans[one.context]]
                np.testing.assert_allclose(np.exp(scores - lse[..., None]), over_keys, rtol=2e-5, atol=1e-9)
                seen = np.isfinite(part).all(axis=(0, 1))
                np.testing.assert_allclose(softmax(scores, 1)[..., seen], softmax(part, 1)[..., seen], rtol=2e-5)


def stored_scores(path: Path, one: SiteClass, step: int, layer: int) -> NDArray[np.float64]:
    if one.encoding == "scores":
        return np.asarray(read_array(path, f"{one.group}/scores")[step, layer], np.float64)
    query = read_array(path, f"{one.group}/query_vector")[step, layer].astype(np.float64)
    key = read_array(path, f"{one.group}/key_vector")[step, layer].astype(np.float64)
    scores: NDArray[np.float64] = one.scale * query @ key.swapaxes(-1, -2)
    return scores + read_array(path, f"{one.group}/bias")[step, layer] if one.has_bias else scores


@pytest.fixture
def kontext() -> Any:
    return transformers.flux_kontext()


TEXT = slice(0, transformers.TEXT_TOKENS)
FLUX_QUERIES = slice(TEXT.stop, TEXT.stop + GENERATED)
KONTEXT = {"text": TEXT, "self": FLUX_QUERIES, "reference": slice(FLUX_QUERIES.stop, FLUX_QUERIES.stop + 15)}
BLOCKS = ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn"]


class TestFlux:
    @pytest.mark.supports("Flux Kontext")
    def test_kontext_records_its_reference(self, kontext: Any, tmp_path: Path) -> None:
        expected = edit(kontext)
        before = dict(attention_dispatch._AttentionBackendRegistry._backends)
        with transformers.joint_calls(kontext.transformer) as calls, record(kontext, tmp_path / "run.zarr"):
            found = edit(kontext)
        np.testing.assert_array_equal(found, expected)
        assert before == attention_dispatch._AttentionBackendRegistry._backends
        assert "cache_context" not in vars(kontext.transformer)
        manifest = read_manifest(tmp_path / "run.zarr")
        (one,) = manifest.classes
        assert (one.context, one.query_grid, one.has_lse) == ("reference", (ROWS, COLUMNS), True)
        assert [(part.kind, part.grid) for part in one.key_segments] == [("patch", (5, 3))]
        assert [site.path for site in one.sites] == BLOCKS
        assert manifest.capture["profile"] == "flux-kontext"
        assert manifest.capture["warnings"] == []
        compare_with_model(tmp_path / "run.zarr", calls, KONTEXT, FLUX_QUERIES)
        assert ulam(open_trace(tmp_path / "run.zarr"), direction="g2r").shape == (5, 3)

    @pytest.mark.supports("Flux Kontext")
    @pytest.mark.parametrize("encoding", ["scores", "factors"])
    def test_every_context_of_both_branches(self, kontext: Any, encoding: Any, tmp_path: Path) -> None:
        with (
            transformers.joint_calls(kontext.transformer) as calls,
            record(
                kontext,
                tmp_path / "run.zarr",
                context=("reference", "text"),
                self_attention=True,
                branch="both",
                encoding=encoding,
            ) as recording,
        ):
            edit(kontext, negative_prompt="dog", true_cfg_scale=2.0)
        manifest = read_manifest(tmp_path / "run.zarr")
        assert manifest.steps == 2
        assert read_array(tmp_path / "run.zarr", "time").tolist() == [0, 1]
        written, estimated = recording.statistics.bytes_written, recording.statistics.estimated_bytes
        assert 0 <= written - estimated < 0.01 * written  # keys are counted in every step, as they change
        assert manifest.guidance.branches == ("conditional", "unconditional")
        assert manifest.guidance.scale == 2.0
        assert {(one.context, one.branch) for one in manifest.classes} == {
            (context, branch) for context in KONTEXT for branch in ("conditional", "unconditional")
        }
        compare_with_model(tmp_path / "run.zarr", calls, KONTEXT, FLUX_QUERIES, passes=2)
        texts = {one.branch: one.tokens for one in manifest.classes if one.context == "text"}
        assert texts["conditional"][:7] == ("▁", "a", "▁", "c", "a", "t", "</s>")  # type: ignore[index]
        assert texts["unconditional"][:4] == ("▁", "d", "o", "g")  # type: ignore[index]

    @pytest.mark.supports("Flux Kontext")
    def test_the_unconditional_pass_is_no_step(self, kontext: Any, tmp_path: Path) -> None:
        for name, steps, times in (("all", None, [0, 1, 2]), ("one", [1], [1])):
            with record(kontext, tmp_path / name, steps=steps, layers="transformer_blocks.*"):
                edit(kontext, negative_prompt="dog", true_cfg_scale=2.0, num_inference_steps=3)
            assert read_array(tmp_path / name, "time").tolist() == times
            assert {one.branch for one in read_manifest(tmp_path / name).classes} == {"conditional"}
        alone = tmp_path / "unconditional"
        with (
            transformers.joint_calls(kontext.transformer) as calls,
            record(kontext, alone, branch="unconditional", layers="transformer_blocks.*"),
        ):
            edit(kontext, negative_prompt="dog", true_cfg_scale=2.0)
        assert {one.branch for one in read_manifest(alone).classes} == {"unconditional"}
        compare_with_model(alone, calls, KONTEXT, FLUX_QUERIES, passes=2)

    def test_cache_contexts_tell_the_branches_of_a_bare_denoiser(self, tmp_path: Path) -> None:
        denoiser = transformers.flux_transformer()
        call = transformers.flux_call(ROWS, COLUMNS)
        with torch.no_grad(), record(denoiser, tmp_path / "run.zarr", branch="unconditional") as recording:
            for name in ("uncond", "cond", "uncond", "cond"):  # the names count, not the order
                with denoiser.cache_context(name):
                    denoiser(**(call | {"timestep": torch.tensor([0.5 if name == "cond" else 0.25])}))
        assert recording.statistics.steps == 2
        assert read_array(tmp_path / "run.zarr", "timestep").tolist() == [0.25, 0.25]

    def test_guidance_names_the_passes_of_a_bare_denoiser(self, tmp_path: Path) -> None:
        denoiser = transformers.flux_transformer()
        with torch.no_grad(), record(denoiser, tmp_path / "run.zarr", guidance=("a", "b", "c"), branch=("a", "c")):
            for _ in range(6):
                denoiser(**transformers.flux_call(ROWS, COLUMNS))
        manifest = read_manifest(tmp_path / "run.zarr")
        assert manifest.steps == 2
        assert {one.branch for one in manifest.classes} == {"a", "c"}
        with torch.no_grad(), record(denoiser, tmp_path / "cut.zarr", guidance=("a", "b"), branch="both"):
            for _ in range(3):
                denoiser(**transformers.flux_call(ROWS, COLUMNS))
        manifest = read_manifest(tmp_path / "cut.zarr")
        assert manifest.steps == 1
        assert "call 1 is left out" in str(manifest.capture["warnings"])

    @pytest.mark.supports("Flux")
    def test_without_a_reference_the_text_is_recorded(self, tmp_path: Path) -> None:
        pipeline = transformers.flux()
        with transformers.joint_calls(pipeline.transformer) as calls, record(pipeline, tmp_path / "run.zarr"):
            generate(pipeline)
        (one,) = read_manifest(tmp_path / "run.zarr").classes
        assert [(part.kind, part.count) for part in one.key_segments] == [("text", 7), ("pad", 5)]
        compare_with_model(tmp_path / "run.zarr", calls, {"text": TEXT}, FLUX_QUERIES)
        with (
            pytest.raises(InputError, match=r"context='reference'.*text, self"),
            record(pipeline, tmp_path / "none.zarr", context="reference"),
        ):
            generate(pipeline)

    @pytest.mark.supports("Flux Redux")
    @pytest.mark.parametrize("key_grid", [None, (3, 3)])
    def test_redux_adds_its_reference_to_the_text(self, key_grid: Any, tmp_path: Path) -> None:
        pipeline, text = transformers.flux(), 512 if key_grid is None else 7
        embeddings = {
            "prompt": None,
            "prompt_embeds": torch.randn(1, text + 9, 32, generator=models.noise()),
            "pooled_prompt_embeds": torch.randn(1, 32, generator=models.noise()),
            "max_sequence_length": 512,
        }
        queries = slice(text + 9, text + 9 + GENERATED)
        recording = record(pipeline, tmp_path / "run.zarr", key_grid=key_grid, context=("reference", "text"))
        with transformers.joint_calls(pipeline.transformer) as calls:
            if key_grid is None:
                with pytest.warns(LabelWarning, match="Flux Redux"), recording:
                    generate(pipeline, **embeddings)
            else:
                with recording:
                    generate(pipeline, **embeddings)
        reference, words = sorted(read_manifest(tmp_path / "run.zarr").classes, key=lambda one: one.context)
        assert [(part.kind, part.grid) for part in reference.key_segments] == [("patch", (3, 3))]
        assert words.keys == text
        spans = {"text": slice(0, text), "reference": slice(text, text + 9)}
        compare_with_model(tmp_path / "run.zarr", calls, spans, queries)

    @pytest.mark.supports("Flux")
    def test_a_block_cache_leaves_gaps(self, tmp_path: Path) -> None:
        pipeline = transformers.flux()
        pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
        with (
            pytest.raises(CaptureError, match=r"single_transformer_blocks.*allow_gaps"),
            record(pipeline, tmp_path / "refused.zarr", strict=True),
        ):
            generate(pipeline, num_inference_steps=3)
        with record(pipeline, tmp_path / "run.zarr", allow_gaps=True, encoding="scores"):
            generate(pipeline, num_inference_steps=3)
        (one,) = read_manifest(tmp_path / "run.zarr").classes
        missing = np.isnan(read_array(tmp_path / "run.zarr", f"{one.group}/scores")).all(axis=(2, 3, 4))
        assert missing[:, 0].tolist() == [False] * 3
        assert missing[0].tolist() == [False] * 3
        assert missing[1:, 1:].any()

    def test_a_first_step_above_the_limit_stops_the_recording(self, kontext: Any, tmp_path: Path) -> None:
        expected, found = edit(kontext), []
        with (
            pytest.raises(SizeLimitError, match="2 sites of the first step alone"),
            record(kontext, tmp_path / "run.zarr", limit_bytes=5000, strict=True),
        ):
            found.append(edit(kontext))
        np.testing.assert_array_equal(found, [expected])  # the model ran on
        assert read_manifest(tmp_path / "run.zarr").classes == ()


@pytest.mark.supports("Flux 2")
def test_flux_2_has_references_and_one_projection_for_everything(tmp_path: Path) -> None:
    denoiser, random = transformers.flux2_transformer(), models.noise()
    pictures = [(0, ROWS, COLUMNS), (10, 3, 3), (20, 2, 5)]  # number, rows, columns, as Flux2Pipeline numbers them
    places = [(n, row, column, 0) for n, rows, columns in pictures for row in range(rows) for column in range(columns)]
    call = {
        "hidden_states": torch.randn(1, len(places), 16, generator=random),
        "encoder_hidden_states": torch.randn(1, 7, 32, generator=random),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([4.0]),
        "img_ids": torch.tensor([places]),
        "txt_ids": torch.zeros(1, 7, 4, dtype=torch.long),
        "return_dict": False,
    }
    with torch.no_grad(), transformers.joint_calls(denoiser) as calls:
        expected = denoiser(**call)[0]
        calls.by_path.clear()
        with record(denoiser, tmp_path / "run.zarr"):
            found = denoiser(**call)[0]
    assert torch.equal(found, expected)
    (one,) = read_manifest(tmp_path / "run.zarr").classes
    assert [site.path for site in one.sites] == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    assert [part.grid for part in one.key_segments] == [(3, 3), (2, 5)]
    queries = slice(7, 7 + GENERATED)
    compare_with_model(tmp_path / "run.zarr", calls, {"reference": slice(queries.stop, None)}, queries)


def test_an_ip_adapter_beside_joint_attention(tmp_path: Path) -> None:
    denoiser = transformers.flux_transformer()
    path = "transformer_blocks.0.attn"
    adapter = FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=32, num_tokens=(17,))
    denoiser.get_submodule(path).set_processor(adapter)
    call = transformers.flux_call(ROWS, COLUMNS)
    # the generated picture and a reference of 2 x 2
    call["img_ids"] = torch.cat([call["img_ids"], torch.tensor([[1.0, i // 2, i % 2] for i in range(4)])])
    call["hidden_states"] = torch.randn(1, GENERATED + 4, 16, generator=models.noise())
    call["joint_attention_kwargs"] = {"ip_hidden_states": [torch.randn(1, 1, 17, 32, generator=models.noise())]}
    with torch.no_grad(), record(denoiser, tmp_path / "run.zarr"):
        denoiser(**call)
    found = {one.context: one for one in read_manifest(tmp_path / "run.zarr").classes}
    assert set(found) == {"reference", "image-prompt"}
    adapted = found["image-prompt"]
    assert [site.path for site in adapted.sites] == [f"{path}.processor.to_k_ip.0"]
    assert (adapted.query_grid, adapted.keys, adapted.has_lse) == ((ROWS, COLUMNS), 17, False)
    assert [(part.kind, part.grid) for part in adapted.key_segments] == [("cls", None), ("patch", (4, 4))]


class TestStableDiffusion3:
    @pytest.mark.supports("Stable Diffusion 3, 3.5")
    @pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
    def test_text_after_the_picture(self, qk_norm: str | None, tmp_path: Path) -> None:
        pipeline = transformers.stable_diffusion_3(qk_norm=qk_norm)
        expected = generate(pipeline)
        with transformers.joint_calls(pipeline.transformer) as calls, record(pipeline, tmp_path / "run.zarr"):
            found = generate(pipeline)
        np.testing.assert_array_equal(found, expected)
        (one,) = read_manifest(tmp_path / "run.zarr").classes
        # the second attention of the first block is of the picture to itself
        assert [site.path for site in one.sites] == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
        assert (one.context, one.query_grid, one.branch) == ("text", (ROWS, COLUMNS), "conditional")
        kinds = [(part.kind, part.count) for part in one.key_segments]
        assert kinds == [("text", 6), ("pad", 10), ("text", 7), ("pad", 5)]  # CLIP, then T5
        words = slice(GENERATED, GENERATED + 28)
        compare_with_model(tmp_path / "run.zarr", calls, {"text": words}, slice(0, GENERATED))

    @pytest.mark.supports("Stable Diffusion 3, 3.5")
    def test_attention_of_the_picture_to_itself_on_request(self, tmp_path: Path) -> None:
        pipeline = transformers.stable_diffusion_3()
        with record(pipeline, tmp_path / "run.zarr", self_attention=True):
            generate(pipeline)
        own = [one for one in read_manifest(tmp_path / "run.zarr").classes if one.context == "self"]
        assert {(site.path, one.has_lse) for one in own for site in one.sites} == {
            ("transformer_blocks.0.attn", True),
            ("transformer_blocks.0.attn2", False),
            ("transformer_blocks.1.attn", True),
        }
        assert {one.query_grid for one in own} == {(ROWS, COLUMNS)}

    @pytest.mark.supports("Stable Diffusion 3, 3.5")
    def test_the_call_that_skips_layers_is_no_step(self, tmp_path: Path) -> None:
        pipeline = transformers.stable_diffusion_3()
        with record(pipeline, tmp_path / "run.zarr", branch="both") as recording:
            generate(pipeline, num_inference_steps=4, skip_guidance_layers=[1], skip_layer_guidance_stop=0.9)
        assert recording.statistics.steps == 4


class TestQwenImage:
    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """References of a few patches, not of a million pixels."""
        for name in ("edit", "edit_plus"):
            module = f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}.calculate_dimensions"
            monkeypatch.setattr(module, lambda *_, pair=name == "edit_plus": (32, 48) if pair else (32, 48, None))

    @pytest.mark.usefixtures("small")
    @pytest.mark.supports("Qwen-Image-Edit, Edit Plus")
    @pytest.mark.parametrize("plus", [False, True])
    def test_edits(self, plus: bool, tmp_path: Path) -> None:
        pipeline = transformers.qwen_image_edit_plus() if plus else transformers.qwen_image_edit()
        picture = [models.picture(32, 32), models.picture(32, 48)] if plus else models.picture(48, 32)
        arguments = {"image": picture, "true_cfg_scale": 2.0, "height": 64, "width": 96, **transformers.qwen_prompts()}
        expected = generate(pipeline, **arguments)
        with (
            transformers.joint_calls(pipeline.transformer) as calls,
            record(pipeline, tmp_path / "run.zarr", branch="both", context=("reference", "text")),
        ):
            found = generate(pipeline, **arguments)
        np.testing.assert_array_equal(found, expected)
        manifest = read_manifest(tmp_path / "run.zarr")
        assert (manifest.steps, manifest.capture["profile"]) == (2, "qwen-image-edit")
        reference = next(one for one in manifest.classes if one.context == "reference")
        assert reference.query_grid == (ROWS, COLUMNS)
        assert [part.grid for part in reference.key_segments] == [(3, 2)] * (2 if plus else 1)
        for one in manifest.classes:
            words = next(x.keys for x in manifest.classes if (x.context, x.branch) == ("text", one.branch))
            assert one.keys in (words, 6 * (1 + plus))
        lengths = {one.branch: one.keys for one in manifest.classes if one.context == "text"}
        assert lengths["conditional"] != lengths["unconditional"]  # each branch has its own layout
        for step in range(2):
            for one in manifest.classes:
                call = calls.by_path["transformer_blocks.0.attn"][2 * step + (one.branch == "unconditional")]
                start = lengths[one.branch]
                whole = call.scores()[:, start : start + GENERATED]
                lse = read_array(tmp_path / "run.zarr", f"{one.group}/lse")[step, 0]
                np.testing.assert_allclose(lse, logsumexp(whole, axis=-1), atol=2e-6)
                span = slice(0, start) if one.context == "text" else slice(start + GENERATED, None)
                scores = stored_scores(tmp_path / "run.zarr", one, step, 0)
                np.testing.assert_allclose(scores, whole[..., span], atol=1e-5)

    @pytest.mark.supports("Qwen-Image")
    def test_masked_text(self, tmp_path: Path) -> None:
        denoiser: QwenImageTransformer2DModel = transformers.qwen_image_edit().transformer
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1, 5:] = False
        call = {
            "hidden_states": torch.randn(2, GENERATED + 6, 16, generator=models.noise()),
            "encoder_hidden_states": torch.randn(2, 9, 16, generator=models.noise()),
            "encoder_hidden_states_mask": mask,
            "timestep": torch.tensor([0.5, 0.5]),
            "img_shapes": [[(1, ROWS, COLUMNS), (1, 3, 2)]] * 2,
            "return_dict": False,
        }
        paths = [tmp_path / "whole.zarr", tmp_path / "masked.zarr"]
        arguments: dict[str, Any] = {"context": ("reference", "text"), "encoding": "factors"}
        with (
            torch.no_grad(),
            transformers.joint_calls(denoiser) as calls,
            record(denoiser, paths, guidance=("conditional",), **arguments),
        ):
            denoiser(**call)
        for row, path in enumerate(paths):
            for one in read_manifest(path).classes:
                for layer, site in enumerate(one.sites):
                    whole = calls.by_path[site.path][0].scores(row)[:, 9 : 9 + GENERATED]
                    lse = read_array(path, f"{one.group}/lse")[0, layer]
                    np.testing.assert_allclose(lse, logsumexp(whole, axis=-1), atol=2e-6)
                    span = slice(0, 9) if one.context == "text" else slice(9 + GENERATED, None)
                    np.testing.assert_allclose(stored_scores(path, one, 0, layer), whole[..., span], atol=1e-5)
                if one.context == "text":
                    hidden = np.isneginf(read_array(path, f"{one.group}/bias")[0, 0])
                    assert hidden.tolist() == (~mask[row]).tolist()


class TestDispatcher:
    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
    @pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
    def test_every_backend_gives_the_same(self, backend: str, tmp_path: Path) -> None:
        denoiser = transformers.flux_transformer()
        denoiser.set_attention_backend(backend)
        # it sets the backend of every other model too
        attention_dispatch._AttentionBackendRegistry.set_active_backend(attention_dispatch.AttentionBackendName.NATIVE)
        with torch.no_grad():
            expected = denoiser(**transformers.flux_call(ROWS, COLUMNS))[0]
            with transformers.joint_calls(denoiser) as calls, record(denoiser, tmp_path / "run.zarr"):
                found = denoiser(**transformers.flux_call(ROWS, COLUMNS))[0]
        assert torch.equal(found, expected)
        compare_with_model(tmp_path / "run.zarr", calls, {"text": slice(0, 7)}, slice(7, 7 + GENERATED))

    def test_recordings_may_end_in_any_order(self, tmp_path: Path) -> None:
        registry = attention_dispatch._AttentionBackendRegistry
        before = dict(registry._backends)
        first, second = transformers.flux_transformer(), transformers.flux_transformer()
        recordings = [record(model, tmp_path / f"{n}.zarr") for n, model in enumerate((first, second))]
        with torch.no_grad():
            for recording in recordings:
                recording.__enter__()
            assert registry._backends != before
            first(**transformers.flux_call(ROWS, COLUMNS))
            second(**transformers.flux_call(ROWS, COLUMNS))
            for recording in recordings:
                recording.__exit__(None, None, None)
        assert registry._backends == before
        one, two = (read_array(tmp_path / f"{n}.zarr", "text/24x7h2d16/scores") for n in range(2))
        np.testing.assert_array_equal(one, two)

    def test_another_model_in_another_thread_is_not_recorded(self, tmp_path: Path) -> None:
        denoiser, other = transformers.flux_transformer(), transformers.flux_transformer()
        for name in ("alone", "beside"):
            with torch.no_grad(), record(denoiser, tmp_path / name):
                denoiser(**transformers.flux_call(ROWS, COLUMNS))
            # while a layer runs, so does the other model, to its end

            def run_other(*_: Any) -> None:
                with ThreadPoolExecutor(1) as threads:
                    threads.submit(other, **transformers.flux_call(ROWS, COLUMNS)).result()

            denoiser.transformer_blocks[0].attn.norm_q.register_forward_hook(run_other)
        alone, beside = (read_array(tmp_path / name, "text/24x7h2d16/scores") for name in ("alone", "beside"))
        np.testing.assert_array_equal(alone, beside)

    def test_an_exception_leaves_everything_as_it_was(self, tmp_path: Path) -> None:
        registry = attention_dispatch._AttentionBackendRegistry
        before, denoiser = dict(registry._backends), transformers.flux_transformer()
        with (
            pytest.raises(RuntimeError, match="of the user"),
            record(denoiser, tmp_path / "run.zarr"),
            denoiser.cache_context("cond"),
        ):
            raise RuntimeError("of the user")
        assert registry._backends == before
        assert "cache_context" not in vars(denoiser)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules())

    def test_a_mask_that_is_no_tensor_is_refused(self, tmp_path: Path) -> None:
        class Masked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.heads, self.to_q, self.to_k = 1, nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, hidden: Tensor) -> Any:
                query, key = self.to_q(hidden)[:, :, None], self.to_k(hidden + 1)[:, :, None]
                return attention_dispatch.dispatch_attention_fn(query, key, key, attn_mask="a mask")

        model = nn.Sequential(Masked())
        with (
            pytest.raises(CaptureError, match="mask of type str"),
            record(model, tmp_path / "run.zarr", capture="attention", context="reference"),
        ):
            model(torch.zeros(1, 3, 4))


class Mine(nn.Module):
    """A denoiser of which nothing is known."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = transformers.flux_transformer()

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, img_ids: Tensor, **rest: Any) -> Any:
        return self.inner(hidden_states, encoder_hidden_states, img_ids=img_ids, **rest)


def test_a_model_without_a_profile_is_recorded_with_a_warning(tmp_path: Path) -> None:
    denoiser = Mine()
    with (
        torch.no_grad(),
        transformers.joint_calls(denoiser) as calls,
        pytest.warns(LabelWarning, match="nothing is known of Mine.*text, then the generated"),
        record(denoiser, tmp_path / "run.zarr"),
    ):
        denoiser(**transformers.flux_call(ROWS, COLUMNS))
    assert "nothing is known of Mine" in str(read_manifest(tmp_path / "run.zarr").capture["warnings"])
    compare_with_model(tmp_path / "run.zarr", calls, {"text": slice(0, 7)}, slice(7, 7 + GENERATED))
