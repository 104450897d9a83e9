"""PASD and SeeSR: networks of ours with their names and calls."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.models import picture
from support.reading import read_array, read_manifest, read_scores
from support.research.restoration import StableDiffusionControlNetPipeline, UNet2DConditionModel
from support.truth import check_recording, kinds, true_scores
from torch import Tensor

from attrace.analysis import open_trace, ulam
from attrace.recorder import record
from attrace.recorder.labels.profile import named_profile

GUIDANCE = ("unconditional", "conditional")
DOCUMENT = Path(__file__).parents[3] / "docs" / "models.md"


def restore(unet: UNet2DConditionModel, tiles: int = 1) -> Tensor:
    """Two steps, each of so many tiles, in batches of the negative and the positive prompt."""
    random = torch.Generator().manual_seed(0)
    text, image = torch.randn(2, 9, 10, generator=random), torch.randn(2, 145, 6, generator=random)
    outputs = []
    with torch.no_grad():
        for timestep in (999.0, 499.0):
            for _ in range(tiles):
                sample = torch.randn(1, 4, 12, 16, generator=random).repeat(2, 1, 1, 1)
                pixels = tuple(torch.randn(2, 8, 6 * size, 8 * size, generator=random) for size in (1, 2))
                outputs.append(unet(sample, torch.tensor(timestep), text, pixels, image))
    return torch.stack(outputs)


@pytest.mark.supports("PASD")
@pytest.mark.parametrize("capture", ["hooks", "attention"])
@pytest.mark.parametrize("family", ["pasd", "pasd-light"])
def test_control_picture_lies_on_the_grid_of_the_queries(family: str, capture: str, tmp_path: Path) -> None:
    unet = UNet2DConditionModel(family)
    path = tmp_path / "run.zarr"
    found = check_recording(unet, unet, lambda: restore(unet), path, guidance=GUIDANCE, branch="both", capture=capture)
    assert read_manifest(path).capture["profile"] == "pasd"
    site = "pixel_attentions.0.transformer_blocks.0.attn2" if family == "pasd" else (
        "attentions.0.transformer_blocks.0.attn2_plus"
    )  # fmt: skip
    reference = {name: kinds(one) for name, one in found.items() if one.context == "reference"}
    assert reference == {
        f"up_blocks.0.{site}": [("patch", 48, (6, 8))],
        f"up_blocks.1.{site}": [("patch", 192, (12, 16))],
    }
    text = {name: kinds(one) for name, one in found.items() if one.context == "text"}
    assert list(text.values()) == [[("text", 9, None)]] * 2
    assert not any("attn1" in name for name in found)


@pytest.mark.supports("PASD")
def test_tiles_are_calls_of_their_own(tmp_path: Path) -> None:
    unet = UNet2DConditionModel("pasd")
    path = tmp_path / "run.zarr"
    check_recording(unet, unet, lambda: restore(unet, tiles=3), path, guidance=GUIDANCE)
    assert read_array(path, "timestep").tolist() == [999] * 3 + [499] * 3
    assert "each tile is a call of its own" in str(read_manifest(path).capture["warnings"])


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("pasd", marks=pytest.mark.supports("PASD")),
        pytest.param("seesr", marks=pytest.mark.supports("SeeSR")),
    ],
)
def test_the_place_of_a_tile_is_kept(family: str, tmp_path: Path) -> None:
    pipeline, path = StableDiffusionControlNetPipeline(family), tmp_path / "run.zarr"
    with record(pipeline, path, steps=slice(1, None)):
        pipeline("a cat", picture(64, 96), tile_size=4)
    places = [[top, left] for top in (0, 4) for left in (0, 4, 8)]
    assert read_manifest(path).capture["tiles"] == {
        str(call): place for call, place in enumerate(places * 2) if call > 0
    }
    trace = open_trace(path)
    scores = next(iter(trace.scores.children.values())).children
    one = next(iter(scores.values())).dataset["scores"]
    chosen = (one.tile_row == 4) & (one.tile_column == 8)
    calls = one.time[chosen].values.tolist()
    assert calls == [5, 11]
    assert trace.sel(time=calls).steps == 2
    assert float(ulam(trace.sel(time=calls), direction="r2g").sum()) > 0

    with record(pipeline, tmp_path / "whole.zarr"):
        pipeline("a cat", picture(64, 96))
    assert "tiles" not in read_manifest(tmp_path / "whole.zarr").capture
    assert "tile_row" not in open_trace(tmp_path / "whole.zarr").scores.coords


@pytest.mark.supports("PASD")
@pytest.mark.parametrize(
    ("options", "tile_size", "calls", "told"),
    [
        ({}, 4, 12, "for 12 steps of 1"),
        ({}, None, 2, "for 2 steps of 1"),
        ({"steps": slice(0, None, 2)}, 4, 6, "for 6 steps of 1"),
        ({"profile": replace(named_profile("pasd"), tile_counts=None)}, 4, 2, "for 2 steps of one tile of 1"),
    ],
)
def test_the_size_is_that_of_all_tiles(
    options: dict[str, Any], tile_size: int | None, calls: int, told: str, caplog: Any, tmp_path: Path
) -> None:
    pipeline = StableDiffusionControlNetPipeline("pasd")
    pipeline.scheduler = SimpleNamespace(timesteps=[999, 1])
    caplog.set_level("INFO", logger="attrace")
    with record(pipeline, tmp_path / "run.zarr", encoding="scores", **options) as recording:
        pipeline("a cat", picture(64, 96), tile_size=tile_size)
    statistics = recording.statistics
    assert statistics.estimated_bytes * statistics.steps == statistics.bytes_written * calls
    assert told in caplog.text


@pytest.mark.supports("SeeSR")
def test_guess_mode_has_the_conditional_branch_alone_in_the_control_network(tmp_path: Path) -> None:
    pipeline = StableDiffusionControlNetPipeline("seesr")
    with (
        true_scores(pipeline.controlnet) as truth,
        record(pipeline, tmp_path / "unet.zarr"),
        record(pipeline, tmp_path / "controlnet.zarr", network="controlnet"),
    ):
        pipeline("a cat", picture(64, 96), guess_mode=True)
    assert read_manifest(tmp_path / "unet.zarr").guidance.branches == GUIDANCE
    assert read_manifest(tmp_path / "controlnet.zarr").guidance.branches == ("conditional",)
    recorded = read_scores(tmp_path / "controlnet.zarr")
    assert recorded
    for (site, branch, *_), scores in recorded.items():
        assert branch == "conditional"
        np.testing.assert_allclose(scores, np.concatenate(truth[site]), atol=1e-5)


@pytest.mark.supports("SeeSR")
@pytest.mark.parametrize("capture", ["hooks", "attention"])
def test_image_embedding_is_a_class_token_and_patches(capture: str, tmp_path: Path) -> None:
    unet = UNet2DConditionModel("seesr")
    path = tmp_path / "run.zarr"
    found = check_recording(unet, unet, lambda: restore(unet), path, guidance=GUIDANCE, branch="both", capture=capture)
    reference = [one for one in found.values() if one.context == "reference"]
    assert [kinds(one) for one in reference] == [[("cls", 1, None), ("patch", 144, (12, 12))]] * 2
    assert [one.query_grid for one in reference] == [(6, 8), (12, 16)]


@pytest.mark.supports("SeeSR")
def test_two_networks_of_one_run(tmp_path: Path) -> None:
    class Pipeline:
        unet, controlnet = UNet2DConditionModel("seesr"), UNet2DConditionModel("seesr")

        def __call__(self) -> None:
            restore(self.controlnet)
            restore(self.unet)

    pipeline = Pipeline()
    with (
        record(pipeline, tmp_path / "unet.zarr", guidance=GUIDANCE),
        record(pipeline, tmp_path / "controlnet.zarr", guidance=GUIDANCE, network="controlnet"),
    ):
        pipeline()
    first, second = (read_scores(tmp_path / f"{name}.zarr") for name in ("unet", "controlnet"))
    assert first.keys() == second.keys()
    for site, scores in first.items():
        np.testing.assert_array_equal(scores, second[site])


def test_the_profile_that_the_documentation_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, section = DOCUMENT.read_text().partition("### A profile of your own\n")
    shell, code = (section.partition(f"```{name}\n")[2].partition("```")[0] for name in ("bash", "python"))
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-ec", shell], check=True)
    unet = UNet2DConditionModel("pasd-light")
    exec(code, {"unet": unet, "restore": restore})
    manifest = read_manifest(tmp_path / "run.zarr")
    contexts = {site.path.rpartition(".")[2]: one.context for one in manifest.classes for site in one.sites}
    assert contexts == {"attn2_plus": "reference", "attn2": "text"}
    assert manifest.guidance.branches == GUIDANCE
    assert manifest.capture["profile"] == "my-restorer"
    assert manifest.capture["warnings"] == ["the control picture is encoded anew in every step"]
