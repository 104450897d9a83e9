"""What runs the tasks of a study: threads, the processes of a pool, or a Dask cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with the number of tasks done and the number of all."""

AHEAD_PER_WORKER: Final = 2
"""Tasks that each worker is given ahead of time; more would only hold results in memory."""


@contextmanager
def engine(scheduler: str | None = None) -> Iterator[Executor]:
    """What runs tasks: the cluster at an address, else the active Dask client, else threads.

    Parameters
    ----------
    scheduler
        Address of a Dask scheduler, such as `tcp://host:8786`; None for the active client, or threads of this process.
    """
    client = _client(scheduler)
    if client is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield pool
        return
    try:
        yield client.get_executor()
    finally:
        if scheduler is not None:
            client.close()


def results_in_order(
    pool: Executor, function: Callable[..., Result], tasks: Iterable[Task], *arguments: Any
) -> Iterator[Result]:
    """Results of `function(task, *arguments)` in the order of the tasks, a few of them computed ahead."""
    waiting = iter(tasks)
    running: deque[Future[Result]] = deque()
    limit = AHEAD_PER_WORKER * _workers(pool)
    try:
        while True:
            for task in islice(waiting, limit - len(running)):
                running.append(pool.submit(function, task, *arguments))
            if not running:
                return
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _workers(pool: Executor) -> int:
    """How many tasks run at once."""
    client = getattr(pool, "_client", None)
    return os.cpu_count() or 1 if client is None else max(1, sum(client.nthreads().values()))


def _client(scheduler: str | None) -> Any:
    try:
        import distributed  # optional: only clusters need it
    except ImportError as error:
        if scheduler is None:
            return None
        raise ImportError("a cluster needs distributed: pip install 'attrace[cluster]'") from error
    if scheduler is not None:
        return distributed.Client(scheduler)
    try:
        return distributed.get_client()
    except ValueError:
        return None
