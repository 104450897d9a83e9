"""`attrace repair`: close a trace whose recorder was killed."""

from __future__ import annotations

from pathlib import Path

import click

from attrace.cli.shared.options import LocalPath, examples, trace_argument
from attrace.cli.shared.output import show


@click.command(epilog=examples("attrace repair run.zarr", "attrace repair run.zarr -o repaired.zarr"))
@trace_argument
@click.option(
    "-o",
    "--output",
    type=LocalPath("repair a copy here, then attrace push it"),
    metavar="DIR",
    help="Repair a copy there.",
)
def repair(trace: str, output: Path | None) -> None:
    """Complete an interrupted trace to a valid shorter one.

    Keeps every finished step, removes what was begun after the last one, and writes the metadata anew, in place or in a
    copy. Do not use it on a trace that is still being recorded.
    """
    from attrace.analysis.integrity.repair import repair as complete

    steps = complete(trace, output)
    show(f"{output or trace}: {steps} finished steps")
