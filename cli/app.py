"""The command `attrace` and its subcommands."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import click

from attrace.cli.aggregate import aggregate
from attrace.cli.compare import compare
from attrace.cli.demo import demo
from attrace.cli.diff import diff
from attrace.cli.errors import as_failure
from attrace.cli.export_trace import export
from attrace.cli.faithfulness import faithfulness
from attrace.cli.info import info
from attrace.cli.maps import maps
from attrace.cli.options import examples
from attrace.cli.pack import pack, unpack
from attrace.cli.plot import plot
from attrace.cli.precompute import precompute
from attrace.cli.record import record
from attrace.cli.repair import repair
from attrace.cli.report import report
from attrace.cli.score import score
from attrace.cli.sram import sram
from attrace.cli.transfer import pull, push
from attrace.cli.verify import verify


class AttraceGroup(click.Group):
    """Shows the errors that attrace raises on purpose, and those of the system, in one line without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand."""
        try:
            with warnings.catch_warnings():
                # zarr's: that a plain HTTP reader needs consolidated metadata is nothing to tell a user
                warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
                # asyncio's: where zarr reads several things and one cannot be read, it shows tracebacks of the others
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)
                return super().invoke(ctx)
        except Exception as error:
            failure = None if ctx.params["debug"] else as_failure(error)
            if failure is None:
                raise
            raise failure from error


@click.group(
    cls=AttraceGroup,
    epilog=examples("attrace demo -o demo"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="attrace", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="ATTRACE_DEBUG", help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Record the attention of a diffusion model once; analyse it for ever, without a GPU.

    Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failure, 2 wrong usage, 3 invalid trace.
    """


for _command in (
    demo,
    record,
    info,
    verify,
    diff,
    repair,
    maps,
    sram,
    plot,
    report,
    score,
    precompute,
    aggregate,
    compare,
    faithfulness,
    pack,
    unpack,
    export,
    push,
    pull,
):
    main.add_command(_command)
