"""`attrace ablate` measures, keeps and prints effects, and the commands that make maps take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import Result
from support.commands import examples_of
from support.models import box_mask, demo, picture

import attrace
from attrace.cli import main
from attrace.recorder.jobs import effects as effects_module
from attrace.recorder.jobs.pipelines import generate

from .conftest import INPUTS, Run

MODEL = ("--pipeline", "pipeline", "--class", "attrace.demo.pipeline:ReferenceInpaintPipeline", "--steps", "2")
ABLATE = ("ablate", *MODEL, "--mask", "mask_image", "-o", "effects.nc")
ONE = ("--seed", "4", *(part for name, file in INPUTS.items() for part in ("--input", f"{name}=@{file}.png")))


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.usefixtures("workplace")
def test_effects_are_those_of_the_function(run: Run) -> None:
    told = json.loads(succeeded(run(*ABLATE, "--jobs", "jobs.jsonl", "--json")))
    given = {"reference_image": picture(seed=1), "mask_image": box_mask(), "num_inference_steps": 2}
    inputs = [given | {"image": picture(seed=seed)} for seed in (0, 2)]
    mask = np.asarray(box_mask()) > 127
    changes = attrace.ablate(demo(), inputs, seeds=[0, 1], masks=[mask, mask], names=["first", "second"])
    expected = attrace.effects(changes)
    found = xr.load_dataset("effects.nc")
    xr.testing.assert_identical(found["effect"].astype("float64"), expected["effect"])
    by_layer = {one["layer"]: one for one in told["effects"]}
    assert list(by_layer) == expected["effect"].sortby(-expected["effect"])["layer"].values.tolist()
    for layer, one in by_layer.items():
        assert one["effect"] == pytest.approx(float(expected["effect"].sel(layer=layer)))
        assert one["low"] <= one["effect"] <= one["high"]
    assert told["region"] == "inside"
    assert not Path("effects.nc.runs.jsonl").exists()


@pytest.mark.usefixtures("workplace")
def test_heads_of_a_layer_go_into_a_trace_and_into_maps(run: Run) -> None:
    succeeded(run("record", *MODEL, *ONE, "--reference", "reference_image", "--mask", "mask_image", "-o", "run.zarr"))
    table = succeeded(run(*ABLATE, *ONE, "--heads", "--into", "run.zarr"))
    header, *rows = [line.split() for line in table.splitlines()]
    assert header == ["layer", "head", "effect", "low", "high"]
    assert len(rows) == 14
    assert all(row[3:] == ["-", "-"] for row in rows)  # one input has no interval
    by_effect = json.loads(succeeded(run("score", "run.zarr", "--weights", "effect", "--json")))
    by_file = json.loads(succeeded(run("score", "run.zarr", "--weights", "effects.nc", "--json")))
    plain = json.loads(succeeded(run("score", "run.zarr", "--json")))
    assert by_effect["ulam_g2r"]["map"] == "density, weighted by effect, 16 x 16"
    assert by_effect["ulam_g2r"]["entropy"] == by_file["ulam_g2r"]["entropy"] != plain["ulam_g2r"]["entropy"]


@pytest.mark.usefixtures("workplace")
def test_the_same_command_goes_on_where_it_was_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    count, most = 0, 5

    def counted(*arguments: Any) -> Any:
        nonlocal count
        if count == most:
            raise KeyboardInterrupt
        count += 1
        return generate(*arguments)

    monkeypatch.setattr(effects_module, "generate", counted)
    assert run(*ABLATE, *ONE).exit_code == 1
    assert not Path("effects.nc").exists()
    count, most = 0, 100
    succeeded(run(*ABLATE, *ONE))
    assert count == 4  # the picture with all attention, and the three layers that were left


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ((*ABLATE, *ONE[2:]), 2, "pass --seed"),
        ((*ABLATE[:-1], "effects.json", *ONE), 2, "ends in .nc"),
        ((*ABLATE, *ONE, "--context", "text"), 2, "the attention of the model is to reference"),
        ((*ABLATE, *ONE, "--into", "nowhere.zarr"), 1, "no trace at"),
        ((*ABLATE, *ONE, "--layers", "side.*"), 2, "no attention module matches 'side.*'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(run: Run, arguments: tuple[str, ...], code: int, problem: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("workplace")
def test_the_published_maps_take_no_weights(run: Run, trace: Path) -> None:
    result = run("maps", trace, "-o", "maps.npz", "--compat", "i2am", "--weights", "effect")
    assert (result.exit_code, "--weights" in result.stderr) == (2, True)


@pytest.mark.usefixtures("workplace")
def test_its_examples_work(run: Run) -> None:
    succeeded(run("record", *MODEL, *ONE, "--reference", "reference_image", "--mask", "mask_image", "-o", "run.zarr"))
    for example in examples_of(main.commands["ablate"]):
        succeeded(run(*example, "--steps", 2))
