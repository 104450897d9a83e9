"""`attrace diff`: the differences between two traces."""

from __future__ import annotations

from dataclasses import asdict

import click

from attrace.cli.shared.options import examples, json_option
from attrace.cli.shared.output import print_json, show


@click.command(epilog=examples("attrace diff run.zarr run.zarr", "attrace diff run.zarr packed.zip --json"))
@click.argument("first", metavar="TRACE")
@click.argument("second", metavar="TRACE")
@json_option
@click.pass_context
def diff(ctx: click.Context, first: str, second: str, as_json: bool) -> None:
    """Show the differences between the content of two traces.

    Compares the manifests, the shapes, and the values, with the largest absolute difference of each array. Ignores
    when and by what the traces were written, and how they are packed. Exits with 0 if nothing differs, else 1.
    """
    from attrace.analysis.integrity.diff import diff as differences

    found = []
    for difference in differences(first, second):
        found.append(difference)
        if not as_json:
            show(difference)
    if as_json:
        print_json({"same": not found, "differences": [asdict(difference) for difference in found]})
    ctx.exit(1 if found else 0)
