"""Branches of guidance of each call of the denoiser, as its batch, its caller and its pipeline tell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from attrace.recorder.labels.call import PipelineCall, read_call
from attrace.recorder.labels.guidance import (
    BatchLayout,
    CacheContexts,
    CallsOfStep,
    batch_layout,
    kept_branches,
    separate_branches,
)
from attrace.recorder.labels.profile import Profile


class RunBranches:
    """Follows the branches of guidance from one call of a denoiser to the next.

    Parameters
    ----------
    model, denoiser
        The pipeline (or the denoiser again), and the denoiser.
    profile
        What is known of the pipeline.
    samples
        Traces being written.
    named
        Names of the branches, if the user gave them.
    branch
        Which of them to record.
    prompts
        Whether to keep prompts.
    """

    def __init__(
        self,
        model: Any,
        denoiser: nn.Module,
        *,
        profile: Profile,
        samples: int,
        named: tuple[str, ...] | None,
        branch: str | Sequence[str],
        prompts: bool,
    ) -> None:
        self.call = PipelineCall()
        """The pipeline's call, as the first step found it."""
        self._model, self._profile, self._samples = model, profile, samples
        self._named, self._branch, self._prompts = named, branch, prompts
        self._contexts = CacheContexts(denoiser)
        self._calls = CallsOfStep()
        self._separate: tuple[str, ...] = ()
        """The branches of the step that is under way, if the denoiser is called for each."""
        self._current: str | None = None
        """The one that it is being called for; None if its batch holds all of them."""
        self._layouts: dict[tuple[int, str | None], BatchLayout] = {}
        self._is_settled = False

    def attach(self) -> None:
        """Listen to the names that the pipeline gives its calls."""
        self._contexts.attach()

    def detach(self) -> None:
        """Leave the denoiser as it was."""
        self._contexts.detach()

    def read_again(self) -> None:
        """Read the pipeline's call, as long as no step of it was recorded."""
        self.call = self._read_call()

    def forget(self) -> None:
        """Forget what a first step that failed left."""
        self._layouts.clear()

    def settle(self) -> None:
        """The first step is over: what is known now holds for the run, but for guidance that is switched off."""
        self._is_settled = True

    def begin(self, arguments: Mapping[str, Any]) -> bool:
        """Find out which branch a call is for; whether it is the first call of its step."""
        name = self._contexts.name
        rows = next((one.shape[0] for one in arguments.values() if isinstance(one, torch.Tensor) and one.ndim > 2), 0)
        self._separate = separate_branches(rows, self._samples, named=self._named, call=self.call, cache_context=name)
        self._current = self._calls.next(self._separate, name) if self._separate else None
        return not self._separate or len(self._calls.seen) == 1

    def end_early(self) -> None:
        """The step failed: the next call begins another."""
        self._calls.seen.clear()

    @property
    def is_kept(self) -> bool:
        """Whether the call that is under way is of a branch to record."""
        return self._current is None or self._current in self._kept_separate

    @property
    def has_more(self) -> bool:
        """Whether the step has calls to come that are to be recorded."""
        return any(branch in self._kept_separate for branch in self._separate if branch not in self._calls.seen)

    @property
    def all(self) -> tuple[str, ...]:
        """Every branch of a step."""
        return self._separate or next(iter(self._layouts.values())).branches

    @property
    def kept(self) -> tuple[str, ...]:
        """Those to record."""
        return kept_branches(self._branch, BatchLayout(self.all, self._samples))

    @property
    def guesses(self) -> list[str | None]:
        """Why names may be wrong."""
        return [layout.guess for layout in self._layouts.values()]

    def rows(self, rows: int) -> list[tuple[str, slice]]:
        """The branches to record of a batch of so many rows, each with its rows."""
        batch = self._layout(rows)
        kept = batch.branches if self._current is not None else kept_branches(self._branch, batch)
        return [(branch, batch.rows(branch)) for branch in kept]

    @property
    def _kept_separate(self) -> tuple[str, ...]:
        return kept_branches(self._branch, BatchLayout(self._separate, 1))

    def _layout(self, rows: int) -> BatchLayout:
        layout = self._layouts.get((rows, self._current))
        if layout is None:
            # read anew: guidance may be switched off in the middle of a run
            call = self._read_call() if self._is_settled else self.call
            named = self._named if self._current is None else (self._current,)
            layout = batch_layout(rows, self._samples, named=named, profile=self._profile, call=call)
            self._layouts[rows, self._current] = layout
        return layout

    def _read_call(self) -> PipelineCall:
        call = read_call(self._model, self._profile)
        return call if self._prompts else call.without_prompts()
