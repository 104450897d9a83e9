"""Every command that reads a trace, on every trace that was made to harm: an error, in little time and memory."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.documents import edit_document, seal_again
from support.hostile import NESTED, PEAK, with_more
from support.traces import make_trace

from attrace.cli import main

GROUP = "reference/64x16h2d8"

READING = {
    "aggregate": ("-o", "scores.csv"),
    "atlas": ("-o", "atlas.csv"),
    "compare": ("{trace}",),
    "detect": ("--boxes", "boxes.csv"),
    "diff": ("{trace}",),
    "export": ("-o", "out.npz"),
    "info": ("--layers",),
    "maps": ("-o", "maps.npz"),
    "pack": ("out.zip",),
    "plot": ("-o", "pictures"),
    "precompute": (),
    "push": ("memory://bucket/out.zarr",),
    "repair": (),
    "report": ("-o", "page.html"),
    "score": (),
    "sram": ("--at", "4,4", "-o", "sram.npz"),
    "unpack": ("out.zarr",),
    "verify": (),
}
"""What follows the trace."""

OTHERS = {"ablate", "demo", "faithfulness", "pull", "record", "view"}
"""Commands that run a model first or a server, or read an address: through the same store (tests/analysis/storage)."""

SCRIPT = (
    PEAK
    + """
import os, sys, time
from pathlib import Path
from click.testing import CliRunner
from attrace.cli import main
command, *options = sys.argv[2:]
for path in sorted(Path(sys.argv[1]).iterdir()):
    for raised in (False, True) if path.name.startswith("nested") else (False,):
        if raised:
            os.environ |= {"ATTRACE_MAX_METADATA_BYTES": str(2**27), "ATTRACE_MAX_EXPANSION": "10000"}
        begun = time.process_time()
        result = CliRunner().invoke(main, [command, str(path), *(one.replace("{trace}", str(path)) for one in options)])
        seconds, most = time.process_time() - begun, peak()
        os.environ.pop("ATTRACE_MAX_METADATA_BYTES", None), os.environ.pop("ATTRACE_MAX_EXPANSION", None)
        told = (path.name, raised, result.exit_code, seconds, most, result.output[-1000:], result.exception)
        assert result.exit_code in (0, 1, 2, 3) and isinstance(result.exception, SystemExit | None), told
        assert result.exit_code or path.suffix != ".zip", told  # folders hold what some commands need not read
        assert "Traceback" not in result.output, told
        assert seconds < 10 and most < 1024, told
"""
)
"""Runs a command on every trace of a folder, one after the other in one process."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of hostile traces."""
    folder, made = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("made") / "run.zarr"
    make_trace(made, images={"generated": np.zeros((8, 8, 3), np.uint8)}, status=None)
    text = (made / "zarr.json").read_text()
    for name, nested in NESTED.items():
        document = with_more(text, nested())
        with zipfile.ZipFile(folder / f"nested-{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zarr.json", document)
    for name, method in (("empty", zipfile.ZIP_STORED), ("lzma", zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", method) as archive:
            if name == "lzma":
                archive.writestr("zarr.json", text)
    (folder / "cut.zip").write_bytes((folder / "nested-depth.zip").read_bytes()[:-30])
    for length in (2**40, 2**62):
        long = make_trace(folder / f"long-{length}.zarr").path
        change = partial(dict.update, shape=[length, 2, 2, 64, 8])
        edit_document(long / GROUP / "query_vector/zarr.json", change)
        seal_again(long)
    many = make_trace(folder / "pictures.zarr", status=None).path
    images = zarr.open_group(many).require_group("images")
    for number in range(1001):
        images.create_group(str(number))
        (many / f"images/{number}/zarr.json").write_text(
            (many / "time/zarr.json").read_text().replace("time", "row").replace("int32", "uint8")
        )
    deep = make_trace(folder / "deep.zarr", status=None).path
    (deep / GROUP / "zarr.json").write_text("[" * 5_000_000)
    endless = make_trace(folder / "endless.zarr").path
    (endless / GROUP / "query_vector/c/0/0/0/0/0").unlink()
    (endless / GROUP / "query_vector/c/0/0/0/0/0").symlink_to("/dev/zero")
    return folder


def test_every_command_is_here() -> None:
    assert set(READING) | OTHERS == set(main.commands)


@pytest.mark.slow
@pytest.mark.parametrize("command", READING)
def test_below_ten_seconds_and_a_gibibyte(hostile: Path, tmp_path: Path, command: str) -> None:
    boxes = [f"{path.stem},0,0,4,4" for path in hostile.iterdir()]
    (tmp_path / "boxes.csv").write_text("\n".join(["name,top,left,bottom,right", *boxes]))
    arguments = [sys.executable, "-c", SCRIPT, str(hostile), command, *READING[command]]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
