"""How the rows of a batch divide into branches of guidance and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attrace.recorder.call import PipelineCall
from attrace.recorder.profile import Profile
from attrace.schemas import InputError

_SINGLE = ("conditional",)


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
