"""What verifying a trace finds: problems and notes, each with its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that verifying found."""

    severity: Literal["problem", "note"]
    """A problem breaks the format or is damage; a note is allowed and worth knowing."""
    array: str
    """Path of the array in the store; empty for the trace as a whole."""
    message: str
    """What was expected and what was found."""
    chunk: str | None = None
    """Key of the chunk below the array, such as `c/3/0/0/0/0`, where one chunk is at fault."""

    def __str__(self) -> str:
        place = "/".join(part for part in (self.array, self.chunk) if part)
        return f"{place}: {self.message}" if place else self.message


def problem(array: str, message: str, chunk: str | None = None) -> Finding:
    """What breaks the format, or is damage."""
    return Finding("problem", array, message, chunk)


def note(array: str, message: str, chunk: str | None = None) -> Finding:
    """What is allowed and worth knowing."""
    return Finding("note", array, message, chunk)
