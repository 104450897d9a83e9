"""Errors of a command as its user sees them: one line on stderr, and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import click

from attrace.cli.shared.output import escaped_lines

USAGE = 2
INVALID_TRACE = 3

RECORD_EXTRA = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
"""What `attrace[record]` installs."""


class Failure(click.ClickException):
    """An error of attrace or of the system."""

    def format_message(self) -> str:
        """The message; text of a trace in it cannot steer the terminal."""
        return escaped_lines(self.message)


class Usage(Failure):
    """A request that does not fit the trace or the model."""

    exit_code = USAGE


class InvalidTrace(Failure):
    """A store that is not a trace, or one that breaks the format."""

    exit_code = INVALID_TRACE


def as_failure(error: Exception) -> Failure | None:
    """An error as one line for the user; None for click's own errors, a closed pipe, and bugs."""
    kind = _kind(error)
    return None if kind is None else kind(_message(error))


@contextmanager
def recorder_needed(command: str) -> Iterator[None]:
    """Say how to install the recorder where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in RECORD_EXTRA:
            raise
        raise Usage(f'attrace {command} needs {error.name}: pip install "attrace[record]"') from error


def _kind(error: Exception) -> type[Failure] | None:
    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        return None  # before the schemas are imported: a help text ends in Exit, and is to be quick
    from attrace.schemas import AttraceError, InputError, SelectionError, TraceFormatError

    if isinstance(error, TraceFormatError):
        return InvalidTrace
    if isinstance(error, InputError | SelectionError | ImportError):
        return Usage
    if isinstance(error, AttraceError) or type(error).__name__ == "OutOfMemoryError":
        return Failure
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        return Failure
    return None


def _message(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return "\n".join([text, *getattr(error, "__notes__", [])])
