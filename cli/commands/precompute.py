"""`attrace precompute`: store the marginals in a trace, so that maps are fast."""

from __future__ import annotations

import click

from attrace.cli.shared.options import examples, overwrite_option, trace_argument
from attrace.cli.shared.output import dask_progress, show


@click.command(epilog=examples("attrace precompute run.zarr"))
@trace_argument
@click.option(
    "--device",
    metavar="NAME",
    help="Compute with torch: cuda, cuda:1 or cpu-torch. By default on the CPU, without torch.",
)
@overwrite_option
def precompute(trace: str, device: str | None, overwrite: bool) -> None:
    """Store the marginals in a trace, so that maps are fast.

    One pass over the data computes both directions; the map of every level is a mean of them. Marginals that are up to
    date are not computed again, unless --overwrite. Prints the path of the trace.
    """
    from attrace.analysis import precompute as keep_marginals

    with dask_progress():
        keep_marginals(trace, overwrite=overwrite, device=device)
    show(trace)
