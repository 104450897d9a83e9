"""Recording a list of runs on Dask: one loaded pipeline in each worker process, on this machine or on a cluster.

Dask gives each job to one worker, and to another one if the first dies or cannot be reached any more. A worker that
only lost its connection may still be recording then. That does no harm: each attempt has a trace of its own, and the
first that is complete becomes the output.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Final

import torch

from attrace.recorder.jobs.joblist import Job
from attrace.recorder.jobs.jobs import JobResult, Report, check_arguments, keep_finished_steps, new_run, record_job
from attrace.recorder.jobs.pipelines import load_pipeline
from attrace.schemas import InputError

logger = logging.getLogger("attrace")

GPU: Final = "GPU"
"""The resource that a worker offers once for each job that it can record at a time on CUDA."""

_one_at_a_time = threading.Lock()  # a pipeline records one run at a time, however many threads its worker has
_loaded = lru_cache(maxsize=1)(load_pipeline)


def record_jobs_in_processes(
    workers: int, loading: Mapping[str, Any], jobs: Sequence[Job], *, report: Report | None = None, **options: Any
) -> list[JobResult]:
    """Record every job that has no complete trace yet, in worker processes on this machine.

    Each worker has its share of the processors, and on CUDA a GPU of its own. If the call is stopped the workers are
    killed, and the steps that a job finished are kept at its output if nothing is there.

    Parameters
    ----------
    workers
        How many processes.
    loading, jobs, report, options
        As for `record_jobs_on`.

    Raises
    ------
    InputError
        As for `record_jobs_on`; also if there are fewer GPUs than workers.
    """
    run = new_run()
    try:
        with _local_cluster(workers, str(loading["device"])) as client:
            return record_jobs_on(client, loading, jobs, report=report, run=run, **options)
    finally:
        for job in jobs:
            keep_finished_steps(job, run)


def record_jobs_on(
    client: Any,
    loading: Mapping[str, Any],
    jobs: Sequence[Job],
    *,
    report: Report | None = None,
    run: str | None = None,
    **options: Any,
) -> list[JobResult]:
    """Record every job that has no complete trace yet, on the workers of a cluster.

    As `record_jobs`, with a pipeline in each worker. A job whose worker dies is recorded by another one; a job at which
    several workers died (more than `distributed.scheduler.allowed-failures`) is reported as failed. If the call is
    stopped, the workers end the jobs that are under way.

    Parameters
    ----------
    client
        A `distributed.Client`. For its workers files have the same paths as here; on CUDA each offers the resource
        `GPU`.
    loading
        Arguments of `load_pipeline`, `device` among them.
    jobs, report, options
        As for `record_jobs`.
    run
        As from `new_run`.

    Returns
    -------
    list of JobResult
        One for each job, in the order in which they were done.

    Raises
    ------
    InputError
        If no worker offers a GPU where one is needed, the pipeline cannot be loaded, or it does not take the arguments
        of a job; before anything is recorded.
    ConnectionError
        If the cluster goes away.
    """
    import distributed  # optional: only clusters need it

    resources = _resources(str(loading["device"]))
    _check_workers(client, resources)
    submit = partial(client.submit, pure=False, resources=resources)
    run = run or new_run()
    done, running, results = distributed.as_completed(), dict[Any, Job](), list[JobResult]()
    waiting = iter(jobs)
    try:
        submit(_check_on_worker, loading, [job.anchored() for job in jobs]).result()
        while True:
            # no more than there are workers: Dask counts a job that only waits at one that dies as tried
            for job in islice(waiting, max(0, (len(client.nthreads()) or 1) - len(running))):
                future = submit(_record_on_worker, loading, job.anchored(), run, options)
                running[future] = job
                done.add(future)
            if not running:
                return results
            future = next(done)
            results.append(_result(future, running.pop(future)))
            if report is not None:
                report(results[-1])
    except Exception as error:
        if client.status == "running" and not isinstance(error, concurrent.futures.CancelledError):
            raise
        raise ConnectionError("the cluster went away: run the same command again to go on") from error
    finally:
        if client.status == "running":
            client.cancel(list(running))


@contextmanager
def _local_cluster(workers: int, device: str) -> Iterator[Any]:
    import dask
    import distributed  # optional: only clusters need it

    web = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    quiet = {"silence_logs": logging.CRITICAL}
    shared = {"nthreads": 1, "memory_limit": None, "resources": _resources(device), **web, **quiet}
    specification = {
        number: {"cls": distributed.Nanny, "options": shared | {"env": environment}}
        for number, environment in enumerate(_environments(workers, device))
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "port": 0, **web}}
    threads = max(1, (os.cpu_count() or 1) // workers)
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads}),
        distributed.SpecCluster(specification, scheduler, **quiet) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _environments(workers: int, device: str) -> list[dict[str, str]]:
    """What tells each worker on this machine its GPU."""
    if torch.device(device).type != "cuda":
        return [{}] * workers
    if device != "cuda":
        raise InputError(f"device {device!r}: expected cuda, as each worker takes a GPU of its own")
    found = [str(number) for number in range(torch.cuda.device_count())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(found)).split(",")[: len(found)]
    if workers > len(visible):
        raise InputError(f"{workers} workers need as many GPUs, torch sees {len(visible)}: use fewer workers")
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in visible[:workers]]


def _resources(device: str) -> dict[str, int]:
    return {GPU: 1} if device.startswith("cuda") else {}


def _check_workers(client: Any, resources: Mapping[str, int]) -> None:
    """Say so where Dask would wait: no worker is there yet, or none that offers what is needed."""
    workers = client.scheduler_info()["workers"].values()
    if not workers:
        logger.warning("%s has no worker yet: waiting for one", client.scheduler.address)
    elif any(name not in worker["resources"] for name in resources for worker in workers):
        raise InputError(
            f"the workers of {client.scheduler.address} offer no GPU: start each as "
            f'dask worker ADDRESS --nthreads 1 --memory-limit 0 --resources "{GPU}=1"'
        )


def _check_on_worker(loading: Mapping[str, Any], jobs: Sequence[Job]) -> None:
    with _one_at_a_time:
        check_arguments(_loaded(**loading), jobs)


def _record_on_worker(loading: Mapping[str, Any], job: Job, run: str, options: dict[str, Any]) -> JobResult:
    with _one_at_a_time, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default", UserWarning)  # those of the recorder
        result = record_job(_loaded(**loading), job, run, options)
    return replace(result, warnings=tuple(dict.fromkeys(str(one.message) for one in told)))


def _result(future: Any, job: Job) -> JobResult:
    import distributed

    try:
        result: JobResult = future.result()
    except distributed.KilledWorker:
        return JobResult(job, "failed", "every worker that recorded it died, perhaps for want of memory")
    return replace(result, job=job)
