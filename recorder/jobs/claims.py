"""Who records what, where several processes or machines share the work: claim files beside the outputs. No torch.

A claim is a file `.NAME.claim-0` beside the output NAME, created in one step that fails where the file is there
(O_CREAT with O_EXCL, which local disks, NFS from version 3, Lustre and GPFS give). Its owner rewrites it every few
seconds. A claim whose owner is dead, or that did not change for long, is taken over by creating the next number,
again in one step: the highest number holds. No clock is compared between machines.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from attrace.schemas import AttraceError

BEAT_SECONDS: Final = 10.0
"""How often an owner rewrites its claim."""

STALE_SECONDS: Final = 120.0
"""How long another machine's claim may stay as it is before its owner counts as dead."""

TOKEN_LENGTH: Final = 12
"""Hexadecimal digits by which owners are told apart."""


class ClaimLostError(AttraceError):
    """Another process took a claim over, because this one seemed dead."""


@dataclass(frozen=True)
class Owner:
    """Who wrote a claim; empty members where the file is not whole."""

    token: str = ""
    host: str = ""
    machine: str = ""
    """Tells machines, their starts and their spaces of process numbers apart."""
    pid: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.host else "another process"

    @property
    def is_dead(self) -> bool:
        """Whether its process is known not to run any more; of another machine that is never known."""
        if os.name != "posix" or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


class Claims:
    """Takes claims, and remembers what it saw of those of others.

    Parameters
    ----------
    beat_seconds
        How often a claim that is held is rewritten.
    stale_seconds
        How long the claim of another may stay as it is.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._beat_seconds, self._stale_seconds, self._clock = beat_seconds, stale_seconds, clock
        self._seen: dict[Path, tuple[_State, float]] = {}

    def take(self, output: Path) -> Claim | Owner:
        """Claim an output, or say who holds it. What was taken is to be released."""
        number = 0
        while (path := _claim_path(output, number)).exists():
            number += 1
        if number and (owner := self._holder(_claim_path(output, number - 1))) is not None:
            return owner
        claim = Claim(output, number, self._beat_seconds)
        try:
            claim.write_first()
        except FileExistsError:  # somebody was quicker
            return _owner(_state(path).content)
        return claim

    def _holder(self, path: Path) -> Owner | None:
        """Who holds a claim; None if nobody does any more."""
        state = _state(path)
        owner = _owner(state.content)
        if owner.is_dead:
            return None
        if state == _State():  # released since it was found
            return owner
        seen, since = self._seen.get(path, (_State(), 0.0))
        if state != seen:
            self._seen[path] = state, self._clock()
            return owner
        return None if self._clock() - since >= self._stale_seconds else owner


class Claim:
    """A claim that is held: rewritten on a thread of its own until it is released. Made by `Claims.take`."""

    def __init__(self, output: Path, number: int, beat_seconds: float) -> None:
        self.token = uuid.uuid4().hex[:TOKEN_LENGTH]
        self._output, self._number = output, number
        self._path = _claim_path(output, number)
        self._beats = 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(beat_seconds,), name="attrace-claim", daemon=True)

    def write_first(self) -> None:
        """Create the file.

        Raises
        ------
        FileExistsError
            If it is there.
        """
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(self._content())
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """Whether nobody took it over."""
        successor = _claim_path(self._output, self._number + 1)
        return _owner(_state(self._path).content).token == self.token and not successor.exists()

    def require(self) -> None:
        """Make sure that it is held.

        Raises
        ------
        ClaimLostError
            If it is not.
        """
        if not self.is_held:
            raise ClaimLostError(
                f"another process took {self._output} over: this one gave no sign of life for too long; what it "
                "recorded is dropped"
            )

    @property
    def room(self) -> Path:
        """Where its owner may write what becomes the output."""
        return _beside(self._output, self.token)

    @property
    def room_for_old(self) -> Path:
        """Where its owner may put what is to be replaced."""
        return _beside(self._output, f"{self.token}.old")

    def left_over(self) -> Iterator[Path]:
        """What owners that died left beside the output."""
        name = re.compile(rf"\.{re.escape(self._output.name)}\.[0-9a-f]{{{TOKEN_LENGTH}}}(\.beat|\.old)?\.partial")
        for path in self._output.parent.iterdir():
            if name.fullmatch(path.name) and self.token not in path.name:
                yield path

    def release(self) -> None:
        """Stop rewriting it and remove it, with those it took over; the highest first, so that no gap appears."""
        self._released.set()
        self._thread.join()
        if self.is_held:
            for number in range(self._number, -1, -1):
                _claim_path(self._output, number).unlink(missing_ok=True)

    def _beat(self, seconds: float) -> None:
        while not self._released.wait(seconds):
            with suppress(OSError):  # of a server that is away for a while; who waits decides whether too long
                if not self.is_held:
                    return
                self._beats += 1
                unfinished = _beside(self._output, f"{self.token}.beat")
                unfinished.write_bytes(self._content())
                unfinished.replace(self._path)

    def _content(self) -> bytes:
        described = {
            "token": self.token,
            "host": platform.node(),
            "machine": _machine(),
            "pid": os.getpid(),
            "beats": self._beats,
        }
        return json.dumps(described).encode()


def _beside(output: Path, token: str) -> Path:
    """A hidden name beside an output, which no other process writes."""
    return output.with_name(f".{output.name}.{token}.partial")


def _claim_path(output: Path, number: int) -> Path:
    return output.with_name(f".{output.name}.claim-{number}")


class _State(NamedTuple):
    """What tells a claim that changed from one that did not; two of one name may both be empty while they are made."""

    content: bytes = b""
    inode: int = 0
    modified_ns: int = 0


def _state(path: Path) -> _State:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return _State(file.read(), status.st_ino, status.st_mtime_ns)
    except FileNotFoundError:
        return _State()


def _owner(content: bytes) -> Owner:
    try:
        found: dict[str, Any] = json.loads(content)
        return Owner(str(found["token"]), str(found["host"]), str(found["machine"]), int(found["pid"]))
    except (ValueError, KeyError, TypeError):  # its owner did not write it to the end yet
        return Owner()


def _machine() -> str:
    """Where this process runs: the machine, since its last start, and the space of process numbers."""
    parts = [platform.node()]
    with suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 (no path)
    return " ".join(parts)
