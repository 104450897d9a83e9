from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers.models.attention_processor import Attention

from attrace.demo.data import SampleMaker, Samples
from attrace.demo.objects import Objects
from attrace.demo.pipeline import InpaintPipeline, ReferenceInpaintPipeline
from attrace.demo.run import load_pipeline
from attrace.demo.settings import MODELS, Settings
from attrace.demo.supervision import AttentionSupervision, true_tokens

train = pytest.importorskip("attrace.demo.train")
pytest.importorskip("skimage", reason="training reads its photographs from scikit-image")


def test_training_saves_a_pipeline_and_can_be_continued(tmp_path: Path) -> None:
    first = CliRunner().invoke(train.main, [str(tmp_path), "--steps", "2", "--decay-steps", "1"])
    assert first.exit_code == 0, first.output
    ReferenceInpaintPipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    again = CliRunner().invoke(train.main, [str(tmp_path), "--steps", "3", "--decay-steps", "1", "--resume"])
    assert again.exit_code == 0, again.output
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]


def test_a_slow_run_is_saved_between_its_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(train.Trainer, "save", lambda trainer, *_, also: saved.append((trainer.step, also)))
    monkeypatch.setattr(train, "LONGEST_UNSAVED", 0.0)
    run = CliRunner().invoke(train.main, [str(tmp_path), "--steps", "3", "--save-every", "2", "--keep"])
    assert run.exit_code == 0, run.output
    assert saved == [(1, None), (2, tmp_path / "steps/00002"), (3, tmp_path / "steps/00003")]


@pytest.mark.parametrize("model", ["unet", "joint"])
def test_larger_models_train_on_small_pictures_first(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, model, replace(MODELS[model], channels=(32, 32), size=64, batch=4))
    pictures = np.zeros((2, 8, 8, 4), np.uint8)
    pictures[:, 2:6, 2:6] = 255
    Objects(pictures, ["bulb", "burger"], ["Objects", "Food & Drink"]).save(tmp_path / "objects.npz")
    seen, predict = [], train.predict

    def watched(pipeline: InpaintPipeline, samples: Samples, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(samples.scene.shape))
        prediction: torch.Tensor = predict(pipeline, samples, *rest)
        return prediction

    monkeypatch.setattr(train, "predict", watched)
    options = ["--model", model, "--steps", "2", "--coarse-steps", "1", "--objects", str(tmp_path / "objects.npz")]
    run = CliRunner().invoke(train.main, [str(tmp_path / "run"), *options])
    assert run.exit_code == 0, run.output
    assert seen == [(4, 3, 32, 32), (1, 3, 64, 64), (32, 3, 64, 64)]  # two steps and the validation
    assert load_pipeline(tmp_path / "run/pipeline").size == 64


@pytest.mark.parametrize("variant", ["no-positions", "coarse", "supervised"])
def test_variants_train_and_are_kept(tmp_path: Path, variant: str) -> None:
    options = ["--steps", "1", "--decay-steps", "1", "--variant", variant, "--keep"]
    run = CliRunner().invoke(train.main, [str(tmp_path), *options])
    assert run.exit_code == 0, run.output
    pipeline = ReferenceInpaintPipeline.from_pretrained(tmp_path / "steps" / "00001", local_files_only=True)
    attention = [name for name, module in pipeline.unet.named_modules() if name.endswith("attn2")]
    assert len(attention) == (4 if variant == "coarse" else 7)
    reference = torch.zeros(1, 3, 64, 64)
    tokens = pipeline.reference_encoder(reference.to(pipeline.reference_encoder.dtype))
    inner = tokens.unflatten(1, (16, 16))[:, 2:-2, 2:-2].flatten(1, 2)  # nearer to the edge the convolutions see it
    same_everywhere = bool((inner == inner[:, :1]).all())
    assert same_everywhere == (variant == "no-positions")


def test_true_tokens_of_a_reference_that_fills_the_scene() -> None:
    maker = SampleMaker(0)
    samples = maker.place(
        torch.zeros(1, 3, 64, 64), silhouette=torch.tensor([[40.0, 0.0, 4.0]]), placement=torch.eye(2, 3)[None]
    )
    places, inside = true_tokens(samples)
    assert places[0].tolist() == list(range(256))
    assert inside.float().mean() > 0.9


def test_supervision_is_least_where_attention_is_right() -> None:
    samples = SampleMaker(0).make(2)
    places, _ = true_tokens(samples)
    layer = Attention(query_dim=256, cross_attention_dim=256, heads=1, dim_head=256, bias=False)
    for part in (layer.to_q, layer.to_k):
        torch.nn.init.eye_(part.weight)
    keys = torch.eye(256).expand(2, -1, -1)
    with AttentionSupervision(torch.nn.ModuleDict({"a": layer}), ["a"]) as supervision:
        layer(400 * torch.nn.functional.one_hot(places, 256).float(), encoder_hidden_states=keys)
        right = supervision.error(samples, torch.ones(2))
        layer(torch.zeros(2, 256, 256), encoder_hidden_states=keys)
        uniform = supervision.error(samples, torch.ones(2))
        dropped = supervision.error(samples, torch.zeros(2))
    assert float(right.detach()) == pytest.approx(0, abs=1e-3)
    assert float(uniform.detach()) == pytest.approx(math.log(256), rel=1e-5)
    assert float(dropped.detach()) == 0


def test_the_error_counts_the_mask_only() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    scene = torch.zeros(1, 3, 8, 8)
    scene[..., 4:, :] = 2
    assert train.masked_error(torch.zeros(1, 48, 2, 2), scene, mask) == 0
    assert train.masked_error(torch.zeros(1, 48, 2, 2), scene, mask, outside_weight=0.5) == pytest.approx(2.0)


def test_the_error_of_edges_is_that_of_differences_between_neighbours() -> None:
    mask = torch.ones(1, 1, 8, 8)
    scene = torch.zeros(1, 3, 8, 8)
    scene[..., 4:] = 2  # one edge, of 8 of the 64 pixels
    error = train.masked_error(torch.zeros(1, 48, 2, 2), scene, mask, edge_weight=0.5)
    assert error == pytest.approx(4 / 2 + 0.5 * 4 / 8)  # and nothing outside
    shifted = train.masked_error(torch.full((1, 48, 2, 2), 3.0), torch.zeros(1, 3, 8, 8), mask, edge_weight=0.5)
    assert shifted == pytest.approx(9)


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    settings = Settings(steps=100, decay_steps=20, warmup_steps=10, learning_rate=1.0)
    assert settings.learning_rate_at(0) == pytest.approx(0.1)
    assert settings.learning_rate_at(50) == 1.0
    assert settings.learning_rate_at(99) == pytest.approx(0.05)
