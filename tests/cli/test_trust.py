"""`attrace verify`, `diff` and `repair`: what they print and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import zarr

from .conftest import Run


def find_query(trace: Path) -> str:
    return next(str(path.relative_to(trace)) for path in trace.glob("reference/*/query_vector"))


def test_verify_prints_the_content_id(run: Run, trace: Path) -> None:
    assert trace.is_dir()
    result = run("verify", "run.zarr")
    assert result.exit_code == 0
    told = json.loads(run("verify", "run.zarr", "--json").stdout)["content_id"]
    assert f"content {told}" in result.stdout
    assert len(told) == 64


def test_diff_of_a_trace_and_itself_packed(run: Run, trace: Path) -> None:
    assert trace.is_dir()
    assert run("pack", "run.zarr", "run.zip").exit_code == 0
    result = run("diff", "run.zarr", "run.zip")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(run("diff", "run.zarr", "run.zip", "--json").stdout) == {"same": True, "differences": []}


def test_diff_names_the_array_and_the_largest_difference(run: Run, trace: Path) -> None:
    assert run("pack", "run.zarr", "before.zip").exit_code == 0
    name = find_query(trace)
    query = zarr.open_group(trace)[name]
    assert isinstance(query, zarr.Array)
    query[0, 0, 0, 0, 0] = np.asarray(query[0, 0, 0, 0, 0]) + 1
    result = run("diff", "before.zip", "run.zarr", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["differences"]
    assert (found["kind"], found["place"], found["values"]) == ("values", name, 1)
    assert abs(found["largest"] - 1) < 1e-5
    assert run("diff", "before.zip", "run.zarr").stdout.startswith(f"{name}: values that differ: 1, by 1 at most")


def test_diff_of_what_is_no_trace(run: Run, trace: Path) -> None:
    (trace / "zarr.json").write_text("{}")
    assert run("diff", "run.zarr", "run.zarr").exit_code == 3


def test_repair_in_a_copy(run: Run, trace: Path) -> None:
    before = (trace / "zarr.json").read_bytes()
    result = run("repair", "run.zarr", "-o", "repaired.zarr")
    assert (result.exit_code, result.stdout) == (0, "repaired.zarr: 10 finished steps\n")
    assert run("diff", "run.zarr", "repaired.zarr").exit_code == 0
    assert (trace / "zarr.json").read_bytes() == before
