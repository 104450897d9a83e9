"""`attrace pull`: copy a trace from an address."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from attrace.cli.shared.options import LocalPath, examples, json_option
from attrace.cli.shared.output import bytes_text, check_output, chunk_progress, print_json, say, show


@click.command(epilog=examples("attrace pull s3://bucket/run.zarr pulled.zarr"))
@click.argument("url", metavar="URL")
@click.argument("trace", type=LocalPath("attrace pull copies to this machine, attrace push from it"), metavar="TRACE")
@json_option
def pull(url: str, trace: Path, as_json: bool) -> None:
    """Copy a trace from an address.

    Checks every checksum before the trace gets its name. Run the command again after an interruption.
    """
    from attrace.analysis.sharing.transfer import pull as pull_trace

    check_output(trace, overwrite=False)
    with chunk_progress("fetching") as progress:
        done = pull_trace(url, trace, progress=progress)
    if as_json:
        print_json({"trace": str(trace), **asdict(done)})
        return
    say(f"{done.sent} of {done.files} files fetched, {bytes_text(done.bytes_sent)}; the others were there")
    show(trace)
