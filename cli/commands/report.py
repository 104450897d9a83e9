"""`attrace report`: an interactive page of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from attrace.cli.shared.options import (
    LocalPath,
    byte_size,
    examples,
    json_option,
    overwrite_option,
    select,
    selection_options,
    trace_argument,
    weights_option,
)
from attrace.cli.shared.output import check_output, dask_progress, print_json, print_paths


@click.command(
    epilog=examples(
        "attrace report run.zarr -o report.html",
        "attrace report run.zarr -o text.html --context text --groups 2",
    )
)
@trace_argument
@click.option("-o", "--output", type=LocalPath(), required=True, help="The HTML file to write.")
@click.option("--groups", type=click.IntRange(min=1), help="Groups of steps to choose from; 5 by default.")
@click.option(
    "--limit",
    type=byte_size,
    default="4.5MB",
    show_default=True,
    metavar="SIZE",
    help="Largest size of the file; what does not fit is coarsened.",
)
@click.option("--title", help="Title of the page; the name of the trace by default.")
@weights_option
@selection_options
@overwrite_option
@json_option
def report(
    trace: str,
    output: Path,
    groups: int | None,
    limit: int,
    title: str | None,
    weights: str | None,
    overwrite: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """Write the explorer of a trace as a page to show to others.

    One HTML file that needs neither a server nor a network: point at a patch of the generated picture to see where in
    the reference it looks, or at a patch of the reference to see where it acts, through any layer, head and group of
    steps; words are chips. Every context of the trace is shown unless --context names one.
    """
    from attrace.analysis import write_report

    check_output(output, overwrite=overwrite)
    chosen = select(trace, **selection)
    with dask_progress():
        written = write_report(
            chosen, output, groups=groups, limit=limit, title=title, weights=weights, overwrite=overwrite
        )
    if as_json:
        print_json(vars(written) | {"path": str(written.path)})
    else:
        print_paths([written.path])
