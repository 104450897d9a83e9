"""`attrace faithfulness` records, hides, generates again, and says what changed."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import Result
from support.commands import examples_of
from support.models import demo, picture

from attrace.analysis import open_trace, ulam
from attrace.analysis.scores.faithfulness import first_of, picture_change
from attrace.cli import main
from attrace.recorder.jobs import faithfulness
from attrace.recorder.jobs.faithfulness import regenerate
from attrace.recorder.jobs.pipelines import generate

from .conftest import INPUTS, Run

TEST = (
    *("faithfulness", "--pipeline", "pipeline", "--class", "attrace.demo.pipeline:ReferenceInpaintPipeline"),
    *("--steps", "2", "--shares", "0.5", "--draws", "2", "-o", "out"),
)
ONE = (
    *("--reference", "reference_image", "--mask", "mask_image"),
    *(part for name, file in INPUTS.items() for part in ("--input", f"{name}=@{file}.png")),
)


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.usefixtures("workplace")
def test_one_input_is_tested_against_its_own_map(run: Run) -> None:
    told = json.loads(succeeded(run(*TEST, *ONE, "--seed", 4, "--json")))
    assert told["fractions"] == [0, 0.5, 1]
    trace = open_trace("out/run.zarr")
    heat = ulam(trace, direction="g2r").compute()
    order = np.argsort(-heat.values.ravel(), kind="stable")
    grid = (heat.sizes["row"], heat.sizes["column"])
    hidden = [first_of(order, 0.5, grid), first_of(order[::-1], 0.5, grid), np.ones(grid, bool)]
    given = {name: PIL.Image.open(f"{file}.png") for name, file in INPUTS.items()}
    pictures = regenerate(demo(), given, "reference_image", hidden, seed=4, steps=2)
    mask = trace.images["mask"].values > 127
    top, bottom, every = (picture_change(one, trace.images["generated"].values, mask) for one in pictures)
    assert told["deletion"]["top"] == [[0, pytest.approx(top), pytest.approx(every)]]
    assert told["deletion"]["bottom"] == [[0, pytest.approx(bottom), pytest.approx(every)]]
    assert told["insertion_area"]["top"]["value"] == pytest.approx(told["deletion_area"]["bottom"]["value"])
    assert json.loads(Path("out/faithfulness.json").read_text()) == told
    with PIL.Image.open("out/faithfulness.png") as figure:
        assert figure.width > 500


@pytest.mark.usefixtures("workplace")
def test_a_list_of_inputs_is_recorded_once(run: Run) -> None:
    arguments = (*TEST, "--jobs", "jobs.jsonl", "--reference", "reference_image", "--mask", "mask_image")
    lines = list(csv.DictReader(succeeded(run(*arguments, "--csv")).splitlines()))
    assert {(line["input"], line["order"]) for line in lines} == {
        (name, order) for name in ("first", "second") for order in ("top", "random", "bottom")
    }
    recorded = open_trace("out/first.zarr").manifest.id
    table = succeeded(run(*arguments))
    assert open_trace("out/first.zarr").manifest.id == recorded
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["top", "random", "bottom"]
    assert "faithful above 1" in table


@pytest.mark.usefixtures("workplace")
def test_a_trace_of_another_picture_is_refused(run: Run) -> None:
    succeeded(run(*TEST, *ONE, "--seed", 4, "--json"))
    picture(seed=9).save("reference.png")
    result = run(*TEST, *ONE, "--seed", 4)
    assert result.exit_code == 1
    assert "another picture" in result.stderr
    assert "Traceback" not in result.stderr


class Runs:
    """Counts the calls of the model that hide patches or check that it repeats."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        patch.setattr(faithfulness, "generate", self._counted)

    def _counted(self, *arguments: Any) -> Any:
        self.count += 1
        return generate(*arguments)

    def take(self) -> int:
        """Calls since it was asked last."""
        taken, self.count = self.count, 0
        return taken


KILLED = """
import os, signal, sys
from attrace.cli import main
from attrace.recorder.jobs import faithfulness

made, calls = faithfulness.generate, []

def killed(*arguments):
    calls.append(arguments)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return made(*arguments)

faithfulness.generate = killed
main(sys.argv[1:])
"""
"""Runs the command, and kills it in the fourth of its six calls with hidden patches."""


@pytest.mark.usefixtures("workplace")
def test_a_killed_test_goes_on_where_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*TEST, *ONE, "--seed", "4")
    child = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    kept = Path("out/run.hidden.jsonl")
    assert len(kept.read_text().splitlines()) == 2  # after the one with nothing hidden
    with kept.open("a") as file:
        file.write('{"run": "0a1')  # as a loss of power may leave it
    runs = Runs(monkeypatch)
    told = json.loads(succeeded(run(*arguments, "--json")))
    assert runs.take() == 1 + 3  # nothing hidden, and what was left of five
    again = json.loads(succeeded(run(*arguments, "--json")))
    assert (runs.take(), again) == (0, told)
    whole = json.loads(succeeded(run(*("whole" if one == "out" else one for one in arguments), "--json")))
    assert runs.take() == 1 + 5
    assert whole == told


@pytest.mark.usefixtures("workplace")
def test_what_is_kept_is_of_the_same_test_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*TEST, *ONE, "--seed", "4")
    runs = Runs(monkeypatch)
    succeeded(run(*arguments))
    assert runs.take() == 1 + 5
    for extra, left in {
        ("--draws", "3"): 1,  # the random orders that were there are the first of them
        ("--shares", "0.25,0.5"): 4,
        ("--order-seed", "1"): 2,
        ("--fill", "blur"): 5,
        ("--whole",): 5,
        ("--density",): 0,  # every layer has as many keys: the same ranking
    }.items():
        succeeded(run(*arguments, *extra))
        assert (extra, runs.take()) == (extra, left and 1 + left)
    result = run(*arguments, "--layers", "up_blocks.*")
    assert result.exit_code == 1
    assert "recorded of all layers, not of --layers up_blocks.*" in result.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (ONE, "pass --seed"),
        (("--seed", "1", *ONE[2:]), "pass --reference"),
        (("--seed", "1", *ONE[2:], "--reference", "reference.png"), "pass --reference with the name of an input"),
        (("--seed", "1", *ONE, "--shares", "0.5,0.2"), "rising shares"),
        (("--seed", "1", *ONE, "--shares", "1"), "rising shares"),
        (("--seed", "1", *ONE, "--json", "--csv"), "not both"),
        (("--seed", "1", *ONE, "--fill", "black"), "'mean', 'blur', 'swap'"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_what_cannot_be_tested_is_refused(run: Run, extra: tuple[str, ...], message: str) -> None:
    result = run(*TEST, *extra)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("example", examples_of(main.commands["faithfulness"]), ids=" ".join)
@pytest.mark.usefixtures("workplace")
def test_every_example_works(example: list[str], run: Run) -> None:
    succeeded(run(*("2" if argument == "20" else argument for argument in example), "--shares", "0.5", "--draws", "1"))
