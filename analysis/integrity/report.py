"""What verifying a trace finds: issues, each a problem or a note, with the array and chunk that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attrace.schemas import Status


@dataclass(frozen=True)
class Issue:
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


def problem(array: str, message: str, chunk: str | None = None) -> Issue:
    """What breaks the format, or is damage."""
    return Issue("problem", array, message, chunk)


def note(array: str, message: str) -> Issue:
    """What is allowed and worth knowing."""
    return Issue("note", array, message)


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    path: str
    """Where the trace is."""
    status: Status
    """Status in the manifest."""
    steps: int
    """Finished steps."""
    arrays: int
    """Arrays that were read."""
    chunks: int
    """Chunks that were read."""
    issues: tuple[Issue, ...]
    """Everything found, in the order of the checks."""
    content_id: str | None = None
    """Identifier of the content, as of `content_id`; None where there is a problem."""

    @property
    def problems(self) -> tuple[Issue, ...]:
        """The issues that make the trace invalid."""
        return tuple(issue for issue in self.issues if issue.severity == "problem")

    @property
    def notes(self) -> tuple[Issue, ...]:
        """The issues that are allowed."""
        return tuple(issue for issue in self.issues if issue.severity == "note")

    @property
    def valid(self) -> bool:
        """Whether there is no problem."""
        return not self.problems
