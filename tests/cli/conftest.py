from __future__ import annotations

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
