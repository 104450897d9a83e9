"""`attrace record --jobs`: a list of runs, with one loaded pipeline."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attrace.cli.shared.errors import Failure, as_failure
from attrace.cli.shared.inputs import texts_by_name
from attrace.cli.shared.output import bytes_text, print_json, say
from attrace.cli.shared.sending import Sending

if TYPE_CHECKING:
    from attrace.recorder import Statistics
    from attrace.recorder.jobs.joblist import Job
    from attrace.recorder.jobs.jobs import JobResult, Waiting

STORED_AS: Final = {"reference": "reference", "mask": "mask", "scene": "input"}
"""The options that name a picture to keep, and its name in the trace."""


def read_list(
    path: Path, folder: Path, inputs: tuple[str, ...], members: Mapping[str, int | str | None]
) -> tuple[Job, ...]:
    """The jobs of a file; options stand for what its lines lack. Files that options name are relative to here."""
    from attrace.recorder.jobs.joblist import read_jobs

    defaults: dict[str, Any] = {name: value for name, value in members.items() if value is not None}
    defaults["inputs"] = {name: _default_input(text) for name, text in texts_by_name(inputs).items()}
    for name in STORED_AS:
        if name in defaults and Path(defaults[name].removeprefix("@")).is_file():
            defaults[name] = str(Path(defaults[name].removeprefix("@")).absolute())
    return read_jobs(path, folder, defaults)


def _default_input(text: str | list[str]) -> Any:
    if isinstance(text, list):
        return [_default_input(one) for one in text]
    if text.startswith("@"):
        return f"@{Path(text[1:]).absolute()}"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def record_list(
    load: Callable[[], Any],
    jobs: tuple[Job, ...],
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
    results: list[JobResult] = []

    def report(done: JobResult | Waiting) -> None:
        from attrace.recorder.jobs.jobs import Waiting

        if isinstance(done, Waiting):
            say(f"waiting for {_counted(done.jobs)} of others; the first: {done.owner}")
            return
        done = done if sending is None or done.state == "failed" else _sent(done, sending)
        results.append(done)
        say(f"[{len(results)}/{len(jobs)}] {_line(done)}")
        if done.state != "failed" and not as_json:
            click.echo(str(done.job.output))

    try:
        with _stopped_like_ctrl_c():
            _record(load, jobs, options, report)
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


def _record(
    load: Callable[[], Any],
    jobs: tuple[Job, ...],
    options: dict[str, Any],
    report: Callable[[JobResult | Waiting], None],
) -> None:
    from attrace.recorder.jobs.jobs import JobResult, record_jobs

    if all(job.is_complete for job in jobs):
        for job in jobs:
            report(JobResult(job, "there"))
        return
    record_jobs(load(), jobs, report=report, **options)


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


@contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: what a batch system sends before it kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def messages_on_stderr(level: int) -> Iterator[None]:
    """Show what the recorder logs from a level on, and what it warns of, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("attrace")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
