"""`--values` records what contribution maps need, and `--contribution` takes it in every command that maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.exact import random_calls, with_values, write_calls
from support.traces import site_class

from attrace.analysis import imacs, open_trace, ulam
from attrace.analysis.maps.masks import trace_mask

from .conftest import Run

STEPS = 5


@pytest.fixture
def with_contributions(tmp_path: Path) -> Path:
    one = site_class(layers=("up_blocks.0.attn2", "up_blocks.1.attn2"), cls=True, channels=16)
    random = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    pictures = {name: random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("generated", "reference")}
    calls, outputs = with_values([one], random_calls([one], STEPS), static=True)
    images = pictures | {"mask": mask}
    return write_calls(tmp_path / "run.zarr", (one,), calls, steps=STEPS, outputs=outputs, images=images)


def test_every_command_gives_the_number_of_the_function(run: Run, with_contributions: Path) -> None:
    shutil.copytree(with_contributions, "again.zarr")
    assert "factors float32 and values" in run("info", "run.zarr").stdout
    trace = open_trace(with_contributions)
    mask = trace_mask(trace)
    assert mask is not None
    heat = ulam(trace, contribution=True)
    expected = pytest.approx(float(imacs(heat, mask)), rel=1e-6)
    assert expected != float(imacs(ulam(trace), mask))

    score = json.loads(run("score", "run.zarr", "--contribution", "--json").stdout)["ulam_r2g"]
    assert (score["imacs"], score["map"]) == (expected, "contribution, density, 8 x 8")
    aggregated = json.loads(run("aggregate", "run.zarr", "-o", "scores.csv", "--contribution", "--json").stdout)
    assert aggregated["scores"]["imacs"]["mean"] == expected
    compared = json.loads(run("compare", "run.zarr", "again.zarr", "--contribution", "--json").stdout)
    assert compared["scores"]["imacs"]["a"] == expected
    written = run("maps", "run.zarr", "-o", "maps.npz", "--contribution", "--json")
    assert json.loads(written.stdout)["maps"]["ulam_r2g"]["quantity"] == "contribution"
    with np.load("maps.npz") as maps:
        np.testing.assert_allclose(maps["ulam_r2g"], heat, rtol=1e-6)
    for command in (("sram", "--at", "9,9"), ("plot", "--level", "ulam", "--level", "sram", "-o", "figures")):
        result = run(command[0], "run.zarr", *command[1:], "--contribution")
        assert result.exit_code == 0, (result.output, result.exception)


def test_a_trace_without_values_is_told(run: Run, trace: Path) -> None:
    assert trace.exists()
    for command in (("maps", "-o", "maps.npz"), ("score",), ("sram", "--at", "9,9"), ("plot", "-o", "figures")):
        result = run(command[0], "run.zarr", *command[1:], "--contribution")
        assert result.exit_code != 0
        assert "holds no values" in result.stderr
        assert "attrace record --values" in result.stderr
        assert "Traceback" not in result.stderr
    refused = run("maps", "run.zarr", "-o", "maps.npz", "--compat", "i2am", "--contribution")
    assert refused.exit_code == 2
