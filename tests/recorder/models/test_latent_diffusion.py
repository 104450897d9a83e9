"""Paint-by-Example's original code, DCI-VTON and StableVITON: networks of ours with their names and calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from support.reading import read_array, read_manifest, read_scores
from support.research.ldm import (
    ControlLDM,
    CrossAttention,
    LatentDiffusion,
    MemoryEfficientCrossAttention,
)
from support.research.samplers import PLMSSampler, SeparatePLMSSampler
from support.truth import check_recording, kinds, true_scores
from torch import Tensor

from attrace.analysis import open_trace, ulam
from attrace.recorder import record
from attrace.schemas import InputError

SITES = [
    "input_blocks.1.1.transformer_blocks.0.attn2",
    "input_blocks.3.1.transformer_blocks.0.attn2",
    "middle_block.1.transformer_blocks.0.attn2",
    "output_blocks.1.1.transformer_blocks.0.attn2",
]


def paint(model: LatentDiffusion, scale: float, keys: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(0)
    latent, rest = torch.randn(1, 4, 8, 6, generator=random), torch.randn(1, 5, 8, 6, generator=random)
    context = torch.randn(1, keys, 12, generator=random)
    with torch.no_grad():
        return PLMSSampler(model).sample(
            3, 1, (4, 8, 6), context, latent, scale, torch.zeros_like(context), test_model_kwargs={"rest": rest}
        )[0]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param("paint-by-example-ldm", 5.0, marks=pytest.mark.supports("Paint-by-Example, original code")),
        pytest.param("dci-vton", 1.0, marks=pytest.mark.supports("DCI-VTON")),
        pytest.param("dci-vton", 3.0, marks=pytest.mark.supports("DCI-VTON")),
    ],
)
def test_einsum_attention_to_one_key(name: str, scale: float, tmp_path: Path) -> None:
    model = LatentDiffusion()
    path = tmp_path / "run.zarr"
    found = check_recording(model, model.model.diffusion_model, lambda: paint(model, scale), path, profile=name)
    assert sorted(found) == SITES
    assert {site.split(".")[0]: one.query_grid for site, one in found.items()} == {
        "input_blocks": (4, 3), "middle_block": (4, 3), "output_blocks": (8, 6),
    }  # fmt: skip
    assert all(one.context == "reference" and kinds(one) == [("cls", 1, None)] for one in found.values())
    manifest = read_manifest(path)
    assert manifest.guidance.branches == (("conditional",) if scale == 1 else ("unconditional", "conditional"))
    assert (manifest.steps, manifest.capture["method"], manifest.capture["profile"]) == (4, "hooks", name)
    timesteps = read_array(path, "timestep").tolist()
    assert timesteps[1] == timesteps[2]  # PLMS's extra call
    trace = open_trace(path)
    assert float(ulam(trace, direction="r2g").sum()) > 0
    with pytest.raises(InputError, match="one key"):
        ulam(trace, direction="g2r")


def test_probabilities_are_those_that_the_einsum_gave(tmp_path: Path) -> None:
    model = LatentDiffusion()
    module = model.model.diffusion_model.get_submodule(SITES[0])
    assert isinstance(module, CrossAttention)
    with record(model, tmp_path / "run.zarr", profile="paint-by-example-ldm", layers=SITES[0], branch="both"):
        paint(model, 5.0, keys=17)
    found = read_scores(tmp_path / "run.zarr")
    for (_, branch, *_), scores in found.items():
        row = ("unconditional", "conditional").index(branch)
        truth = np.stack([one[row].numpy() for one in module.probabilities])
        np.testing.assert_allclose(softmax(scores, -1), truth, rtol=1e-5)


def dress(model: ControlLDM, scale: float = 1.0, samples: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(0)
    latent, rest, cloth = (torch.randn(samples, channels, 8, 6, generator=random) for channels in (4, 5, 4))
    vector = torch.randn(samples, 1, 12, generator=random)
    given = {"c_concat": [cloth], "first_stage_cond": rest, "c_crossattn": [vector]}
    without = given | {"c_crossattn": [torch.zeros_like(vector)]}
    with torch.no_grad():
        return SeparatePLMSSampler(model).sample(2, samples, (4, 8, 6), given, latent, scale, without)[0]


@pytest.mark.supports("StableVITON")
@pytest.mark.parametrize("kind", [CrossAttention, MemoryEfficientCrossAttention])
def test_cloth_lies_on_the_grid_of_the_queries_and_its_vector_apart(kind: Any, tmp_path: Path) -> None:
    model = ControlLDM(kind=kind)
    path = tmp_path / "run.zarr"
    found = check_recording(model, model.model.diffusion_model, lambda: dress(model), path)
    assert read_manifest(path).capture["profile"] == "stableviton"
    cloth = {site: one for site, one in found.items() if one.context == "reference"}
    assert {site: kinds(one) for site, one in cloth.items()} == {
        "warp_flow_blks.0.transformer_blocks.0.attn2": [("patch", 12, (4, 3))],
        "warp_flow_blks.1.transformer_blocks.0.attn2": [("patch", 48, (8, 6))],
    }
    assert all(one.query_grid == one.key_segments[0].grid for one in cloth.values())
    vector = {site: one for site, one in found.items() if one.context == "image-prompt"}
    assert sorted(vector) == SITES
    assert all(kinds(one) == [("cls", 1, None)] for one in vector.values())
    for one in {one.group: one for one in cloth.values() if one.encoding == "factors"}.values():
        assert read_array(path, f"{one.group}/key_step")[:, 0].tolist() == [0, 1, 1]  # they change with the timestep


@pytest.mark.supports("StableVITON")
def test_the_control_network_is_a_recording_of_its_own(tmp_path: Path) -> None:
    model = ControlLDM()
    with (
        record(model, tmp_path / "denoiser.zarr"),
        record(model, tmp_path / "control.zarr", network="control_model") as control,
    ):
        dress(model)
    assert control.statistics.steps == 3
    paths = [site.path for one in read_manifest(tmp_path / "control.zarr").classes for site in one.sites]
    assert sorted(paths) == SITES[:2]
    with pytest.raises(InputError, match="no torch module of that name"):
        record(model, tmp_path / "none.zarr", network="controlnet")


@pytest.mark.supports("StableVITON")
@pytest.mark.parametrize("branch", ["conditional", "both"])
def test_branches_that_are_called_one_by_one_make_one_step(branch: str, tmp_path: Path) -> None:
    model, path = ControlLDM(), tmp_path / "run.zarr"
    expected = dress(model, scale=5.0)
    with true_scores(model.model.diffusion_model) as truth, record(model, path, branch=branch):
        found = dress(model, scale=5.0)
    assert torch.equal(found, expected)
    manifest = read_manifest(path)
    assert manifest.guidance.branches == ("conditional", "unconditional")
    assert (manifest.guidance.scale, manifest.steps) == (5.0, 3)
    recorded = read_scores(path)
    assert {key[1] for key in recorded} == (
        {"conditional"} if branch == "conditional" else {*manifest.guidance.branches}
    )
    for (site, kept, *_), scores in recorded.items():
        first = manifest.guidance.branches.index(kept)
        np.testing.assert_allclose(scores, np.concatenate(truth[site][first::2]), atol=1e-5)


@pytest.mark.supports("StableVITON")
def test_a_batch_is_not_taken_for_branches(tmp_path: Path) -> None:
    model = ControlLDM()
    with pytest.raises(InputError, match="pass 2 paths"), record(model, tmp_path / "run.zarr"):
        dress(model, scale=5.0, samples=2)


def test_an_unknown_profile_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dci-vton.*stableviton"):
        record(LatentDiffusion(), tmp_path / "run.zarr", profile="viton")
