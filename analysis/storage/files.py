"""Files wherever they lie: one interface to a folder, an object store, a web server and the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from attrace.schemas import TraceFormatError

BLOCK_BYTES: Final = 2**26
"""What is read at a time of a file that is copied."""

TRIES: Final = 4
"""How often a server is asked for the same thing."""

GIVE_UP_SECONDS: Final = 30
"""A server that has not answered for so long is not asked again."""

CheckSize = Callable[[int], None]
"""Called with the length of a file before its bytes are taken; raises to refuse it."""

_Answer = TypeVar("_Answer")


class RangesError(OSError):
    """A server does not answer range requests."""


class Files(ABC):
    """The files of a folder by their names below it, or one file under the empty name."""

    is_listed: ClassVar[bool] = False
    """Whether names and sizes are known without asking a server."""

    def __init__(self, address: str) -> None:
        self.address = address
        """Where they lie."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    @abstractmethod
    def size(self, name: str = "", *, insist: bool = False) -> int | None:
        """Length of a file; None where there is none, for which a server is asked again if it should be there."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Length of every file at any depth, by name; none where there is no folder."""

    @abstractmethod
    def children(self, folder: str = "") -> list[str]:
        """Names of the files directly in a folder, and of the folders, which end in `/`."""

    @abstractmethod
    def read(
        self, name: str = "", start: int = 0, end: int | None = None, *, check: CheckSize | None = None
    ) -> bytes | None:
        """Read a file, or its bytes from `start` up to `end`; None where there is none."""

    @abstractmethod
    def write(self, name: str, content: bytes | Path) -> None:
        """Write a file, whole or not at all."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, or a folder with what is in it."""

    def blocks(self, name: str = "", start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from `start` on, in blocks."""
        for begin in range(start, self.size(name) or 0, BLOCK_BYTES):
            yield self.read(name, begin, begin + BLOCK_BYTES) or b""

    def holds(self, name: str, local: Path) -> bool:
        """Whether a file has the size and SHA-256 of a local one."""
        return self.size(name) == local.stat().st_size and _sha256(self.blocks(name)) == _sha256_of(local)

    def send(self, local: Mapping[str, Path], done: Callable[[], None]) -> list[str]:
        """Write local files that are not there with the same content, in their order, and read each back.

        Returns
        -------
        list of str
            Names of those that were written.

        Raises
        ------
        OSError
            If what arrived is not what was sent.
        """
        sent = []
        for name, path in local.items():
            if not self.holds(name, path):
                self.write(name, path)
                self.require(name, path)
                sent.append(name)
            done()
        return sent

    def require(self, name: str, local: Path) -> None:
        """Refuse what arrived if it is not what was sent."""
        if not self.holds(name, local):
            raise OSError(f"{self.where(name)}: what arrived is not what was sent; push again")

    def where(self, name: str) -> str:
        """Where a file lies, for messages."""
        return f"{self.address}/{name}" if name else self.address


class LocalFiles(Files):
    """Files on this machine: nothing is read or written through a link, and no device is read.

    Raises
    ------
    TraceFormatError
        When something else than a file inside the folder would be touched.
    """

    is_listed = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def size(self, name: str = "", *, insist: bool = False) -> int | None:  # noqa: ARG002
        found = self._found(name)
        return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None

    def sizes(self) -> dict[str, int]:
        return dict(_sizes_below(str(self.path), ""))

    def children(self, folder: str = "") -> list[str]:
        self._found(folder)
        try:
            with os.scandir(self.path / folder) as entries:
                return [f"{one.name}/" if one.is_dir(follow_symlinks=False) else one.name for one in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(
        self, name: str = "", start: int = 0, end: int | None = None, *, check: CheckSize | None = None
    ) -> bytes | None:
        found = self._found(name)
        if found is None or stat.S_ISDIR(found.st_mode):
            return None
        if not stat.S_ISREG(found.st_mode):
            raise TraceFormatError(f"{self.where(name)} is not a file: do not use this trace")
        if check is not None:
            check(found.st_size)
        with open(self.path / name, "rb") as file:  # noqa: PTH123 (half the time of Path.open)
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def write(self, name: str, content: bytes | Path) -> None:
        self._found(name)
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            if isinstance(content, Path):
                shutil.copyfile(content, partial)
            else:
                partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        found = self._found(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            shutil.rmtree(self.path / name)
        elif found is not None:
            (self.path / name).unlink()

    def _found(self, name: str) -> os.stat_result | None:
        """What is at a name; None where there is nothing. No part below the folder may be a link."""
        path, found = str(self.path), None
        for part in name.split("/") if name else ():
            if part == "..":
                raise TraceFormatError(f"{self.where(name)} leads out of the trace: do not use it")
            path = f"{path}/{part}"
            try:
                found = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", False):  # that: of Windows
                raise TraceFormatError(f"{path} is a link, where a trace has files only: do not use it")
        return found if name else _stat(path)


def asked(ask: Callable[[], _Answer], is_passing: Callable[[Exception], bool]) -> _Answer:
    """What a server answers, which is asked again when an error may pass: the one place that does so."""
    begun = time.monotonic()
    for attempt in range(1, TRIES + 1):
        try:
            return ask()
        except Exception as error:
            if attempt == TRIES or time.monotonic() - begun > GIVE_UP_SECONDS or not is_passing(error):
                raise
        time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def _sizes_below(root: str, below: str) -> Iterator[tuple[str, int]]:
    # not by os.walk and Path: with some thousand chunks they take longer than all else of `attrace info`
    if not os.path.isdir(root):  # noqa: PTH112
        return
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes_below(entry.path, f"{below}{entry.name}/")
            else:
                yield f"{below}{entry.name}", entry.stat(follow_symlinks=False).st_size


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sha256(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
