"""`attrace view`: traces in a browser, with exact values."""

from __future__ import annotations

from typing import Any

import click

from attrace.cli.shared.options import examples, select_of, selection_options, weights_option
from attrace.cli.shared.output import say, show


@click.command(
    epilog=examples(
        "attrace view run.zarr", "attrace view runs/*.zarr --no-browser", "attrace view s3://bucket/run.zarr"
    )
)
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on; any free one by default.")
@click.option("--browser/--no-browser", default=True, help="Open a browser.", show_default=True)
@weights_option
@selection_options
def view(traces: tuple[str, ...], port: int, browser: bool, weights: str | None, **selection: Any) -> None:
    """Look at traces in a browser, until Ctrl-C.

    Serves the explorer on this machine alone: exact values, computed when they are asked for, so that a trace may be of
    any size. Each TRACE is a trace, a folder of traces, a glob or an address; several are shown as a gallery. Nothing
    is written. The address holds a token: whoever has it can look while the command runs.
    """
    import webbrowser

    from attrace.analysis import open_traces
    from attrace.analysis.explorer.server import LiveView

    opened = open_traces(traces, broken="skip")
    for path, reason in opened.broken.items():
        say(f"{path} is left out: {reason}")
    chosen = [select_of(trace, **selection) for trace in opened]
    with LiveView(chosen, port=port, weights=weights) as server:
        show(server.address)
        if browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
