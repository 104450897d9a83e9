"""One trace has one IMACS: in the function, `score`, `aggregate`, `compare` and the report, whatever the options."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import attrace
from attrace.analysis import imacs, open_trace, ulam, write_report
from attrace.analysis.maps.masks import trace_mask

from .conftest import Run


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--no-density",),
        ("--size", "16x16"),
        ("--size", "16x16", "--no-density"),
        ("--weights", "mine.json"),
    ],
)
def test_every_command_gives_the_number_of_the_function(run: Run, trace: Path, options: tuple[str, ...]) -> None:
    shutil.copytree(trace, "again.zarr")
    opened = open_trace(trace)
    mask = trace_mask(opened)
    assert mask is not None
    size = (16, 16) if "--size" in options else None
    Path("mine.json").write_text('{"up_blocks.0": 0.25, "up_blocks.1": 3}')
    weights = "mine.json" if "--weights" in options else None
    heat = ulam(opened, size=size, density="--no-density" not in options, weights=weights)
    expected = pytest.approx(float(imacs(heat, mask)), rel=1e-6)

    score = json.loads(run("score", "run.zarr", *options, "--json").stdout)["ulam_r2g"]
    assert score["imacs"] == expected
    weighting = "plain weights" if "--no-density" in options else "density"
    weighting += ", weighted by mine.json" if weights else ""
    assert score["map"] == f"{weighting}, {'16 x 16' if size else '8 x 8'}"
    aggregated = run("aggregate", "run.zarr", "-o", "scores.csv", *options, "--json")
    assert json.loads(aggregated.stdout)["scores"]["imacs"]["mean"] == expected
    compared = run("compare", "run.zarr", "again.zarr", *options, "--json")
    assert json.loads(compared.stdout)["scores"]["imacs"]["a"] == expected
    if options in ((), ("--weights", "mine.json")):
        page = write_report(opened, "report.html", weights=weights).path.read_text()
        found = re.search(r"<td>imacs</td><td>([^<]*)</td><td>([^<]*)</td>", page)
        assert found is not None
        assert float(found[2]) == pytest.approx(float(imacs(heat, mask)), rel=1e-3)
        assert found[1] == f"r2g, {score['map']}"


NOTEBOOK = Path(__file__).parents[2] / "examples/walkthrough.ipynb"


@pytest.mark.skipif(not NOTEBOOK.exists(), reason="the examples are not beside the tests")
def test_the_notebook_gives_the_number_of_score(run: Run, trace: Path) -> None:
    """Its own cell, run on another trace."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    (cell,) = (one for one in notebook["cells"] if "imacs(" in "".join(one["source"]))
    names: dict[str, Any] = {name: getattr(attrace, name) for name in ("ulam", "hlam", "tlam")}
    names["trace"] = open_trace(trace)
    exec("".join(cell["source"]), names)
    score = json.loads(run("score", "run.zarr", "--json").stdout)["ulam_r2g"]
    assert float(names["scores"]["IMACS"]) == pytest.approx(score["imacs"], rel=1e-6)
