"""What runs the tasks of a study: threads, the processes of a pool, or a Dask cluster; and going through them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import wraps
from itertools import islice
from typing import Any, Final, ParamSpec, TypeVar

from attrace.schemas import AttraceError

Task = TypeVar("Task")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

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


def run_tasks(
    function: Callable[..., Result],
    tasks: Collection[Task],
    *arguments: Any,
    executor: Executor | None = None,
    progress: Progress | None = None,
    done: int = 0,
) -> Iterator[tuple[Task, Result]]:
    """Every task with `function(task, *arguments)`, in their order, on an executor (`engine()` by default).

    `progress` is called once a result was used; `done` tasks count as done before.
    """
    with engine() if executor is None else nullcontext(executor) as pool:
        results = results_in_order(pool, function, tasks, *arguments)
        for number, (task, result) in enumerate(zip(tasks, results, strict=True), done + 1):
            yield task, result
            if progress is not None:
                progress(number, done + len(tasks))


def or_reason(function: Callable[Arguments, Result]) -> Callable[Arguments, Result | str]:
    """Make a function return why there is no result: one broken trace must not stop a study."""

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result | str:
        try:
            return function(*args, **kwargs)
        except (AttraceError, OSError, ValueError) as error:
            return str(error)

    return guarded


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
