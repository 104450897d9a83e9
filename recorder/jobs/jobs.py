"""Recording a list of runs with one loaded pipeline: resumed, shared between processes, no job lost to another."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from attrace.recorder.jobs.claims import Claim, ClaimLostError, Claims, Owner
from attrace.recorder.jobs.joblist import Job, stored_manifest
from attrace.recorder.jobs.pipelines import call_arguments, first_picture
from attrace.recorder.session.record import record
from attrace.recorder.session.recording import Statistics
from attrace.schemas import InputError
from attrace.schemas.durable import sync_names

State = Literal["recorded", "there", "failed"]
"""What became of a job; `there`: its complete trace was there, or another process recorded it."""

POLL_SECONDS: Final = 2.0
"""How often it is looked whether others are done with the jobs that they claimed."""


@dataclass(frozen=True)
class JobResult:
    """What became of one job."""

    job: Job
    state: State
    problem: str | None = None
    """Why it failed, in one line."""
    statistics: Statistics | None = None
    """What its recording did, if this process recorded it."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Waiting:
    """Only jobs that others claimed are left."""

    jobs: int
    owner: Owner
    """Who claimed the first of them."""


Report = Callable[[JobResult | Waiting], None]


def record_jobs(
    pipeline: Any,
    jobs: Sequence[Job],
    *,
    report: Report | None = None,
    claims: Claims | None = None,
    poll_seconds: float = POLL_SECONDS,
    **options: Any,
) -> tuple[JobResult, ...]:
    """Record every job that has no complete trace yet.

    Each is recorded beside its output and moved there once it is complete: an interrupted trace that is at the output
    stays until then. A job that fails is reported and costs no other; the steps that it finished are kept at its output
    if nothing is there. Processes that share a list, on one machine or on several that share the folder of the outputs,
    record each job once: a job that another claimed is waited for, and taken over if the other dies.

    Parameters
    ----------
    pipeline
        A diffusers pipeline.
    jobs
        As `read_jobs` gives them.
    report
        Told of every job that is done, and once when only jobs that others claimed are left.
    claims
        How jobs are claimed.
    poll_seconds
        How often others' claims are looked at.
    options
        As for `record`; the same for every job.

    Returns
    -------
    tuple of JobResult
        One for each job, in the order in which they were done.

    Raises
    ------
    InputError
        If the pipeline does not take the arguments of a job; before anything is recorded.
    """
    for job in jobs:
        try:
            call_arguments(pipeline, job.inputs, steps=job.steps, seed=job.seed)
        except InputError as error:
            raise InputError(f"{job.where}: inputs: {error}") from error
    claims, results = claims or Claims(), list[JobResult]()
    waiting, told = list(jobs), False
    while waiting:
        left: list[tuple[Job, Owner]] = []
        for job in waiting:
            done = _do(pipeline, job, claims, options)
            if isinstance(done, Owner):
                left.append((job, done))
                continue
            results.append(done)
            if report is not None:
                report(done)
        if left and len(left) == len(waiting):
            if report is not None and not told:
                report(Waiting(len(left), left[0][1]))
            told = True
            time.sleep(poll_seconds)
        waiting = [job for job, _ in left]
    return tuple(results)


def _do(pipeline: Any, job: Job, claims: Claims, options: dict[str, Any]) -> JobResult | Owner:
    """Do one job; or say who else does it."""
    if job.is_complete:
        return JobResult(job, "there")
    started = time.perf_counter()
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        claim = claims.take(job.output)
        if isinstance(claim, Owner):
            return claim
        with claim:
            if job.is_complete:  # another process was done with it between the two looks
                return JobResult(job, "there")
            statistics = _record(pipeline, job, claim, options)
    except ClaimLostError:
        return Owner()
    # whatever a job stumbles over, out of memory or a fault of its model, must not cost the others
    except Exception as error:
        return JobResult(job, "failed", _one_line(error), seconds=time.perf_counter() - started)
    return JobResult(job, "recorded", statistics=statistics, seconds=time.perf_counter() - started)


def _record(pipeline: Any, job: Job, claim: Claim, options: dict[str, Any]) -> Statistics:
    for path in claim.left_over():
        _remove(path)
    inputs, pictures = job.load()
    arguments = call_arguments(pipeline, inputs, steps=job.steps, seed=job.seed)
    try:
        with record(pipeline, claim.room, **pictures, seed=job.seed, strict=True, **options) as recording:
            picture = first_picture(pipeline, arguments)
            if picture is not None:
                recording.images["generated"] = picture
        claim.require()
        if job.save_image is not None and picture is not None:
            job.save_image.parent.mkdir(parents=True, exist_ok=True)
            picture.save(job.save_image)
        _move(claim, job)
    except BaseException:
        _keep_finished_steps(claim, job)
        raise
    return recording.statistics


def _move(claim: Claim, job: Job) -> None:
    """Put the complete trace in its place, and what was there away."""
    if job.is_complete:
        raise ClaimLostError(f"another process recorded {job.output} too")
    if job.output.exists():
        job.output.rename(claim.room_for_old)
        claim.room.rename(job.output)
        _remove(claim.room_for_old)
    else:
        claim.room.rename(job.output)
    sync_names(job.output.absolute().parent)


def _keep_finished_steps(claim: Claim, job: Job) -> None:
    """Leave what an interrupted job recorded at its output, if that is more than nothing and nothing is there."""
    found = stored_manifest(claim.room)
    if found is not None and found.steps and claim.is_held and not job.output.exists():
        claim.room.rename(job.output)
    else:
        _remove(claim.room)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text or type(error).__name__
