"""The reading side works where torch is not installed: shown by forbidding its import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.traces import make_trace

FORBID = """
import importlib, importlib.abc, pkgutil, sys

class Forbidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Forbidden())
"""


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", FORBID + code, *arguments], capture_output=True, text=True)


def _output(code: str, *arguments: str) -> str:
    """What code that must run prints; it must not say anything on stderr."""
    done = _run(code, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_guard_forbids() -> None:
    done = _run("import attrace.demo.model")
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_reading_modules_import() -> None:
    _output("""
import attrace.analysis, attrace.cli, attrace.recorder.writing.store, attrace.schemas
for package in (attrace.analysis, attrace.cli, attrace.schemas):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name != "attrace.analysis.kernels.torch_kernel":
            importlib.import_module(module.name)
""")


def test_recording_says_what_to_install() -> None:
    done = _run("import attrace; attrace.record")
    last = done.stderr.splitlines()[-1]
    assert last == "ModuleNotFoundError: attrace.record needs torch: pip install 'attrace[record]'"
    assert "During handling" not in done.stderr


def test_every_help_text_shows() -> None:
    _output("""
from attrace.cli import main
from click.testing import CliRunner
for arguments in [["--help"], *([name, "--help"] for name in main.commands)]:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and result.output.startswith("Usage:"), (arguments, result.output, result.exception)
assert len(main.commands) > 5
""")


def test_a_device_needs_torch(tmp_path: Path) -> None:
    made = make_trace(tmp_path / "run.zarr")
    done = _run("from attrace.cli import main; main()", "precompute", "--device", "cuda", str(made.path))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: device='cuda' needs torch: pip install 'attrace[record]'")


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_reading_command_reads(command: str, tmp_path: Path) -> None:
    made = make_trace(tmp_path / "run.zarr")
    assert _output("from attrace.cli import main; main()", command, str(made.path))
