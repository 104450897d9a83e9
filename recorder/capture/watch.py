"""The attention calls of a denoiser: all of them in its first step, then those that are recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from torch import nn

from attrace.recorder.capture.census import Census
from attrace.recorder.capture.methods import METHODS, CaptureMethod
from attrace.recorder.capture.projections import Deliver, Fail, Projections
from attrace.recorder.capture.sites import Candidate


class AttentionWatch:
    """Delivers the attention calls that are to be recorded, by the method that sees what each of them uses.

    Parameters
    ----------
    denoiser
        The network.
    candidates
        Every attention call of it that could be recorded.
    methods
        The capture method of each of those to record, by path.
    deliver
        Takes what was captured.
    is_active
        Whether the call of the denoiser that is under way is recorded.
    fail
        Takes what goes wrong.
    trust_hooks
        Hooks were asked for: they are kept wherever they see what the attention call is given.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        candidates: Iterable[Candidate],
        methods: Mapping[str, str],
        deliver: Deliver,
        is_active: Callable[[], bool],
        fail: Fail,
        *,
        trust_hooks: bool,
    ) -> None:
        candidates = tuple(candidates)
        self.chosen = tuple(one for one in candidates if one.path in methods)
        """Those to record."""
        self.not_chosen = tuple(one for one in candidates if one.path not in methods)
        self.census = Census(denoiser, candidates, self._deliver_chosen, is_active, fail, trust_hooks=trust_hooks)
        """What is seen in the first step."""
        self._deliver = deliver
        self._paths = frozenset(methods)
        self._method = {one.module: methods[one.path] for one in self.chosen}
        self._watched = {module: tuple(one for one in candidates if one.module is module) for module in self._method}
        self._methods: dict[str, CaptureMethod] = {
            method.name: method(self._take, is_active, fail) for method in METHODS
        }
        self._is_settled = False

    def attach(self) -> None:
        """Watch every module of which something is to be recorded."""
        for module, candidates in self._watched.items():
            self._methods[self._method[module]].attach(candidates)

    def detach(self) -> None:
        """Leave the denoiser as it was found."""
        for method in self._methods.values():
            method.detach()
        self.census.stop()

    def begin_call(self) -> None:
        """A call of the denoiser begins that is recorded."""
        if not self._is_settled:
            self.census.start()

    def end_call(self) -> None:
        """The call is over."""
        self.census.stop()

    def settle(self, recorded: Collection[str], left_out: Collection[nn.Module], joined: Collection[str]) -> None:
        """Decide by what the first step was like how each module is watched from now on.

        The attention call is intercepted wherever it can be, as hooks do not see what later steps edit.

        Parameters
        ----------
        recorded
            Paths of the sites that are recorded.
        left_out
            Modules of which nothing is.
        joined
            Paths whose keys are of several contexts.
        """
        self._is_settled = True
        for module, candidates in self._watched.items():
            is_recorded = any(one.path in recorded for one in candidates)
            if module in (self.census.intercepted if is_recorded else left_out):
                for method in self._methods.values():
                    method.detach(module)
                if is_recorded:
                    self._method[module] = "attention"
                    again = [replace(one, joint=one.joint or one.path in joined) for one in candidates]
                    self._methods["attention"].attach(again)

    def method_names(self, paths: Collection[str]) -> list[str]:
        """The capture methods of sites."""
        return sorted({self._method[one.module] for one in self.chosen if one.path in paths})

    def _take(self, candidate: Candidate, projections: Projections) -> None:
        """Take what a method saw; what hooks saw in the first step waits until it is confirmed."""
        if not self._is_settled and self._method[candidate.module] == "hooks":
            self.census.take_projected(candidate, projections)
        else:
            self._deliver_chosen(candidate, projections)

    def _deliver_chosen(self, candidate: Candidate, projections: Projections) -> None:
        if candidate.path in self._paths:  # another call of the same module may not be
            self._deliver(candidate, projections)
