from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from attrace.demo.pipeline import ReferenceInpaintPipeline

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


def test_the_error_counts_the_mask_only() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    scene = torch.zeros(1, 3, 8, 8)
    scene[..., 4:, :] = 2
    assert train.masked_error(torch.zeros(1, 48, 2, 2), scene, mask) == 0
    assert train.masked_error(torch.zeros(1, 48, 2, 2), scene, mask, outside_weight=0.5) == pytest.approx(2.0)


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    settings = train.Settings(steps=100, decay_steps=20, warmup_steps=10, learning_rate=1.0)
    assert settings.learning_rate_at(0) == pytest.approx(0.1)
    assert settings.learning_rate_at(50) == 1.0
    assert settings.learning_rate_at(99) == pytest.approx(0.05)
