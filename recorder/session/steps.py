"""Steps of a run: calls of the denoiser, one of which makes a step, or one for each branch of guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from attrace.recorder.capture.host_copies import HostCopier, HostCopy
from attrace.recorder.capture.sites import timestep_of
from attrace.recorder.labels.branches import RunBranches
from attrace.recorder.session.select import StepSelection
from attrace.recorder.writing.plan import SiteKey


@dataclass
class Step:
    """A recorded step that is under way."""

    number: int
    call: int
    timestep: HostCopy
    seen: set[SiteKey] = field(default_factory=set)


class StepCalls:
    """Gathers the calls of a denoiser into the steps to record.

    Parameters
    ----------
    branches
        Tells which branch each call is for.
    selection
        The calls to record.
    finish
        Takes each step once its last branch was called.
    """

    def __init__(self, branches: RunBranches, selection: StepSelection, finish: Callable[[Step], None]) -> None:
        self.calls = 0
        """Calls up to now; those of one step's branches count as one."""
        self.steps = 0
        """Recorded steps that are whole."""
        self.current: Step | None = None
        """The step of the call that is under way, if that is recorded."""
        self.waiting: Step | None = None
        """A step of which another branch is still to come."""
        self._branches, self._selection, self._finish = branches, selection, finish
        self._copy = HostCopier()

    def begin(self, arguments: Mapping[str, Any]) -> int | None:
        """Begin a call; its number if a step to record begins with it."""
        begun = None
        if self._branches.begin(arguments):
            self.finish_waiting()
            begun = self.calls if self.calls in self._selection else None
            self.calls += 1
            if begun is not None:
                self.waiting = Step(self.steps, begun, self._copy(torch.as_tensor(timestep_of(arguments))))
        if self._branches.is_kept:
            self.current, self.waiting = self.waiting, None
        return begun

    def end(self, *, failed: bool) -> None:
        """End the call that is under way."""
        step, self.current = self.current, None
        if failed:
            self._branches.end_early()
            self.waiting = None
        elif step is not None:
            self.waiting = step
            if not self._branches.has_more:
                self.finish_waiting()

    def finish_waiting(self) -> None:
        """Finish the step whose last branch was called."""
        step, self.waiting = self.waiting, None
        if step is not None:
            self._finish(step)

    def forget(self) -> None:
        """Forget the step that is under way."""
        self.current = self.waiting = None
