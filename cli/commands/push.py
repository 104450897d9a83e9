"""`attrace push`: copy a trace to an address."""

from __future__ import annotations

from dataclasses import asdict

import click

from attrace.cli.shared.options import examples, json_option, trace_argument
from attrace.cli.shared.output import bytes_text, chunk_progress, print_json, say, show


@click.command(epilog=examples("attrace push run.zarr s3://bucket/run.zarr"))
@trace_argument
@click.argument("url", metavar="URL")
@json_option
def push(trace: str, url: str, as_json: bool) -> None:
    """Copy a trace to an address.

    For example to s3://, gs:// or hf://datasets/owner/name/run.zarr; a packed trace goes to an address that ends in
    .zip. Skips files that are there with the same size and checksum, and reads back what it sent. Run the command
    again after an interruption.
    """
    from attrace.analysis.sharing.transfer import push as push_trace

    with chunk_progress("sending") as progress:
        done = push_trace(trace, url, progress=progress)
    if as_json:
        print_json({"url": url, **asdict(done)})
        return
    say(f"{done.sent} of {done.files} files sent, {bytes_text(done.bytes_sent)}; the others were there")
    show(url)
