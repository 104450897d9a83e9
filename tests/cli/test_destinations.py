"""Where results go: to a path or an address, whole or not at all; a command that needs a path says so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from support.rclone import rclone_serving

from attrace.analysis.sharing.transfer import UNFINISHED
from attrace.analysis.storage.object_files import ObjectFiles
from attrace.cli import main

from .conftest import Run

pytest.importorskip("obstore")

ADDRESS = "s3://bucket/result"

HERE_ONLY = {
    "aggregate": ("run.zarr", "-o", "stats.csv", "--parts"),
    "demo": ("-o",),
    "faithfulness": ("--pipeline", "x", "-o"),
    "pack": ("run.zarr",),
    "plot": ("run.zarr", "-o"),
    "pull": ("memory://a/run.zarr",),
    "repair": ("run.zarr", "-o"),
    "report": ("run.zarr", "-o"),
    "unpack": ("run.zip",),
}
"""Commands, and arguments after which a path on this machine is expected."""

IN_PLACE = ("precompute", "repair")
"""Commands that write into the trace that they are given."""

ANYWHERE = {
    "aggregate": ("run.zarr", "--size", "8x8", "-o", "stats.csv"),
    "atlas": ("run.zarr", "--groups", "1", "-o", "atlas.csv"),
    "compare": ("run.zarr", "run.zarr", "--size", "8x8", "--html", "page.html"),
    "export": ("run.zarr", "-o", "run.npz"),
    "maps": ("run.zarr", "--level", "ulam", "-o", "maps.npz"),
    "sram": ("run.zarr", "--at", "8,8", "-o", "sram.png"),
}
"""Commands, and arguments that write one file, whose name is the last."""

OTHERS = {"ablate", "detect", "diff", "info", "push", "record", "score", "verify", "view"}
"""Commands that write no result, or to an address by nature; of `ablate`, `record` and `view` see their own tests."""


def test_every_command_has_its_place() -> None:
    assert {*HERE_ONLY, *IN_PLACE, *ANYWHERE, *OTHERS} == set(main.commands)


@pytest.mark.parametrize(("command", "arguments"), HERE_ONLY.items())
@pytest.mark.usefixtures("trace")
def test_a_path_is_asked_for(command: str, arguments: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    result = run(command, *arguments, ADDRESS)
    assert result.exit_code == 2, (result.output, result.exception)
    assert f"expected a path on this machine, found the address {ADDRESS}: " in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("command", IN_PLACE)
def test_a_trace_at_an_address_is_not_written_into(command: str, run: Run, trace: Path, memory: Any) -> None:
    memory.put(trace, "memory://run.zarr")
    before = memory.contents()
    result = run(command, "memory://run.zarr")
    assert result.exit_code == 2, (result.output, result.exception)
    assert f"attrace pull it, {command} it, and attrace push it" in result.stderr
    assert memory.contents() == before


@pytest.mark.parametrize(("command", "arguments"), ANYWHERE.items())
@pytest.mark.usefixtures("trace")
def test_the_same_file_lands_at_an_address(
    command: str, arguments: tuple[str, ...], run: Run, tmp_path: Path, memory: Any
) -> None:
    *others, name = arguments
    address = f"memory://results/{name}"
    assert run(command, *others, name).exit_code == 0
    result = run(command, *others, address)
    assert result.exit_code == 0, (result.output, result.exception)
    assert memory.contents()[f"results/{name}"] == (tmp_path / name).read_bytes()
    again = run(command, *others, address)
    assert again.exit_code == 1
    assert f"{address} exists: choose another address, or pass --overwrite" in again.stderr
    assert run(command, *others, address, "--overwrite").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run.zarr", name}


@pytest.fixture(params=["s3", "webdav"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An address of a real server that can be written to; its files lie in `served/bucket`."""
    (tmp_path / "served/bucket").mkdir(parents=True)
    with rclone_serving(request.param, tmp_path / "served") as address:
        yield f"{address}/bucket"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def two(trace: Path) -> Path:
    for name in ("a", "b"):
        shutil.copytree(trace, trace.parent / "runs" / f"{name}.zarr")
    return trace.parent


@pytest.mark.usefixtures("two")
def test_statistics_on_a_server_are_those_on_disk(run: Run, server: str, tmp_path: Path) -> None:
    arguments = ("aggregate", "runs", "--size", "8x8", "-o")
    assert run(*arguments, "stats.zarr").exit_code == 0
    result = run(*arguments, f"{server}/stats.zarr")
    assert result.exit_code == 0, (result.output, result.exception)
    assert files(tmp_path / "served/bucket/stats.zarr") == files(tmp_path / "stats.zarr")
    assert not (tmp_path / "stats.zarr.parts").exists()
    assert "pass --overwrite" in run(*arguments, f"{server}/stats.zarr").stderr
    other = run("aggregate", "runs", "--size", "4x4", "-o", f"{server}/stats.zarr", "--overwrite")
    assert other.exit_code == 0, (other.output, other.exception)
    with xr.open_zarr(tmp_path / "served/bucket/stats.zarr", consolidated=False) as stats:
        assert {stats["ulam_mean"].sizes[dim] for dim in ("row", "column")} == {4}


@pytest.mark.usefixtures("two")
def test_nothing_is_done_twice_after_an_interruption(
    run: Run, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("aggregate", "runs", "--size", "8x8", "-o", f"{server}/stats.zarr")
    there = tmp_path / "served/bucket/stats.zarr"
    sent: list[str] = []
    write = ObjectFiles.write

    def breaking(self: ObjectFiles, name: str, content: bytes | Path) -> None:
        if len(sent) == 5:
            raise ConnectionError("the network is gone")
        sent.append(name)
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectFiles, "write", breaking)
        assert "the network is gone" in run(*arguments).stderr
    assert len(list((tmp_path / "stats.zarr.parts").glob("*.nc"))) == 1  # copies of one trace contribute the same
    assert UNFINISHED in sent
    assert not (there / "zarr.json").exists()
    half, again = set(files(there)), list[str]()
    monkeypatch.setattr("attrace.analysis.studies.trace_statistics.trace_statistics", None)

    def told(self: ObjectFiles, name: str, content: bytes | Path) -> None:
        again.append(name)
        write(self, name, content)

    monkeypatch.setattr(ObjectFiles, "write", told)
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert half.isdisjoint(again)
    assert {*again, *half} - {UNFINISHED} == set(files(there))
    assert not (tmp_path / "stats.zarr.parts").exists()


@pytest.mark.usefixtures("two")
def test_only_what_attrace_wrote_is_replaced(run: Run, server: str, tmp_path: Path) -> None:
    mine = tmp_path / "served/bucket/mine.zarr/.zgroup"
    mine.parent.mkdir()
    mine.write_text("{}")
    for option in ((), ("--overwrite",)):
        result = run("aggregate", "runs", "-o", f"{server}/mine.zarr", *option)
        assert result.exit_code == 1
        assert ("did not write" if option else "pass --overwrite") in result.stderr
    assert [path.name for path in mine.parent.iterdir()] == [".zgroup"]
    run("push", "runs/a.zarr", f"{server}/run.zarr")
    assert "did not write" in run("aggregate", "runs", "-o", f"{server}/run.zarr", "--overwrite").stderr


def test_parts_can_lie_elsewhere(run: Run, two: Path) -> None:
    (two / "runs/a.zarr/zarr.json").write_text("{")
    result = run("aggregate", "runs", "-o", "stats.csv", "--size", "8x8", "--parts", "kept/here")
    assert result.exit_code == 1
    assert len(list((two / "kept/here").glob("*.nc"))) == 1
    assert not (two / "stats.csv.parts").exists()


def test_an_address_of_this_machine_is_a_path(run: Run, trace: Path) -> None:
    assert run("maps", "run.zarr", "--level", "ulam", "-o", f"file://{trace.parent}/maps.npz").exit_code == 0
    assert (trace.parent / "maps.npz").exists()
