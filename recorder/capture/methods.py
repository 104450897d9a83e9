"""The two ways to see the queries and keys of an attention call without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Final, Literal, Protocol

from torch import nn

from attrace.recorder.capture.attention_calls import AttentionCalls
from attrace.recorder.capture.projection_hooks import ProjectionHooks
from attrace.recorder.capture.projections import Deliver, Fail, raise_error
from attrace.recorder.capture.sites import Candidate
from attrace.schemas import CaptureError

CaptureName = Literal["auto", "hooks", "attention"]
"""How to capture: by hooks on the projections, by interception of the attention call, or whichever fits."""


class CaptureMethod(Protocol):
    """A way to capture; hooks are all that it leaves on the model, and `detach` removes them."""

    name: ClassVar[str]
    """As in the manifest."""

    def __init__(self, deliver: Deliver, is_active: Callable[[], bool], fail: Fail = raise_error) -> None: ...

    @staticmethod
    def refusal(candidate: Candidate) -> str | None:
        """Why this way cannot capture the candidate; None if it can."""

    def attach(self, candidates: Sequence[Candidate]) -> None:
        """Watch the candidates of one module."""

    def detach(self, module: nn.Module | None = None) -> None:
        """Stop watching a module, or all."""


METHODS: Final[tuple[type[CaptureMethod], ...]] = (ProjectionHooks, AttentionCalls)
"""The ways to capture, in the order in which they are tried."""


def choose_methods(candidates: Iterable[Candidate], wanted: CaptureName) -> dict[str, str]:
    """The method for each candidate, by path: the one that is wanted, or the first that can.

    Raises
    ------
    CaptureError
        If none can.
    """
    methods = [method for method in METHODS if wanted in ("auto", method.name)]
    return {candidate.path: _method_for(candidate, methods) for candidate in candidates}


def _method_for(candidate: Candidate, methods: Iterable[type[CaptureMethod]]) -> str:
    reasons = {}
    for method in methods:
        reason = method.refusal(candidate)
        if reason is None:
            return method.name
        reasons[method.name] = reason
    why = "; ".join(f"not by {name!r}, because {reason}" for name, reason in reasons.items())
    raise CaptureError(
        f"{candidate.path} ({type(candidate.module).__name__}) cannot be captured: {why}. Try another capture=, or "
        "leave it out with layers="
    )
