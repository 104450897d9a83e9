"""Groups of consecutive steps, of the time-level maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, SupportsIndex

from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError
from attrace.schemas.checks import require_type

DEFAULT_GROUPS: Final = 5
"""Groups of steps of a time-level map."""


def time_groups(trace: Trace, groups: int | None = None, group_size: int | None = None) -> list[slice]:
    """Groups of consecutive selected steps, as slices of them.

    Raises
    ------
    InputError
        If both numbers are given, or they do not fit the steps.
    """
    for name, number in (("groups", groups), ("group_size", group_size)):
        require_type(number, SupportsIndex | None, name, "a whole number")
    if groups is not None and group_size is not None:
        raise InputError("give either groups (how many) or group_size (steps in each), not both")
    if trace.steps == 0:
        raise InputError(f"trace {trace.path} has no finished step yet: there is nothing to map")
    if group_size is not None:
        if group_size < 1:
            raise InputError(f"group_size: expected at least 1 step, found {group_size}")
        starts = list(range(0, trace.steps, group_size))
    else:
        count = min(DEFAULT_GROUPS, trace.steps) if groups is None else groups
        if not 1 <= count <= trace.steps:
            raise InputError(f"groups: expected 1 to {trace.steps} groups of {trace.steps} steps, found {count}")
        starts = [part * trace.steps // count for part in range(count)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], trace.steps], strict=True)]


def time_group_coordinates(trace: Trace, spans: Sequence[slice]) -> dict[str, Any]:
    """First and last call of the denoiser in each group."""
    return {
        "first_call": ("time_group", trace.time[[span.start for span in spans]]),
        "last_call": ("time_group", trace.time[[span.stop - 1 for span in spans]]),
    }
