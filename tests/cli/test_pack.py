"""`attrace pack` and `attrace unpack`: what they print, their options, and every reading command on a packed trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.server import serving

from attrace.analysis import open_trace
from attrace.analysis.storage.zip_files import TAIL_BYTES

from .conftest import Run

pytestmark = pytest.mark.usefixtures("trace")


def test_a_part_of_a_trace_says_what_it_lacks(run: Run) -> None:
    Path("cite.bib").write_text("@misc{me,\n  year = {2026}}\n")
    packed = run(
        *("pack", "run.zarr", "run.zip", "--without", "images,prompts", "--layers", "up_blocks.1.*", "--steps", "2:4"),
        *("--codec", "zstd-3", "--licence", "CC0-1.0", "--citation", "@cite.bib"),
    )
    assert packed.exit_code == 0, packed.output
    assert packed.stdout == "run.zip\n"
    told = run("info", "run.zip").stdout
    for line in (
        "left out   images, prompts, 3 layers, 7 steps, of trace ",
        "licence    CC0-1.0",
        "citation   @misc{me, year = {2026}}",
        "3 finished steps",
    ):
        assert line in told
    assert run("unpack", "run.zip", "again.zarr").stdout == "again.zarr\n"
    assert run("verify", "again.zarr").exit_code == 0
    assert open_trace("again.zarr").layers == ("up_blocks.1.attn2",)


def test_maps_alone_are_drawn_and_scores_refused(run: Run) -> None:
    assert run("pack", "run.zarr", "run.zip", "--only", "derived").exit_code == 2
    assert run("precompute", "run.zarr").exit_code == 0
    assert run("pack", "run.zarr", "run.zip", "--only", "derived").exit_code == 0
    assert run("maps", "run.zip", "-o", "maps.npz").exit_code == 0
    refused = run("sram", "run.zip", "--at", "1,1")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "derived maps only" in refused.stderr


@pytest.mark.parametrize(
    "option", [("--codec", "lz4"), ("--without", "scores"), ("--without", ","), ("--steps", "90:")]
)
def test_wrong_usage(run: Run, option: tuple[str, str]) -> None:
    assert run("pack", "run.zarr", "run.zip", *option).exit_code == 2
    assert not Path("run.zip").exists()


def test_nothing_is_replaced_unasked(run: Run) -> None:
    for expected, extra in ((0, ()), (1, ()), (0, ("--overwrite",))):
        assert run("pack", "run.zarr", "run.zip", *extra).exit_code == expected
        assert run("unpack", "run.zip", "again.zarr", *extra).exit_code == expected


def test_every_reading_command_reads_the_packed_trace(run: Run) -> None:
    assert run("pack", "run.zarr", "run.zip").exit_code == 0
    assert json.loads(run("verify", "run.zip", "--json").stdout)["valid"] is True
    for command in (
        ("info", "run.zip"),
        ("maps", "run.zip", "-o", "maps.npz"),
        ("sram", "run.zip", "--at", "1,1"),
        ("plot", "run.zip", "-o", "figures", "--level", "ulam"),
        ("score", "run.zip"),
    ):
        assert run(*command).exit_code == 0
    refused = run("precompute", "run.zip")
    assert refused.exit_code == 2
    assert "attrace unpack" in refused.stderr


def test_info_of_an_address_reads_the_end_of_the_file_only(run: Run) -> None:
    pytest.importorskip("obstore")
    assert run("pack", "run.zarr", "run.zip").exit_code == 0
    with serving(Path()) as served:
        told = run("info", f"{served.address}/run.zip", "--json")
        assert told.exit_code == 0, told.output
        assert served.sent <= TAIL_BYTES
        missing = run("info", f"{served.address}/none.zip")
    assert json.loads(told.stdout)["bytes_by_group"]["images"] > 0
    assert (missing.exit_code, missing.stderr.count("\n")) == (1, 1)
    assert run("info", f"{served.address}/run.zip").stderr.count("\n") == 1
