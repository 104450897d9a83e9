"""`attrace unpack`: a packed trace as a folder again."""

from __future__ import annotations

from pathlib import Path

import click

from attrace.cli.shared.options import LocalPath, examples, overwrite_option
from attrace.cli.shared.output import check_output, show


@click.command(epilog=examples("attrace unpack packed.zip unpacked.zarr"))
@click.argument("packed", type=LocalPath("attrace pull it, then unpack it"), metavar="PACKED")
@click.argument("trace", type=LocalPath("unpack it here, then attrace push it"), metavar="TRACE")
@overwrite_option
def unpack(packed: Path, trace: Path, overwrite: bool) -> None:
    """Unpack a trace into a folder.

    Refuses a file that would write elsewhere: absolute names, `..`, links. The trace is written whole or not at all.
    """
    from attrace.analysis import unpack as unpack_trace

    check_output(trace, overwrite=overwrite)
    show(unpack_trace(packed, trace, overwrite=overwrite))
