"""Background threads that write while the model runs, behind a queue whose size in bytes is bounded."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

Job = Callable[[], None]
"""One piece of work."""

MAX_THREADS = 4
"""Threads that write: what keeps up with the fastest models (compression takes most of their time)."""


@dataclass(frozen=True)
class _Queued:
    """A job that waits."""

    job: Job
    nbytes: int
    alone: bool


class BackgroundWriter:
    """Runs jobs on threads of its own, started in the order in which they were submitted.

    `submit` blocks while the jobs that wait or run hold more bytes than allowed, so memory stays bounded and a slow
    disk slows the model down instead. The first job that raises ends the work: what waits is dropped, every later
    `submit` returns at once, and `failure` says why. Nothing ever hangs on a dead writer. Where the system starts fewer
    threads than wanted, these do the work; where it starts none, that is the failure.

    Parameters
    ----------
    queue_bytes
        Bytes that may wait. A job that alone is larger is taken when nothing else waits.
    threads
        Threads that run jobs; by default half of the processors, but at most `MAX_THREADS`.
    """

    def __init__(self, queue_bytes: int, threads: int | None = None) -> None:
        self.waited_seconds = 0.0
        self.failure: BaseException | None = None
        self._queue_bytes = queue_bytes
        self._queue: deque[_Queued] = deque()
        self._held_bytes = 0
        self._running = 0
        self._alone = False
        self._closing = False
        self._changed = threading.Condition()
        threads = threads or max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2))
        self._threads: list[threading.Thread] = []
        for number in range(threads):
            thread = threading.Thread(target=self._run, name=f"attrace-writer-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self.failure = None if self._threads else error
                break
            self._threads.append(thread)

    def submit(self, job: Job, nbytes: int = 0, *, alone: bool = False) -> None:
        """Hand over a job; waits while the queue is full. Does nothing once the writer has failed.

        Parameters
        ----------
        job
            The work.
        nbytes
            Bytes that it holds until it is done.
        alone
            Runs after every job before it and before every job after it; others may run at the same time.
        """
        with self._changed:
            if self._is_full(nbytes):
                start = time.perf_counter()
                self._changed.wait_for(lambda: not self._is_full(nbytes))
                self.waited_seconds += time.perf_counter() - start
            if self.failure is None:
                self._queue.append(_Queued(job, nbytes, alone))
                self._held_bytes += nbytes
                self._changed.notify_all()

    def close(self) -> None:
        """Finish every job that was submitted, then end the threads. `failure` tells whether all went well."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _is_full(self, nbytes: int) -> bool:
        over = self._held_bytes + nbytes > self._queue_bytes
        return self.failure is None and self._held_bytes > 0 and over

    def _run(self) -> None:
        while (queued := self._take()) is not None:
            failure = None
            try:
                queued.job()
            # a thread must not die silently, whatever a job raises: the model would wait for it for ever
            except BaseException as error:
                failure = error
            nbytes = queued.nbytes
            del queued  # releases what the job holds before the next is waited for
            self._finish(nbytes, failure)

    def _take(self) -> _Queued | None:
        """Wait for a job that may start; None when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_start() or (self._closing and not self._queue))
            if not self._queue:
                return None
            queued = self._queue.popleft()
            self._running += 1
            self._alone = queued.alone
            return queued

    def _may_start(self) -> bool:
        if not self._queue or self._alone:
            return False
        return self._running == 0 or not self._queue[0].alone

    def _finish(self, nbytes: int, failure: BaseException | None) -> None:
        with self._changed:
            self._running -= 1
            self._alone = False
            self._held_bytes -= nbytes
            if failure is not None and self.failure is None:
                self.failure = failure
            if self.failure is not None:
                self._held_bytes -= sum(queued.nbytes for queued in self._queue)
                self._queue.clear()
            self._changed.notify_all()
