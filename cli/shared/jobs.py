"""Running `attrace record --jobs`: in this process, in several, or on a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attrace.cli.shared.errors import Failure, as_failure
from attrace.cli.shared.output import bytes_text, print_json, say, show
from attrace.cli.shared.sending import Sending

if TYPE_CHECKING:
    from attrace.recorder import Statistics
    from attrace.recorder.jobs.joblist import Job
    from attrace.recorder.jobs.jobs import JobResult


@dataclass(frozen=True)
class Engine:
    """What runs jobs."""

    workers: int | None = None
    """Processes on this machine."""
    scheduler: str | None = None
    """Address of a Dask cluster; without either, this process runs them."""

    def record(
        self, loading: Mapping[str, Any], jobs: Sequence[Job], options: dict[str, Any], report: Callable[..., None]
    ) -> None:
        """Record jobs with a pipeline that is loaded as the arguments of `load_pipeline` say."""
        if self.scheduler is not None:
            from distributed import Client

            from attrace.recorder.jobs.cluster import record_jobs_on

            with Client(self.scheduler) as client:
                record_jobs_on(client, loading, jobs, report=report, **options)
        elif self.workers is not None:
            from attrace.recorder.jobs.cluster import record_jobs_in_processes

            record_jobs_in_processes(self.workers, loading, jobs, report=report, **options)
        else:
            from attrace.recorder.jobs.jobs import record_jobs
            from attrace.recorder.jobs.pipelines import load_pipeline

            record_jobs(load_pipeline(**loading), jobs, report=report, **options)


def record_list(
    engine: Engine,
    loading: Mapping[str, Any],
    jobs: Sequence[Job],
    options: dict[str, Any],
    sending: Sending | None = None,
    *,
    as_json: bool,
) -> None:
    """Record the jobs that have no complete trace, send each complete one if asked to, and say what became of each.

    Raises
    ------
    Failure
        At the end, if jobs failed.
    """
    from attrace.recorder.jobs.jobs import JobResult

    results: list[JobResult] = []

    def report(done: JobResult) -> None:
        for warning in done.warnings:
            say(f"warning: {warning}")
        done = done if sending is None or done.state == "failed" else _sent(done, sending)
        results.append(done)
        say(f"[{len(results)}/{len(jobs)}] {_line(done)}")
        if done.state != "failed" and not as_json:
            show(done.job.output)

    left: list[Job] = []
    try:
        for job in jobs:
            if job.is_complete:
                report(JobResult(job, "there"))
            else:
                left.append(job)
        if left:
            engine.record(loading, left, options, report)
    except KeyboardInterrupt:
        say(f"stopped with {len(results)} of {_counted(len(jobs))} done: run the same command again to go on")
        raise
    states = Counter(one.state for one in results)
    if as_json:
        print_json(
            {
                "jobs": len(jobs),
                **{state: states[state] for state in ("recorded", "there", "failed")},
                "results": [_as_json(one) for one in results],
            }
        )
    say(
        f"{_counted(len(jobs))}: {states['recorded']} recorded, {states['there']} were there, {states['failed']} failed"
    )
    failed = [one for one in results if one.state == "failed"]
    if failed:
        listed = "\n".join(f"  {one.job.where}: {one.problem}" for one in failed)
        raise Failure(f"{_counted(len(failed))} failed; run the same command again to try them again:\n{listed}")


def _sent(done: JobResult, sending: Sending) -> JobResult:
    """Send a job's trace; failed, if that does."""
    try:
        sending.send(done.job.output)
    except Exception as error:
        failure = as_failure(error)
        if failure is None:
            raise
        return replace(done, state="failed", problem=f"complete, but not sent: {failure.message}")
    return done


def _line(done: JobResult) -> str:
    name = done.job.output.name
    if done.state == "failed":
        return f"{name}: failed: {done.problem}"
    if done.statistics is None:
        return f"{name}: complete"
    return f"{name}: {done_text(done.statistics)}, {done.seconds:.1f} s"


def done_text(statistics: Statistics) -> str:
    """What a recording did, in words."""
    return (
        f"{statistics.steps} steps of {statistics.sites} layers, {bytes_text(statistics.bytes_written)} before "
        f"compression; the model waited {statistics.waited_seconds:.2f} s for the disk"
    )


def _as_json(done: JobResult) -> dict[str, Any]:
    return {
        "job": done.job.where,
        "trace": str(done.job.output),
        "state": done.state,
        "problem": done.problem,
        "seconds": done.seconds,
    }


def _counted(jobs: int) -> str:
    return "1 job" if jobs == 1 else f"{jobs} jobs"
