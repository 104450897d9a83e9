"""The benchmarks run, and what they say of bytes and bits holds; what they say of time is not looked at."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def main_of(name: str) -> Callable[[list[str]], Any]:
    main: Callable[[list[str]], Any] = runpy.run_path(str(BENCHMARKS / name))["main"]
    return main


def test_recording_leaves_every_bit_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    timings = main_of("recording.py")(["--quick", "--rounds", "1", "--steps", "1", "--threads", "1"])
    identical = {name for name, timing in timings.items() if timing.identical}
    assert identical >= {"plain", "capture", "record (hooks)", "record (attention)"}
    assert "eager" in capsys.readouterr().out


def test_auto_is_never_above_the_smaller_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    sizes: dict[str, dict[str, float]] = {}
    for row in main_of("size.py")(["--quick", "--steps", "2"]):
        sizes.setdefault(row.workload.name, {})[row.encoding] = row.run_bytes
        assert row.step_bytes > 0
    for found in sizes.values():
        assert found["auto"] <= 1.01 * min(found["scores"], found["factors"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 * len(sizes)
