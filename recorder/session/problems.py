"""What goes wrong with a recording, in words; and what that means for the user's run."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from attrace.recorder.writing.encode import SiteShape
from attrace.recorder.writing.plan import Plan
from attrace.recorder.writing.sink import TraceSink
from attrace.schemas import AttraceError, CaptureError, SizeLimitError


class _Run(Protocol):
    plan: Plan | None
    steps: int

    def stop(self, problem: AttraceError) -> None: ...


def stops_recording(method: Callable[..., None]) -> Callable[..., None]:
    """Turn a problem in a hook into the end of the recording, not of the user's run.

    In the first recorded step the problem is raised at once: a wrong argument must not cost a whole run. Later it
    waits for the end of the `with` block, so that the picture is not lost; the recording stops.
    """

    @wraps(method)
    def guarded(self: _Run, *args: Any) -> None:
        try:
            method(self, *args)
        except AttraceError as problem:
            if self.plan is None:
                raise
            self.stop(problem)
        # a recorder that fails, out of memory or by a fault of its own, must not cost the picture
        except Exception as error:
            if self.plan is None:
                raise
            fault = CaptureError(f"recording stopped in step {self.steps} ({type(error).__name__}: {error})")
            fault.__cause__ = error
            self.stop(fault)

    return guarded


def writer_problem(failure: BaseException, sink: TraceSink) -> AttraceError:
    """What went wrong in writing, as one clear error."""
    if isinstance(failure, AttraceError):
        return failure
    store = sink.stores[0]
    problem = CaptureError(
        f"{store.path} could not be written ({type(failure).__name__}: {failure}); its {store.finished_steps} "
        "finished steps can be read"
    )
    problem.__cause__ = failure
    return problem


def over_limit(what: str, nbytes: int, limit: int, advice: str) -> SizeLimitError:
    """That something takes more than `limit_bytes` allows."""
    return SizeLimitError(
        f"{what} {format_bytes(nbytes)}; limit_bytes allows {format_bytes(limit)}: select {advice}, or raise the limit"
    )


def format_bytes(count: int) -> str:
    """A number of bytes for people."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007
        if value < 1000:
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def changed(path: str, before: SiteShape | None, now: SiteShape) -> str:
    """That a site is not what it was in the first step."""
    if before is None:
        return f"{path} was not called in the first recorded step, but is now: leave it out with layers="
    differences = [
        f"{name} {getattr(before, name)} -> {getattr(now, name)}"
        for name in before.__dataclass_fields__
        if getattr(before, name) != getattr(now, name)
    ]
    return f"{path} changed in the middle of the run ({', '.join(differences)}): a trace holds one size of picture"
