"""`attrace view`: what it serves, opens and prints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.commands import examples_of

from attrace.cli.commands.view import view

from .conftest import Run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Servers that were started; each is stopped at once, as by Ctrl-C."""
    found: list[Any] = []

    def stop(server: Any) -> None:
        found.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr("attrace.analysis.explorer.server.LiveView.serve_forever", stop)
    monkeypatch.setattr("webbrowser.open", found.append)
    return found


@pytest.mark.usefixtures("trace")
def test_it_prints_its_address_and_opens_a_browser(run: Run, served: list[Any]) -> None:
    result = run("view", "run.zarr", "--context", "text")
    assert result.exit_code == 0, result.output
    address, server = served
    assert result.stdout == f"{address}\n"
    assert address == server.address
    assert [one.context for one in server.traces] == ["text"]
    assert "stopped" in result.stderr


@pytest.mark.parametrize("example", examples_of(view), ids=" ".join)
@pytest.mark.usefixtures("trace")
def test_every_example_works(run: Run, served: list[Any], memory: Any, example: list[str]) -> None:
    memory.put(Path("run.zarr"), "memory://example/run.zarr")
    for copy in ("runs/a.zarr", "runs/b.zarr"):
        shutil.copytree("run.zarr", copy)
    result = run(*(argument.replace("s3://bucket", "memory://example") for argument in example))
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(served[-1].traces) == (2 if "runs/*.zarr" in example else 1)


@pytest.mark.usefixtures("trace")
def test_what_is_no_trace_is_refused(run: Run, served: list[Any]) -> None:
    assert run("view", "missing.zarr").exit_code == 1
    assert run("view", "run.zarr", "--layers", "none").exit_code == 2
    assert served == []
