"""Which calls of the denoiser are recorded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attrace.schemas import InputError

Steps = slice | Iterable[int] | None
"""Call numbers, counted from 0: a slice, some numbers, or None for all."""


@dataclass(frozen=True)
class StepSelection:
    """A set of call numbers that may have no end."""

    start: int = 0
    stop: int | None = None
    stride: int = 1
    numbers: frozenset[int] | None = None
    """The numbers themselves, where they were given one by one."""

    def __contains__(self, call: int) -> bool:
        if self.numbers is not None:
            return call in self.numbers
        inside = call >= self.start and (self.stop is None or call < self.stop)
        return inside and (call - self.start) % self.stride == 0

    def unreached(self, calls: int) -> list[int]:
        """Numbers that were given one by one and lie beyond that many calls."""
        return sorted(call for call in self.numbers or () if call >= calls)

    def count(self, calls: int) -> int:
        """How many of that many calls are selected."""
        return sum(call in self for call in range(calls))


def select_steps(steps: Steps) -> StepSelection:
    """The selection that a `steps` argument means.

    Raises
    ------
    InputError
        If it counts from the end, which is not known while the model runs, or selects nothing.
    """
    if steps is None:
        return StepSelection()
    if isinstance(steps, slice):
        start, stop = steps.start or 0, steps.stop
        stride = 1 if steps.step is None else steps.step
        if start < 0 or stride < 1 or (stop is not None and stop <= start):
            raise InputError(
                f"steps={steps}: expected call numbers counted from 0 upwards and at least one of them: the number of "
                "calls is not known beforehand, so they cannot be counted from the end"
            )
        return StepSelection(start, stop, stride)
    numbers = frozenset(int(call) for call in steps)
    if not numbers or min(numbers) < 0:
        raise InputError(f"steps={sorted(numbers)}: expected at least one call number, counted from 0")
    return StepSelection(numbers=numbers)
