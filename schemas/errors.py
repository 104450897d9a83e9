"""The errors of attrace: each also is the builtin that a caller would expect to catch."""

from __future__ import annotations


class AttraceError(Exception):
    """Base of every error that attrace raises on purpose."""


class TraceFormatError(AttraceError, ValueError):
    """A store is not a trace, or a trace breaks the format."""


class TraceVersionError(TraceFormatError):
    """A trace was written in a version of the format that this reader does not know."""


class TraceNotFoundError(AttraceError, FileNotFoundError):
    """Nothing is stored where a trace was expected."""


class TraceExistsError(AttraceError, FileExistsError):
    """Something is stored where a trace was to be written."""


class SelectionError(AttraceError, KeyError):
    """A label names nothing in the trace."""

    def __str__(self) -> str:
        # KeyError would print the message in quotes
        return str(self.args[0]) if self.args else ""


class InputError(AttraceError, ValueError):
    """An argument does not fit the trace or the model."""


class InputTypeError(InputError, TypeError):
    """An argument is of the wrong type."""


class CaptureError(AttraceError, RuntimeError):
    """Attention cannot be captured, or was not captured whole."""


class SizeLimitError(AttraceError, RuntimeError):
    """A recording would take more room than it was allowed."""
