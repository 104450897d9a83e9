"""`attrace push` and `attrace pull`: a trace to an address, and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from attrace.cli.shared.options import LocalPath, examples, json_option, trace_argument
from attrace.cli.shared.output import bytes_text, check_output, chunk_progress, print_json, say

url_argument = click.argument("url", metavar="URL")


@click.command(epilog=examples("attrace push run.zarr memory://shared/run.zarr"))
@trace_argument
@url_argument
@json_option
def push(trace: str, url: str, as_json: bool) -> None:
    """Copy a trace to an address.

    Such as s3://, gs://, hf://datasets/owner/name/run.zarr, or a packed trace to one that ends in .zip. Skips what is
    there with the same size and checksum, and reads back what it sent: run it again after an interruption.
    """
    from attrace.analysis.sharing.transfer import push as push_trace

    with chunk_progress("sending") as progress:
        done = push_trace(trace, url, progress=progress)
    if as_json:
        print_json({"url": url, **asdict(done)})
        return
    say(f"{done.sent} of {done.files} files sent, {bytes_text(done.bytes_sent)}; the others were there")
    click.echo(url)


@click.command(epilog=examples("attrace pull memory://example/run.zarr pulled.zarr"))
@url_argument
@click.argument("trace", type=LocalPath("attrace pull copies to this machine, attrace push from it"), metavar="TRACE")
@json_option
def pull(url: str, trace: Path, as_json: bool) -> None:
    """Copy a trace from an address.

    Checks every checksum before the trace gets its name; run it again after an interruption.
    """
    from attrace.analysis.sharing.transfer import pull as pull_trace

    check_output(trace, overwrite=False)
    with chunk_progress("fetching") as progress:
        done = pull_trace(url, trace, progress=progress)
    if as_json:
        print_json({"trace": str(trace), **asdict(done)})
        return
    say(f"{done.sent} of {done.files} files fetched, {bytes_text(done.bytes_sent)}; the others were there")
    click.echo(str(trace))
