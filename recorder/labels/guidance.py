"""How the rows of a batch divide into branches of guidance and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from attrace.recorder.labels.call import PipelineCall
from attrace.recorder.labels.profile import Profile
from attrace.schemas import InputError

_SINGLE = ("conditional",)
_SEPARATE = ("conditional", "unconditional")
"""Branches in the order in which the pipelines of diffusers call their denoiser, where they call it for each."""
_OF_CACHE_CONTEXT = {"cond": "conditional", "uncond": "unconditional"}


@dataclass(frozen=True)
class BatchLayout:
    """The rows of a batch: one block for each branch, in each one row for each sample."""

    branches: tuple[str, ...]
    """Names of the blocks, in order."""
    samples: int
    """Rows of a block."""
    guess: str | None = None
    """Why the names may be wrong; None where they are known."""

    def rows(self, branch: str) -> slice:
        """The rows of one branch."""
        start = self.branches.index(branch) * self.samples
        return slice(start, start + self.samples)


def batch_layout(
    rows: int, samples: int, *, named: Sequence[str] | None, profile: Profile, call: PipelineCall
) -> BatchLayout:
    """Work out the blocks of a batch.

    Parameters
    ----------
    rows
        Rows of the batch.
    samples
        Traces being written: one for each sample.
    named
        Names of the blocks, if the user gave them.
    profile, call
        What is known of the pipeline and of its call.

    Raises
    ------
    InputError
        If the rows do not divide so, or the blocks have no names.
    """
    found = f"the denoiser was called with a batch of {rows}"
    if named is not None:
        if rows != len(named) * samples:
            raise InputError(
                f"{found}; guidance={tuple(named)} and {_paths(samples)} need {len(named) * samples}: pass one path "
                "for each sample, and in guidance one name for each block of the batch"
            )
        return BatchLayout(tuple(named), samples)
    if call.guess_mode and call.guided and rows == samples:
        return BatchLayout(_SINGLE, samples)
    if call.guided is not None:
        return _told_layout(rows, samples, profile, guided=call.guided)
    blocks = rows // samples
    branches = profile.guidance.get(blocks) if profile.name != "none" else {1: _SINGLE}.get(blocks)
    if rows % samples or branches is None:
        raise InputError(
            f"{found} for {_paths(samples)}, and what its blocks are is not known: pass one path for each sample, and "
            "guidance=('unconditional', 'conditional') or what else the blocks are, in their order"
        )
    return BatchLayout(branches, samples)


def _told_layout(rows: int, samples: int, profile: Profile, *, guided: bool) -> BatchLayout:
    """The layout where the pipeline tells whether it uses guidance."""
    branches = profile.guidance[max(profile.guidance)] if guided else _SINGLE
    if rows == len(branches) * samples:
        guess = f"took its batch for {' and '.join(branches)} (pass guidance=)"
        return BatchLayout(branches, samples, guess if guided and profile.name == "none" else None)
    kind = f"guidance ({', '.join(branches)})" if guided else "no guidance"
    advice = "pass guidance= with the name of each block, in their order"
    if rows % len(branches) == 0:
        advice = f"pass {_paths(rows // len(branches))}, one for each sample, or {advice}"
    raise InputError(
        f"the denoiser was called with a batch of {rows}; with {kind} and {_paths(samples)}, expected "
        f"{len(branches) * samples}: {advice}"
    )


def separate_branches(
    rows: int, samples: int, *, named: Sequence[str] | None, call: PipelineCall, cache_context: str | None
) -> tuple[str, ...]:
    """The branches that the denoiser is called for one by one, in their order; none where one batch holds them all.

    Parameters
    ----------
    rows
        Rows of the batch.
    samples
        Traces being written.
    named
        Names of the branches, if the user gave them.
    call
        What is known of the pipeline's call.
    cache_context
        Name that the caller gave this call of the denoiser.
    """
    if named is not None:
        return tuple(named) if len(named) > 1 and rows == samples else ()
    told = cache_context in _OF_CACHE_CONTEXT and call.guided is not False
    sampled = call.by_sampler and call.guided
    return _SEPARATE if call.separate_branches or ((told or sampled) and rows == samples) else ()


@dataclass
class CallsOfStep:
    """Tells apart the calls that make one step, where the denoiser is called once for each branch."""

    seen: list[str] = field(default_factory=list)
    """Branches of the step that is under way."""

    def next(self, branches: Sequence[str], cache_context: str | None) -> str:
        """The branch of the call that begins: by the name that its caller gave it, else by its place in the step."""
        if len(self.seen) >= len(branches):
            self.seen.clear()
        branch = _OF_CACHE_CONTEXT.get(cache_context or "", branches[len(self.seen)])
        if branch in self.seen:
            self.seen.clear()
        self.seen.append(branch)
        return branch


class CacheContexts:
    """Listens to the names that a pipeline gives the calls of its denoiser by `cache_context`, as diffusers does."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.name: str | None = None
        """Of the call that is under way."""
        self._denoiser = denoiser

    def attach(self) -> None:
        """Listen from now on."""
        original: Callable[..., Any] | None = getattr(self._denoiser, "cache_context", None)
        if original is None:
            return

        @contextmanager
        def named(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            outer, self.name = self.name, name
            try:
                with original(name, *args, **kwargs):
                    yield
            finally:
                self.name = outer

        vars(self._denoiser)["cache_context"] = named

    def detach(self) -> None:
        """Leave the denoiser as it was."""
        vars(self._denoiser).pop("cache_context", None)


def kept_branches(branch: str | Sequence[str], layout: BatchLayout) -> tuple[str, ...]:
    """The branches to record, in the order of the batch.

    Raises
    ------
    InputError
        If one of them is not in the batch.
    """
    if branch == "both":
        return layout.branches
    wanted = (branch,) if isinstance(branch, str) else tuple(branch)
    for one in wanted:
        if one not in layout.branches:
            raise InputError(f"branch={one!r} is not in the batch; it has {', '.join(layout.branches)}, or pass 'both'")
    return tuple(one for one in layout.branches if one in wanted)


def _paths(count: int) -> str:
    return "1 path" if count == 1 else f"{count} paths"
