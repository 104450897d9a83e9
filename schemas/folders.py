"""Folders of traces that are being written: their lock, and the traces that are set aside until they are complete."""

from __future__ import annotations

import os
import re
import uuid
import weakref
from pathlib import Path
from typing import ClassVar

from attrace.schemas.address import is_address, local_path
from attrace.schemas.errors import TraceExistsError

try:
    import fcntl
except ImportError:  # Windows, where folders cannot be locked
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """A lock on a folder, held until `release`, until nothing refers to it, or until its process ends, however it ends.

    It belongs to the folder and not to its name, so it goes along when that is renamed; a forked child does not hold
    it. Where the system has no such locks (Windows, some network disks), nothing is locked.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    TraceExistsError
        If it is locked already, by this process or another, or replaced at this moment.
    """

    _held: ClassVar[weakref.WeakSet[FolderLock]] = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        if fcntl is None:
            return
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            self._held.add(self)
            _lock(self._handle)
        except BlockingIOError as error:
            self.release()
            raise TraceExistsError(
                f"{path} is being recorded: wait until that recording ends, or choose another path"
            ) from error
        if not self.is_at(path):  # replaced between the two
            self.release()
            raise TraceExistsError(f"{path} is being written by another recorder: choose another path")

    def is_at(self, path: Path) -> bool:
        """Whether the folder has this path; taken for granted where nothing is locked."""
        if self._handle is None:
            return path.exists()
        try:
            return os.path.samestat(os.fstat(self._handle), path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Unlock the folder; without effect the second time."""
        handle, self._handle = self._handle, None
        self._held.discard(self)
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.release()

    @classmethod
    def leave_to_parent(cls) -> None:
        """Close the handles that a forked child has inherited: the locks stay with its parent."""
        for lock in list(cls._held):
            lock.release()


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a disk without locks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FolderLock.leave_to_parent)


def new_aside(path: Path) -> Path:
    """A hidden name beside a trace, under which a trace is set aside that had its path."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.aside")


def asides(path: str | Path) -> list[Path]:
    """Traces that were set aside from a path and are still there, as where a recorder was killed that replaces one."""
    path = local_path(path)
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.aside")
    return sorted(one for one in path.parent.glob(".*.aside") if name.fullmatch(one.name))


def asides_text(path: str | Path) -> str:
    """What is set aside from a path, in words; nothing if nothing is, or for an address."""
    found = [] if is_address(path) else asides(path)
    return f"; what was there before is set aside in {', '.join(map(str, found))}" if found else ""
