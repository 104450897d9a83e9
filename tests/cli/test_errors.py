"""Every error is one clear line on stderr, with the exit code of its kind and no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zarr
from click.testing import Result
from support.documents import seal_again

import attrace.cli
from attrace.cli.shared.errors import Usage, recorder_needed
from attrace.cli.shared.output import csv_cell

from .conftest import Run

READING = {"info": (), "verify": (), "maps": ("-o", "new.npz"), "plot": ("-o", "figures")}
"""Commands that read a trace, with what they need."""


def failed(result: Result, code: int) -> str:
    """What a command that must fail with a code says on stderr; nothing may be on stdout."""
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("command", READING)
def test_nothing_there(run: Run, command: str) -> None:
    error = failed(run(command, "missing.zarr", *READING[command]), 1)
    assert "no trace at missing.zarr" in error


@pytest.mark.parametrize("command", READING)
def test_a_store_that_is_no_trace(run: Run, command: str, tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    error = failed(run(command, "other.zarr", *READING[command]), 3)
    assert "other.zarr is not an attrace trace" in error


@pytest.mark.parametrize("command", READING)
def test_a_newer_version_of_the_format(run: Run, command: str, trace: Path) -> None:
    document = json.loads((trace / "zarr.json").read_text())
    document["attributes"]["attrace"]["version"] = "9.0"
    (trace / "zarr.json").write_text(json.dumps(document))
    error = failed(run(command, "run.zarr", *READING[command]), 3)
    assert "written in version 9.0" in error
    assert "upgrade attrace" in error


@pytest.mark.parametrize("command", ["maps", "plot"])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--layers", "mid.*", "has no layer 'mid.*'"),
        ("--heads", "7", "has no head 7"),
        ("--steps", "50:60", "has no time"),
        ("--branch", "unconditional", "has no branch 'unconditional'"),
        ("--context", "self", "has no context 'self'"),
    ],
)
@pytest.mark.usefixtures("trace")
def test_a_label_that_names_nothing(run: Run, command: str, option: str, value: str, message: str) -> None:
    assert message in failed(run(command, "run.zarr", *READING[command], option, value), 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "64"),
        ("--size", "0x4"),
        ("--steps", "a:b"),
        ("--steps", "9:3"),
        ("--level", "xlam"),
        ("--heads", "-1"),
    ],
)
@pytest.mark.usefixtures("trace")
def test_an_option_that_cannot_be_read(run: Run, option: str, value: str) -> None:
    assert f"Invalid value for '{option}'" in failed(run("maps", "run.zarr", "-o", "new.npz", option, value), 2)


@pytest.mark.usefixtures("trace")
def test_a_direction_without_a_map(run: Run) -> None:
    error = failed(run("maps", "run.zarr", "-o", "new.npz", "--context", "text", "--direction", "g2r"), 2)
    assert "lie on no grid" in error


@pytest.mark.usefixtures("trace")
def test_an_output_that_is_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "new.npz").write_text("precious")
    assert "--overwrite" in failed(run("maps", "run.zarr", "-o", "new.npz"), 1)
    assert (tmp_path / "new.npz").read_text() == "precious"
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/llam_g2r.png").write_text("precious")
    assert "--overwrite" in failed(run("plot", "run.zarr", "-o", "figures"), 1)
    assert (tmp_path / "figures/llam_g2r.png").read_text() == "precious"


@pytest.mark.usefixtures("trace")
def test_a_folder_of_others_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "work.zarr").mkdir()
    (tmp_path / "work.zarr/thesis.txt").write_text("precious")
    error = failed(run("maps", "run.zarr", "-o", "work.zarr", "--overwrite"), 1)
    assert "did not write" in error
    assert (tmp_path / "work.zarr/thesis.txt").read_text() == "precious"


@pytest.mark.usefixtures("trace")
def test_a_trace_is_never_overwritten_by_its_maps(run: Run, tmp_path: Path) -> None:
    failed(run("maps", "run.zarr", "-o", "run.zarr", "--overwrite"), 1)
    assert (tmp_path / "run.zarr/step_done").is_dir()


@pytest.mark.usefixtures("trace")
def test_an_output_in_no_folder(run: Run) -> None:
    assert "there is no folder" in failed(run("maps", "run.zarr", "-o", "nowhere/new.npz"), 1)


@pytest.mark.usefixtures("trace")
def test_an_output_of_another_kind(run: Run) -> None:
    assert ".npz, .zarr, .nc" in failed(run("maps", "run.zarr", "-o", "new.csv"), 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize(
    "arguments", [("maps", "run.zarr", "-o", "sealed/new.npz"), ("plot", "run.zarr", "-o", "sealed/a")]
)
@pytest.mark.usefixtures("trace")
def test_a_folder_that_is_read_only(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "sealed").mkdir(mode=0o500)
    assert "Permission denied" in failed(run(*arguments), 1)


@pytest.mark.usefixtures("trace")
def test_an_output_below_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    error = failed(run("plot", "run.zarr", "-o", "file/figures"), 1)
    assert "file/figures" in error


@pytest.mark.parametrize("reason", [(28, "No space left on device"), (30, "Read-only file system")])
@pytest.mark.usefixtures("trace")
def test_a_disk_that_takes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, reason: tuple[int, str]) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(*reason, "new.npz")

    monkeypatch.setattr("numpy.savez", refused)
    assert f"{reason[1]}: new.npz" in failed(run("maps", "run.zarr", "-o", "new.npz"), 1)


def test_a_damaged_chunk(run: Run, trace: Path) -> None:
    chunk = trace / "reference/64x16h2d8/query_vector/c/3/0/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    assert "c/3/0/0/0/0" in failed(run("maps", "run.zarr", "-o", "new.npz"), 3)


def test_a_bug_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("attrace.analysis.open_trace", broken)
    assert isinstance(run("info", "run.zarr").exception, ZeroDivisionError)


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(run("--debug", "info", "missing.zarr").exception, FileNotFoundError)
    monkeypatch.setenv("ATTRACE_DEBUG", "1")
    assert isinstance(run("info", "missing.zarr").exception, FileNotFoundError)


def test_a_missing_recorder_says_how_to_install_it() -> None:
    with pytest.raises(Usage, match=r'pip install "attrace\[record\]"'), recorder_needed("record"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    with pytest.raises(ModuleNotFoundError, match="numpyy"), recorder_needed("record"):
        raise ModuleNotFoundError("No module named 'numpyy'", name="numpyy")


MISSING = {
    "obstore": ("info", "s3://bucket/run.zarr"),
    "huggingface_hub": ("info", "hf://datasets/owner/name/run.zarr"),
    "distributed": ("aggregate", "run.zarr", "-o", "statistics.csv", "--scheduler", "tcp://127.0.0.1:1"),
    "torch": ("precompute", "run.zarr", "--device", "cpu"),
}
"""What is not part of the package alone, and a command that needs it."""


@pytest.mark.parametrize("name", MISSING)
def test_what_an_extra_installs_is_asked_for_as_wrong_usage(
    run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert trace.is_dir()
    with_it = {name, "attrace.analysis.kernels.torch_kernel"}  # what an earlier test may have imported
    for module in [one for one in sys.modules if one in with_it or one.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    error = failed(run(*MISSING[name]), 2)
    assert "pip install" in error
    assert len(error.splitlines()) == 1


def test_parquet_asks_for_its_library(run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace.is_dir()
    monkeypatch.setattr("attrace.cli.commands.aggregate.find_spec", lambda _: None)
    assert "needs pyarrow" in failed(run("aggregate", "run.zarr", "-o", "scores.parquet"), 2)


def test_a_folder_of_one_trace_names_it(run: Run, trace: Path) -> None:
    trace.rename(trace.parent / "demo.zarr")
    error = failed(run("info", "."), 3)
    assert "did you mean demo.zarr?" in error
    (trace.parent / "other.zip").touch()
    assert "check it" in failed(run("info", "."), 3)


STEERING = "\x1b]0;owned\x07\x9b2J\nfake line\u202e\r=cmd"


@pytest.fixture
def hostile(trace: Path) -> Path:
    """A trace whose texts and layers hold terminal escapes and line breaks."""
    document = json.loads((trace / "zarr.json").read_text())
    manifest = document["attributes"]["attrace"]
    manifest["denoiser"]["model_id"] = STEERING
    for site in manifest["classes"][0]["sites"]:
        site["path"] = f"={site['path']}\u202e"  # the format allows no other controls there
    (trace / "zarr.json").write_text(json.dumps(document))
    seal_again(trace)
    return trace


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "run.zarr"),
        ("info", "run.zarr", "--layers"),
        ("info", "run.zarr", "--json"),
        ("verify", "run.zarr"),
        ("score", "run.zarr", "--csv"),
        ("maps", "run.zarr", "-o", "maps.npz", "--layers", "none"),
        ("diff", "run.zarr", "run.zarr"),
    ],
    ids=" ".join,
)
def test_text_of_a_trace_steers_neither_terminal_nor_spreadsheet(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    printed = result.stdout + result.stderr
    assert not set("\x1b\x07\x9b\u202e\r") & set(printed)
    assert not any(line.startswith(("fake", "=")) for line in printed.splitlines())
    assert arguments[0] != "info" or r"\u001b]0;owned" in printed


def test_no_text_of_a_table_is_a_formula() -> None:
    assert [csv_cell(one) for one in ("=1+1", "+1", "-1", "@a", "\t=1", "a=1", -1.5)] == [
        *("'=1+1", "'+1", "'-1", "'@a", r"\t=1", "a=1"),
        -1.5,
    ]


def test_streams_and_exit_code_of_the_installed_command(trace: Path) -> None:
    command = Path(sys.executable).with_name("attrace")
    done = subprocess.run([command, "info", trace], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 finished steps" in done.stdout
    done = subprocess.run([command, "info", trace / "none"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: no trace at")
    done = subprocess.run([command, "verify", trace.parent], capture_output=True, text=True)
    assert done.returncode == 3
    done = subprocess.run([command, "verify"], capture_output=True, text=True)
    assert done.returncode == 2


def test_every_line_is_printed_where_it_is_escaped() -> None:
    folder = Path(attrace.cli.__file__).parent
    prints = {path.name for path in folder.rglob("*.py") if re.search(r"click\.echo|csv\.writer", path.read_text())}
    assert prints == {"output.py", "reference.py"}
