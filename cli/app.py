"""The command `attrace` and its subcommands."""

from __future__ import annotations

import logging
import warnings
from collections import UserDict
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import click

from attrace.cli import commands
from attrace.cli.shared.errors import as_failure
from attrace.cli.shared.options import examples


class _Commands(UserDict[str, Any]):
    """The commands by name, each imported when it is asked for: together they take longer than what most do."""

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command = getattr(import_module(self.data[name]), name)
        return command


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
    commands=_Commands({one.name: f"{commands.__name__}.{one.name}" for one in iter_modules(commands.__path__)}),
    epilog=examples("attrace demo -o demo"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="attrace", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="ATTRACE_DEBUG", help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Record the attention of a diffusion model once; analyse it for ever, without a GPU.

    Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failure, 2 wrong usage, 3 invalid trace.
    """
