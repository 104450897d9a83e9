"""`attrace compare` prints paired differences, writes a page, and says what it left out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from support.traces import make_trace, site_class

from .conftest import Run


@pytest.fixture
def two(trace: Path) -> Path:
    """Two sets of two traces, one of each from another seed."""
    classes = (site_class(layers=("up_blocks.0.attn2", "up_blocks.1.attn2"), cls=True),)
    for side in ("a", "b"):
        shutil.copytree(trace, trace.parent / side / "1.zarr")
        make_trace(trace.parent / side / "2.zarr", classes, steps=10, seed=ord(side))
    return trace.parent


@pytest.mark.usefixtures("two")
def test_tables_are_printed_and_a_page_is_written(run: Run) -> None:
    result = run("compare", "a", "b", "--size", "8x8", "--top", 1, "--html", "page.html")
    assert result.exit_code == 0, (result.output, result.exception)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["score", "a", "b", "difference", "low", "high", "pairs", "better"]
    imacs = next(line.split() for line in lines if line.startswith("imacs "))
    assert imacs[1] == imacs[2]
    assert imacs[6] == "1"  # only one pair has a mask
    assert sum(line.startswith("layer_distance_r2g") for line in lines) == 1
    assert "2 pairs" in result.stderr
    assert Path("page.html").read_text().startswith("<!doctype html>")
    assert "--overwrite" in run("compare", "a", "b", "--html", "page.html").stderr


@pytest.mark.usefixtures("two")
def test_json_and_csv_tell_the_same(run: Run) -> None:
    told = json.loads(run("compare", "a", "b", "--size", "8x8", "--json").stdout)
    assert told["pairs"] == ["1", "2"]
    lines = list(csv.DictReader(run("compare", "a", "b", "--size", "8x8", "--csv").stdout.splitlines()))
    by_name = {(line["score"], line["of"]): line for line in lines}
    drift = told["scores"]["drift_r2g"]
    assert drift["difference"] != 0
    assert float(by_name["drift_r2g", ""]["difference"]) == pytest.approx(drift["difference"])
    first = told["changes"]["entropy_r2g"][0]
    assert float(by_name["entropy_r2g", first["of"]]["low"]) == pytest.approx(first["low"])
    assert run("compare", "a", "b", "--json", "--csv").exit_code == 2


def test_a_trace_without_partner_is_named_and_a_broken_one_fails(run: Run, two: Path) -> None:
    shutil.move(two / "b/2.zarr", two / "b/3.zarr")
    result = run("compare", "a", "b", "--size", "8x8", "--json")
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)["unpaired"]) == {"a/2.zarr", "b/3.zarr"}
    assert "no partner" in result.stderr
    shutil.move(two / "b/3.zarr", two / "b/2.zarr")
    (two / "b/2.zarr/zarr.json").write_text("{")
    result = run("compare", "a", "b", "--size", "8x8", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["pairs"] == ["1"]
    assert "b/2.zarr" in result.stderr


@pytest.mark.usefixtures("two")
def test_what_cannot_be_compared_is_refused(run: Run) -> None:
    assert "there is no such file" in run("compare", "a", "none").stderr
    result = run("compare", "a", "run.zarr")
    assert result.exit_code == 2
    assert "pair them by inputs" in result.stderr
