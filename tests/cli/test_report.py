"""`attrace report`: the file that it writes, what it says of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from .conftest import Run


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.usefixtures("trace")
def test_it_writes_a_page_and_says_what(run: Run) -> None:
    told = json.loads(succeeded(run("report", "run.zarr", "-o", "r.html", "--groups", 2, "--title", "Two", "--json")))
    page = Path("r.html")
    assert told == {
        "path": "r.html",
        "bytes": page.stat().st_size,
        "contexts": ["reference", "text"],
        "grids": {"r2g": [8, 8], "g2r": [4, 4]},
        "groups": 2,
        "levels": 255,
        "heads_apart": True,
        "coarser": False,
    }
    assert "<title>Two</title>" in page.read_text(encoding="utf-8")
    assert succeeded(run("report", "run.zarr", "-o", "r.html", "--context", "text", "--overwrite")) == "r.html\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-o", "run.zarr"), 1, "--overwrite"),
        (("-o", "none/r.html"), 1, "no folder"),
        (("-o", "r.html", "--groups", "11"), 2, "expected 1 to 10 groups"),
        (("-o", "r.html", "--limit", "1kB"), 2, "limit"),
        (("-o", "r.html", "--context", "self"), 2, "self"),
    ],
)
@pytest.mark.usefixtures("trace")
def test_it_refuses(run: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run("report", "run.zarr", *arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert message in result.stderr
    assert result.stdout == ""
    assert not Path("r.html").exists()
