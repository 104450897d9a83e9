"""`attrace demo` leaves a trace, its pictures and its scores, with a made trace in place of the bundled model's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from support.commands import box_mask, examples_of, noise_picture
from support.traces import make_trace

import attrace.demo.run
from attrace.analysis import imacs, open_trace
from attrace.cli import main

from .conftest import Run


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def _small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made trace in place of the bundled model, which is slow and has tests of its own."""

    def made(path: Path, *, reference: Path | None, seed: int, steps: int, overwrite: bool) -> Path:
        assert reference is None or reference.name == "photo.png"
        random = np.random.default_rng(seed)
        images: dict[str, Any] = {
            name: random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("generated", "reference")
        }
        if overwrite and path.exists():
            shutil.rmtree(path)
        return make_trace(path, steps=steps, images=images | {"mask": np.asarray(box_mask(64))}).path

    monkeypatch.setattr(attrace.demo.run, "record_demo", made)


@pytest.mark.usefixtures("_small_demo")
def test_demo_leaves_a_trace_pictures_and_scores(run: Run) -> None:
    result = run("demo", "-o", "out", "--steps", 5)
    printed = succeeded(result)
    levels = ("ulam", "tlam", "hlam", "llam", "sram")
    maps = [f"{level}_{direction}.png" for direction in ("r2g", "g2r") for level in levels]
    files = ["demo.zarr", "generated.png", "report.html", *maps]
    for named in ("demo.zarr", "generated.png", "report.html", "*_r2g.png", "*_g2r.png"):
        assert f"out/{named} " in printed
    assert "6.2% if it were even" in printed
    score = imacs(open_trace("out/demo.zarr").ulam(direction="r2g"), np.asarray(box_mask(64)) > 0)
    assert f" {float(score):.3f} " in printed
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(files)
    assert open_trace("out/demo.zarr").steps == 5
    assert "recording" in result.stderr


@pytest.mark.usefixtures("_small_demo")
def test_the_score_of_the_demo_is_that_of_score(run: Run) -> None:
    printed = json.loads(succeeded(run("demo", "-o", "out", "--steps", 2, "--json")))["scores"]
    scored = json.loads(succeeded(run("score", "out/demo.zarr", "--json")))
    for name in ("ulam_r2g", "ulam_g2r"):
        assert printed[name] == scored[name]
    assert isinstance(printed["ulam_r2g"]["imacs"], float)


@pytest.mark.usefixtures("_small_demo")
def test_demo_overwrites_only_when_told(run: Run) -> None:
    Path("out/demo.zarr").mkdir(parents=True)
    refused = run("demo", "-o", "out", "--steps", 2)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    told = json.loads(succeeded(run("demo", "-o", "out", "--steps", 3, "--overwrite", "--json")))
    assert len(told["files"]) == 13
    assert set(told["scores"]) == {"ulam_r2g", "ulam_g2r"}
    assert open_trace("out/demo.zarr").steps == 3


@pytest.mark.parametrize("example", examples_of(main.commands["demo"]), ids=" ".join)
@pytest.mark.usefixtures("_small_demo")
def test_every_example_works(example: list[str], run: Run) -> None:
    noise_picture().save("photo.png")
    succeeded(run(*example))
