from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from attrace.recorder.writing.writer import BackgroundWriter


@contextmanager
def blocked(writer: BackgroundWriter, nbytes: int) -> Iterator[threading.Event]:
    """A job of that many bytes holds the writer until the event is set."""
    started, go = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        go.wait()

    writer.submit(wait, nbytes)
    assert started.wait(10)
    yield go
    go.set()


@pytest.mark.parametrize("threads", [1, 3])
def test_every_job_is_done_before_close_returns(threads: int) -> None:
    writer = BackgroundWriter(10, threads)
    done: list[int] = []
    for number in range(100):
        writer.submit(partial(done.append, number), 3)
    writer.close()
    assert sorted(done) == list(range(100))
    if threads == 1:
        assert done == sorted(done)
    assert writer.failure is None


def test_a_job_alone_comes_after_all_before_it_and_before_all_after_it() -> None:
    writer = BackgroundWriter(1000, threads=4)
    done: list[float] = []
    at_once = threading.Barrier(2, timeout=10)

    def job(number: int) -> None:
        if number % 3:
            at_once.wait()  # needs the other of its pair: these two run at the same time
        done.append(number // 3 + (number % 3 == 0) * 0.5)

    for number in (1, 2, 3, 4, 5, 6, 7, 8, 9):
        writer.submit(partial(job, number), alone=number % 3 == 0)
    writer.close()
    assert done == [0, 0, 1.5, 1, 1, 2.5, 2, 2, 3.5]
    assert writer.failure is None


def test_submit_waits_while_the_queue_is_full_and_says_how_long() -> None:
    writer = BackgroundWriter(100, threads=1)
    submitted: list[str] = []
    with blocked(writer, 60) as go:
        writer.submit(lambda: submitted.append("fits"), 40)

        def submit() -> None:
            writer.submit(lambda: None, 1)
            submitted.append("waited")

        other = threading.Thread(target=submit)
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert submitted == []
        go.set()
        other.join(10)
    assert submitted == ["fits", "waited"]
    assert writer.waited_seconds >= 0.2
    writer.close()


def test_a_job_larger_than_the_queue_is_taken_when_nothing_else_waits() -> None:
    writer = BackgroundWriter(1, threads=1)
    done: list[int] = []
    writer.submit(lambda: done.append(1), 1000)
    writer.submit(lambda: done.append(2), 1000)
    writer.close()
    assert done == [1, 2]


def test_a_failure_drops_what_waits_and_frees_who_waits() -> None:
    writer = BackgroundWriter(100, threads=1)
    done: list[str] = []
    error = OSError("full")

    def fail() -> None:
        raise error

    with blocked(writer, 50) as go:
        writer.submit(fail, 40)
        writer.submit(lambda: done.append("dropped"), 10)
        waiting = threading.Thread(target=writer.submit, args=(lambda: done.append("freed"), 90))
        waiting.start()
        go.set()
        waiting.join(10)
        assert not waiting.is_alive()
    writer.submit(lambda: done.append("late"), 1000)
    writer.close()
    assert writer.failure is error
    assert done == []


def test_what_a_job_holds_is_released_when_it_is_done() -> None:
    class Held:
        def work(self) -> None:
            pass

    writer = BackgroundWriter(100, threads=1)
    held = Held()
    seen = weakref.ref(held)
    writer.submit(held.work, 1)
    del held
    finished = threading.Event()
    writer.submit(finished.set)
    assert finished.wait(10)
    assert seen() is None
    writer.close()
