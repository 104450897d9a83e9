"""Recording runs: each beside its output, and moved there in one step once it is complete."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from attrace.recorder.jobs.joblist import Job
from attrace.recorder.jobs.pipelines import call_arguments, first_line, generate
from attrace.recorder.session.record import record
from attrace.recorder.session.recording import Recording, Statistics
from attrace.recorder.writing.folder import check_room
from attrace.schemas import InputError, TraceExistsError
from attrace.schemas.durable import sync_names
from attrace.schemas.layout import STEP_DONE

State = Literal["recorded", "there", "failed"]
"""What became of a job; `there`: a complete trace was at its output, or another process was done with it first."""


@dataclass(frozen=True)
class JobResult:
    """What became of one job."""

    job: Job
    state: State
    problem: str | None = None
    """Why it failed, in one line."""
    statistics: Statistics | None = None
    """What its recording did, if it was recorded."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    """What a worker of a cluster was warned of."""


Report = Callable[[JobResult], None]


def record_jobs(pipeline: Any, jobs: Sequence[Job], *, report: Report | None = None, **options: Any) -> list[JobResult]:
    """Record every job that has no complete trace yet, one after the other.

    Each is recorded beside its output and moved there once it is complete: an interrupted trace that is at the output
    stays until then. A job that fails is reported and costs no other; the steps that it finished are kept at its output
    if nothing is there. Processes that are given the same job at once may both record it, and one trace results.

    Parameters
    ----------
    pipeline
        A diffusers pipeline.
    jobs
        As `read_jobs` gives them.
    report
        Told of every job that is done.
    options
        As for `record`; the same for every job.

    Returns
    -------
    list of JobResult
        One for each job, in their order.

    Raises
    ------
    InputError
        If the pipeline does not take the arguments of a job; before anything is recorded.
    """
    check_arguments(pipeline, jobs)
    run, results = new_run(), list[JobResult]()
    for job in jobs:
        results.append(record_job(pipeline, job, run, options))
        if report is not None:
            report(results[-1])
    return results


def check_arguments(pipeline: Any, jobs: Iterable[Job]) -> None:
    """Refuse jobs whose arguments the pipeline does not take.

    Raises
    ------
    InputError
        With the file and the line.
    """
    for job in jobs:
        try:
            call_arguments(pipeline, job.inputs, steps=job.steps, seed=job.seed)
        except InputError as error:
            raise InputError(f"{job.where}: inputs: {error}") from error


def new_run() -> str:
    """A name for what one call records, by which its unfinished traces are told from those of others."""
    return uuid.uuid4().hex[:8]


def record_job(pipeline: Any, job: Job, run: str, options: dict[str, Any]) -> JobResult:
    """Record a job, unless its complete trace is there; what it stumbles over is its result."""
    if job.is_complete:
        return JobResult(job, "there")
    started = time.perf_counter()
    try:
        statistics = _record(pipeline, job, run, options)
    # whatever a job stumbles over, out of memory or a fault of its model, must not cost the others
    except Exception as error:
        seconds = time.perf_counter() - started
        if job.is_complete:  # another process was done first, and removed this one's trace
            return JobResult(job, "there", seconds=seconds)
        return JobResult(job, "failed", first_line(error), seconds=seconds)
    return JobResult(job, "recorded", statistics=statistics, seconds=time.perf_counter() - started)


def record_run(pipeline: Any, job: Job, path: Path, **options: Any) -> tuple[Recording, Any]:
    """Call a pipeline with what a job says and record it to a path; the recording, and the first picture if any."""
    inputs, pictures = job.load()
    arguments = call_arguments(pipeline, inputs, steps=job.steps, seed=job.seed)
    with record(pipeline, path, **pictures, seed=job.seed, **options) as recording:
        picture = generate(pipeline, arguments)
        if picture is not None:
            recording.images["generated"] = picture
    return recording, picture


def keep_finished_steps(job: Job, run: str) -> None:
    """Move the longest trace that a run left unfinished to its output, if nothing is there; remove its others."""
    left = [path for path in _unfinished(job.output) if path.name.startswith(f".{job.output.name}.{run}")]
    for path in sorted(left, key=_finished_steps, reverse=True):
        if not (_finished_steps(path) and _move(path, job.output)):
            shutil.rmtree(path, ignore_errors=True)


def _record(pipeline: Any, job: Job, run: str, options: dict[str, Any]) -> Statistics:
    attempt = f"{run}{uuid.uuid4().hex[:8]}"
    path = _beside(job.output, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        recording, picture = record_run(pipeline, job, path, strict=True, **options)
        if job.save_image is not None and picture is not None:
            _save(picture, job.save_image, attempt)
        _publish(path, job)
    except BaseException:
        keep_finished_steps(job, attempt)
        raise
    return recording.statistics


def _save(picture: Any, path: Path, attempt: str) -> None:
    """Save a picture whole, though another process may save one of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{attempt}.{path.name}")
    picture.save(unfinished)
    unfinished.replace(path)


def _publish(path: Path, job: Job) -> None:
    """Move a complete trace to its output and remove what interrupted runs left; the first that is complete stays."""
    while not _move(path, job.output):
        if job.is_complete:
            raise TraceExistsError(f"another process recorded {job.output} too")
        check_room(job.output, overwrite=True)
        _move(job.output, _beside(job.output, uuid.uuid4().hex[:16]))
    sync_names(job.output.absolute().parent)
    for left in _unfinished(job.output):
        shutil.rmtree(left, ignore_errors=True)  # another process that still writes it notices, and gives up


def _move(path: Path, target: Path) -> bool:
    """Rename a folder in one step; whether nothing was at the target, where else all stays as it is."""
    try:
        path.rename(target)
    except OSError:
        if target.exists():
            return False
        raise
    return True


def _beside(output: Path, token: str) -> Path:
    """A hidden name beside an output, which no other process writes."""
    return output.with_name(f".{output.name}.{token}.partial")


def _unfinished(output: Path) -> list[Path]:
    """What runs that were interrupted, or are under way, have beside an output."""
    name = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{16}}\.partial")
    return [path for path in output.parent.glob(".*.partial") if name.fullmatch(path.name)]


def _finished_steps(path: Path) -> int:
    """How many steps of a trace can be read, also if its writer was killed."""
    try:
        return int(np.count_nonzero(zarr.open_array(path / STEP_DONE, mode="r")[:]))
    except (OSError, ValueError, KeyError):
        return 0
