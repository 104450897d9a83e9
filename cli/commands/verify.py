"""`attrace verify`: check a trace."""

from __future__ import annotations

from dataclasses import asdict

import click

from attrace.cli.shared.errors import INVALID_TRACE
from attrace.cli.shared.options import examples, json_option, trace_argument
from attrace.cli.shared.output import chunk_progress, print_json, show


@click.command(epilog=examples("attrace verify run.zarr"))
@trace_argument
@json_option
@click.pass_context
def verify(ctx: click.Context, trace: str, as_json: bool) -> None:
    """Check every part of a trace against the format.

    Reads every chunk and checks structure, checksums, finite values and finished steps. Prints each problem with its
    array and chunk, and exits with 3 if there is one.
    """
    from attrace.analysis.integrity.verify import verify as check

    with chunk_progress("reading") as progress:
        report = check(trace, progress=progress)
    if as_json:
        print_json({**asdict(report), "valid": report.valid})
    else:
        for problem in report.problems:
            show(f"problem: {problem}")
        for note in report.notes:
            show(f"note: {note}")
        verdict = "valid" if report.valid else f"{len(report.problems)} problems"
        show(f"{trace}: {verdict}; {report.steps} steps, {report.arrays} arrays, {report.chunks} chunks read")
        if report.content_id is not None:
            show(f"content {report.content_id}")
    if not report.valid:
        ctx.exit(INVALID_TRACE)
