from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from attrace.demo.joint import build_joint_pipeline
from attrace.demo.objects import Objects

evaluate = pytest.importorskip("attrace.demo.evaluate")
pytest.importorskip("skimage", reason="held-out photographs are those of scikit-image")


def test_a_joint_model_is_measured_beside_an_untrained_one_of_its_shape(tmp_path: Path) -> None:
    torch.manual_seed(1)
    build_joint_pipeline(layers=(1, 1), heads=2, head_channels=16, size=64).save_pretrained(tmp_path / "pipeline")
    pictures = np.full((2, 16, 16, 4), 255, np.uint8)
    Objects(pictures, ["bulb", "burger"], ["Objects", "Food & Drink"]).save(tmp_path / "objects.npz")
    options = ["--weights", str(tmp_path / "pipeline"), "--objects", str(tmp_path / "objects.npz")]
    options += ["--samples", "2", "--steps", "1", "--guidance", "2", "--ablate", "--json"]
    run = CliRunner().invoke(evaluate.main, [*options, "--pictures", str(tmp_path / "sheet.png")])
    assert run.exit_code == 0, run.output
    measured = json.loads(run.stdout)
    layers = {"transformer_blocks.0.attn", "single_transformer_blocks.0.attn"}
    assert measured["trained"]["sram_error"].keys() == measured["untrained"]["sram_error"].keys() == layers
    assert measured["ablation"].keys() == layers
    assert all(measured["ablation"].values())
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 64, 4 * 64)
    assert measured["trained"]["psnr"] != measured["untrained"]["psnr"]
    assert measured["trained"]["object_area"] == pytest.approx(1)  # the white square that is held out


def test_an_untrained_pipeline_has_the_same_shape_and_other_weights() -> None:
    trained = build_joint_pipeline(layers=(1, 1), heads=2, head_channels=16, size=64)
    torch.manual_seed(0)
    fresh = evaluate.untrained(trained)
    first, second = trained.transformer.state_dict(), fresh.transformer.state_dict()
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    assert not torch.equal(first["x_embedder.weight"], second["x_embedder.weight"])
