"""`attrace precompute`: keep the marginals in the trace, so that every map after that is instant."""

from __future__ import annotations

import click

from attrace.cli.shared.options import examples, overwrite_option, trace_argument
from attrace.cli.shared.output import dask_progress


@click.command(epilog=examples("attrace precompute run.zarr"))
@trace_argument
@click.option(
    "--device",
    metavar="NAME",
    help="Compute with torch: cuda, cuda:1 or cpu-torch. By default on the CPU, without torch.",
)
@overwrite_option
def precompute(trace: str, device: str | None, overwrite: bool) -> None:
    """Keep the marginals in a trace, so that maps are instant.

    One pass over the data gives both directions; every level of map is a mean of them. What is there and up to date is
    kept, unless --overwrite. Prints the path of the trace.
    """
    from attrace.analysis import precompute as keep_marginals

    with dask_progress():
        keep_marginals(trace, overwrite=overwrite, device=device)
    click.echo(trace)
