"""The benchmarks run, and what they say of bytes and bits holds; what they say of time is not looked at."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def main_of(name: str) -> Callable[[list[str]], Any]:
    main: Callable[[list[str]], Any] = runpy.run_path(str(BENCHMARKS / name))["main"]
    return main


def test_recording_leaves_every_bit_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    timings = main_of("recording.py")(["--quick", "--rounds", "1", "--steps", "1", "2", "--threads", "1"])
    identical = {name for name, timing in timings.items() if timing.identical}
    assert identical >= {"plain", "capture", "record (hooks)", "record (attention)"}
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    growth, memory = ["run", "---", "at first", "2 x steps"], ["way", "---", "plain", "record (hooks)", "eager"]
    assert rows == ["way", "---", *timings, *growth, *memory]


def test_auto_is_never_above_the_smaller_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    sizes: dict[str, dict[str, float]] = {}
    for row in main_of("size.py")(["--quick", "--steps", "2"]):
        sizes.setdefault(row.workload.name, {})[row.encoding] = row.run_bytes
        assert row.step_bytes > 0
    for found in sizes.values():
        assert found["auto"] <= 1.01 * min(found["scores"], found["factors"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3 * len(sizes)


def test_a_shuffle_makes_values_of_every_model_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    rows = main_of("codecs.py")(["--quick"])
    for model in ("bfloat16", "float16", "float32"):
        sizes = {row.way.partition(":")[0]: row.value_bytes for row in rows if row.model == model}
        assert sizes["auto"] < 0.95 * sizes["zstd"], model
        if model == "bfloat16":
            assert sizes["auto"] < sizes["its 2 bytes alone, zstd"] < 2
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_the_writer_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = main_of("writer.py")(["--quick"])
    assert speeds.keys() == {"plain files", "trace, auto", "trace, zstd", "trace, none"}
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(speeds)


def test_a_cluster_that_reads_from_an_object_store_gives_the_same_bits(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("obstore")
    if shutil.which("rclone") is None:
        pytest.skip("no rclone, whose `serve s3` is the server")
    threads, cluster = main_of("many.py")(["--quick"])
    assert (threads.where, cluster.where) == ("threads, disk", "2 workers, S3")
    assert threads.sums == cluster.sums
    printed = capfd.readouterr()
    assert "equal to the last bit" in printed.out
    assert printed.err == ""


def test_one_command_prints_the_page() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "kernel", "analysis"]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert " cores (" in lines[0]
    assert [line for line in lines if line.startswith("## ")] == [
        "## The kernel, on one core, in ns per score",
        "## One trace, from the disk to its maps",
    ]
    rows = [line.count("|") for line in lines if line.startswith("|")]
    threads = len([line for line in lines if line.endswith(" x |")])
    assert len(rows) == (2 + 2) + (2 + 7) + (2 + threads) + (2 + 2)
    assert threads >= 2
    assert done.stderr == ""
