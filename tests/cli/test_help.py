"""Help texts: quick, the same as the documentation, and with examples that work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from support.commands import box_mask, examples_of, noise_picture

from attrace.cli import main
from attrace.cli.reference import command_reference
from attrace.cli.shared.options import CONTEXTS, DIRECTIONS, LEVELS, box, byte_size, kept_steps, pixel, size, step_range
from attrace.schemas import words

from .conftest import Run

ROOT = Path(__file__).parents[2]


BY_THEIR_OWN_TESTS = ("ablate", "demo", "faithfulness", "record", "view")
"""Commands whose examples are run by the tests beside theirs: they need torch, or run until they are stopped."""

EXAMPLES = [
    example for name, one in main.commands.items() if name not in BY_THEIR_OWN_TESTS for example in examples_of(one)
]


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *main.commands])
def test_every_command_has_help(run: Run, command: str, option: str) -> None:
    result = run(*command.split(), option)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")
    assert "Example" in result.stdout
    assert "attrace " in result.stdout


@pytest.mark.parametrize("command", main.commands.values(), ids=main.commands)
def test_every_option_says_what_it_does(command: click.Command) -> None:
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert [one.name for one in options if not one.help] == []
    assert len(command.get_short_help_str(80)) < 60


@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
@pytest.mark.usefixtures("trace")
def test_every_example_works(example: list[str], run: Run, memory: Any) -> None:
    box_mask().save("mask.png")
    noise_picture().save("truth.png")
    shutil.make_archive("packed", "zip", "run.zarr")
    Path("boxes.csv").write_text("name,top,left,bottom,right\nrun,8,4,24,20\n")
    coco = {"images": [{"id": 1, "file_name": "run.png"}], "annotations": [{"image_id": 1, "bbox": [4, 8, 16, 16]}]}
    Path("coco.json").write_text(json.dumps(coco))
    Path("weights.json").write_text('{"*": 1, "up_blocks.0": 2}')
    for copy in ("other.zarr", "before/1.zarr", "after/1.zarr"):
        shutil.copytree("run.zarr", copy)
    if example[0] in ("push", "pull"):
        memory.put(Path("run.zarr"), "memory://example/run.zarr")
    result = run(*(argument.replace("s3://bucket", "memory://example") for argument in example))
    assert result.exit_code == 0, (result.output, result.exception)


def test_the_documentation_has_every_command() -> None:
    assert (ROOT / "docs/commands.md").read_text(encoding="utf-8") == command_reference()


def test_the_words_are_those_of_the_schemas() -> None:
    assert LEVELS == words.LEVELS
    assert DIRECTIONS == words.DIRECTIONS
    assert CONTEXTS == words.CONTEXTS


def test_the_version_is_the_installed_one(run: Run) -> None:
    assert run("--version").stdout.split()[-1] == version("attrace")


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from click.testing import CliRunner
from attrace.cli import main
assert CliRunner().invoke(main, ["maps", "-h"]).exit_code == 0
heavy = {"torch", "diffusers", "numpy", "xarray", "dask", "matplotlib", "zarr", "pydantic", "PIL", "numba"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_command_loads_no_other() -> None:
    code = """
import sys
from click.testing import CliRunner
from attrace.cli import main
assert CliRunner().invoke(main, ["info", "-h"]).exit_code == 0
print(*(name for name in main.commands if name in {module.rpartition(".")[2] for module in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["info"]


def test_info_loads_what_metadata_takes(trace: Path) -> None:
    code = """
import sys
from click.testing import CliRunner
from attrace.cli import main
assert CliRunner().invoke(main, ["info", "run.zarr"]).exit_code == 0
heavy = {"torch", "xarray", "pandas", "dask", "matplotlib", "scipy", "numba"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=trace.parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("convert", "text", "expected"),
    [
        (size, "64x48", (64, 48)),
        (pixel, "120,96", (120, 96)),
        (box, "1,2,3,4", (1, 2, 3, 4)),
        (step_range, "7", 7),
        (step_range, "0:9", slice(0, 9)),
        (step_range, ":9", slice(None, 9)),
        (step_range, "5:", slice(5, None)),
        (kept_steps, "0,10,20", (0, 10, 20)),
        (kept_steps, "7", (7,)),
        (kept_steps, "0:9", slice(0, 10, None)),
        (kept_steps, "::4", slice(None, None, 4)),
        (kept_steps, ":", slice(None, None, None)),
        (byte_size, "500", 500),
        (byte_size, "1.5kB", 1500),
        (byte_size, "2GB", 2 * 10**9),
        (byte_size, "1GiB", 2**30),
    ],
)
def test_options_are_read(convert: object, text: str, expected: object) -> None:
    assert callable(convert)
    assert convert(text) == expected


@pytest.mark.parametrize(
    ("convert", "text"),
    [
        *[(size, text) for text in ("64", "64x", "x64", "64x0", "64x48x3", "axb")],
        *[(pixel, text) for text in ("1", "1,2,3", "-1,2", "1.5,2")],
        *[(box, text) for text in ("1,2,3", "3,2,3,4", "1,4,3,4")],
        *[(step_range, text) for text in ("", "a", "9:0", "1:2:3", "-1")],
        *[(kept_steps, text) for text in ("", "a", "9:0", "::0", "1:2:3:4", "-1", "1,", "1,2:3")],
        *[(byte_size, text) for text in ("", "GB", "-1", "2XB")],
    ],
)
def test_options_that_cannot_be_read_are_refused(convert: object, text: str) -> None:
    assert callable(convert)
    with pytest.raises(click.BadParameter, match="expected"):
        convert(text)
