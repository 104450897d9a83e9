"""The script for published research code, on checkouts that hold small networks of ours under its names."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.models import picture
from support.reading import read_manifest

from attrace.analysis import open_trace

SCRIPT = Path(__file__).parents[2] / "examples" / "research_code.py"

LDM = """
import argparse, torch
from support.research.ldm import LatentDiffusion
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler

parser = argparse.ArgumentParser()
parser.add_argument("--plms", action="store_true")
parser.add_argument("--scale", type=float)
parser.add_argument("--n_samples", type=int, default=1)
opt = parser.parse_args()
model, n = LatentDiffusion(), opt.n_samples
random = torch.Generator().manual_seed(0)
sampler = (PLMSSampler if opt.plms else DDIMSampler)(model)
with torch.no_grad():
    samples, _ = sampler.sample(
        S=2, conditioning=torch.randn(n, 1, 12, generator=random), batch_size=n, shape=[4, 8, 6],
        unconditional_guidance_scale=opt.scale,
        unconditional_conditioning=None if opt.scale == 1 else torch.zeros(n, 1, 12),
        x_T=torch.randn(n, 4, 8, 6, generator=random),
        test_model_kwargs={"rest": torch.randn(n, 5, 8, 6, generator=random)},
    )
torch.save(samples, "samples.pt")
"""
VITON = """
import argparse, torch
from cldm.plms_hacked import PLMSSampler
from support.research.ldm import ControlLDM

parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int)
n = parser.parse_args().batch_size
given = {"c_crossattn": [torch.randn(n, 1, 12)], "c_concat": [torch.randn(n, 4, 8, 6)]}
given["first_stage_cond"] = torch.randn(n, 5, 8, 6)
with torch.no_grad():
    for _ in range(2):
        sampler = PLMSSampler(ControlLDM())
        sampler.sample(2, n, (4, 8, 6), given, torch.randn(n, 4, 8, 6), unconditional_conditioning=given)
"""
RESTORER = """
import argparse
from PIL import Image
from {module} import StableDiffusionControlNetPipeline

parser = argparse.ArgumentParser()
parser.add_argument("--image_path")
image = Image.open(parser.parse_args().image_path).convert("RGB")
StableDiffusionControlNetPipeline("{family}")("a cat", image, num_inference_steps=2, guidance_scale=5.5)
"""
PIPELINE = "from support.research.restoration import StableDiffusionControlNetPipeline"
SAMPLERS = {
    "ldm/models/diffusion/plms.py": "from support.research.samplers import PLMSSampler",
    "ldm/models/diffusion/ddim.py": "class DDIMSampler:\n    def sample(self): ...",
}
CHECKOUTS = {
    "paint-by-example-ldm": {"scripts/inference.py": LDM, **SAMPLERS},
    "dci-vton": {"test.py": LDM, **SAMPLERS},
    "stableviton": {
        "inference.py": VITON,
        "cldm/plms_hacked.py": "from support.research.samplers import SeparatePLMSSampler as PLMSSampler",
    },
    "pasd": {
        "test_pasd.py": RESTORER.format(module="pasd.pipelines.pipeline_pasd", family="pasd"),
        "pasd/pipelines/pipeline_pasd.py": PIPELINE,
    },
    "seesr": {
        "test_seesr.py": RESTORER.format(module="pipelines.pipeline_seesr", family="seesr"),
        "pipelines/pipeline_seesr.py": PIPELINE,
    },
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to work in; what the script changes of the interpreter is put back."""
    from support.research import restoration, samplers

    picture(64, 96).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for owner in (samplers.PLMSSampler, samplers.SeparatePLMSSampler):
        monkeypatch.setattr(owner, "sample", samplers.PLMSSampler.sample)
    pipeline = restoration.StableDiffusionControlNetPipeline
    monkeypatch.setattr(pipeline, "__call__", pipeline.__call__)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("ldm", "cldm", "pasd", "pipelines"):
            del sys.modules[name]


def run(family: str, *arguments: str) -> None:
    for name, text in CHECKOUTS[family].items():
        file = Path("checkout", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    main = runpy.run_path(str(SCRIPT))["main"]
    main([family, "--checkout", "checkout", "--reference", "photo.png", "-o", "runs", "--", *arguments])


@pytest.mark.parametrize(
    ("family", "arguments", "context", "branches"),
    [
        pytest.param(family, arguments, context, branches, marks=pytest.mark.supports(row), id=row)
        for row, family, arguments, context, branches in (
            (
                "Paint-by-Example, original code", "paint-by-example-ldm", ["--plms", "--scale", "5"],
                {"reference"}, ("unconditional", "conditional"),
            ),
            ("DCI-VTON", "dci-vton", ["--plms", "--scale", "1"], {"reference"}, ("conditional",)),
            ("StableVITON", "stableviton", ["--batch_size", "1"], {"reference", "image-prompt"}, ("conditional",)),
            (
                "PASD", "pasd", ["--image_path", "../photo.png"],
                {"reference", "text"}, ("unconditional", "conditional"),
            ),
            (
                "SeeSR", "seesr", ["--image_path", "../photo.png"],
                {"reference", "text"}, ("unconditional", "conditional"),
            ),
        )
    ],
)  # fmt: skip
def test_its_own_script_is_recorded(
    family: str, arguments: list[str], context: set[str], branches: tuple[str, ...], tmp_path: Path
) -> None:
    run(family, *arguments)
    manifest = read_manifest(tmp_path / "runs" / f"{family}-0.zarr")
    assert (manifest.status, manifest.capture["profile"]) == ("complete", family)
    assert {one.context for one in manifest.classes} == context
    assert manifest.guidance.branches == branches
    assert manifest.image_size == ((64, 96) if family in ("pasd", "seesr") else (64, 48))
    assert open_trace(tmp_path / "runs" / f"{family}-0.zarr").images["reference"].shape == (64, 96, 3)
    assert len(list((tmp_path / "runs").iterdir())) == (2 if family == "stableviton" else 1)


def test_a_batch_gives_a_trace_for_each_picture(tmp_path: Path) -> None:
    run("dci-vton", "--plms", "--scale", "1", "--n_samples", "2")
    first, second = (
        open_trace(tmp_path / "runs" / f"dci-vton-{number}.zarr").images["generated"].values for number in range(2)
    )
    assert not np.array_equal(first, second)
