"""What goes wrong with a recording, in words; and what that means for the user's run."""

from __future__ import annotations

from attrace.recorder.writing.encode import SiteShape
from attrace.recorder.writing.sink import TraceSink
from attrace.schemas import AttraceError, CaptureError, SizeLimitError


def writer_problem(failure: BaseException, sink: TraceSink) -> AttraceError:
    """What went wrong in writing, as one clear error."""
    if isinstance(failure, AttraceError):
        return failure
    what = f"({type(failure).__name__}: {failure})"
    problem = CaptureError(f"no trace could be begun {what}")
    if sink.stores:
        store = sink.stores[0]
        kept = f"its {store.finished_steps} finished steps can be read"
        problem = CaptureError(f"{store.path} could not be written {what}; {kept}")
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
