from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.traces import make_trace, site_class

from attrace.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty folder: `run("info", "run.zarr")`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTRACE_DEBUG", raising=False)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def made_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made trace with pictures, and with two contexts: a reference of 4 x 4 patches, and a text."""
    random = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    images = {
        "generated": random.integers(0, 256, (32, 32, 3), dtype=np.uint8),
        "reference": random.integers(0, 256, (32, 32, 3), dtype=np.uint8),
        "mask": mask,
    }
    classes = (
        site_class(layers=("up_blocks.0.attn2", "up_blocks.1.attn2"), cls=True),
        site_class(
            "text/64x3h2d8",
            key_grid=None,
            keys=3,
            key_segments=({"kind": "text", "count": 3},),
            tokens=("a", "red", "cat"),
        ),
    )
    return make_trace(tmp_path_factory.mktemp("made") / "run.zarr", classes, steps=10, images=images).path


@pytest.fixture
def trace(made_trace: Path, tmp_path: Path) -> Path:
    """The made trace as `run.zarr` in the folder that the command runs in."""
    return Path(shutil.copytree(made_trace, tmp_path / "run.zarr"))


INPUTS = {"image": "scene", "mask_image": "mask", "reference_image": "reference"}
"""Arguments of the demo's pipeline, and the pictures in the workplace that they take."""


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.models import demo  # needs torch

    folder = tmp_path_factory.mktemp("models") / "pipeline"
    demo().save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(saved_pipeline: Path, tmp_path: Path) -> Path:
    """A folder with a pipeline, pictures, and a list of two inputs."""
    from support.models import box_mask, picture

    (tmp_path / "pipeline").symlink_to(saved_pipeline)
    for seed, name in enumerate(("scene", "reference", "other")):
        picture(seed=seed).save(tmp_path / f"{name}.png")
    box_mask().save(tmp_path / "mask.png")
    jobs = [
        {"id": name, "seed": seed, "inputs": {one: f"@{file}.png" for one, file in (INPUTS | {"image": scene}).items()}}
        for seed, (name, scene) in enumerate({"first": "scene", "second": "other"}.items())
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    return tmp_path
