"""Files at an address: asking what is there, sending one and reading back what arrived."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attrace.analysis.storage.store import OBSTORE_SCHEMES
from attrace.analysis.storage.webdav import WEB_SCHEMES, webdav_files

Progress = Callable[[int, int], None]
"""Called with the number of files done so far and the number of all."""

BLOCK_BYTES: Final = 2**26
"""What is read of a file at a time."""

ROOT: Final = "zarr.json"
"""What a reader of a folder needs first, and what is therefore sent last."""

UNFINISHED: Final = ".attrace-unfinished"
"""A file in a folder that is being replaced, which is there until all of it is."""


@dataclass(frozen=True)
class Transferred:
    """What a transfer did."""

    files: int
    """Files of the trace."""
    sent: int
    """Those that were copied; the others were there."""
    bytes_sent: int
    """Their length."""


@dataclass(frozen=True)
class RemoteFiles:
    """One file, which has the empty name, or the files of a folder, by their names below it."""

    filesystem: Any
    """Of fsspec, or what works like one."""
    path: str
    """Of the file or folder in the file system."""

    @classmethod
    def at(cls, url: str, storage_options: Mapping[str, Any] | None = None) -> RemoteFiles:
        """Those at an address, in the file system of obstore where it has one."""
        scheme = url.partition("://")[0]
        try:
            if scheme in WEB_SCHEMES:
                return cls(*webdav_files(url, storage_options))
            if scheme in OBSTORE_SCHEMES:
                import obstore.fsspec  # optional: only addresses need it

                store: Any = obstore.fsspec.FsspecStore
                # a new one: fsspec would give one of before, made when the environment named another server
                return cls(
                    store(scheme, skip_instance_cache=True, **(storage_options or {})),
                    url.partition("://")[2].rstrip("/"),
                )
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(url, **(storage_options or {}))
        except ImportError as error:
            raise ImportError(f"{url} needs {error.name}: pip install 'attrace[cluster]', or its client") from error
        return cls(filesystem, str(path).rstrip("/"))

    def size(self, name: str) -> int | None:
        """Length of a file; None where there is none."""
        try:
            found = self.filesystem.info(self._path(name))
        except FileNotFoundError:
            return None
        return None if found.get("type") == "directory" else int(found["size"])

    def sizes(self) -> dict[str, int]:
        """Length of every file of the folder by its name; none where there is no folder."""
        try:
            found = self.filesystem.find(self.path, detail=True)
        except FileNotFoundError:
            return {}
        return {str(path).removeprefix(self.path).strip("/"): int(one["size"]) for path, one in found.items()}

    def blocks(self, name: str, length: int, begin: int = 0) -> Iterator[bytes]:
        """The bytes of a file from a place on; those of a small one in one request without a range."""
        path = self._path(name)
        if begin == 0 and length <= BLOCK_BYTES:
            yield self.filesystem.cat_file(path)
            return
        for start in range(begin, length, BLOCK_BYTES):
            yield self.filesystem.cat_file(path, start=start, end=min(length, start + BLOCK_BYTES))

    def holds(self, name: str, local: Path) -> bool:
        """Whether a file is there with the size and SHA-256 of a local one."""
        size = self.size(name)
        return size == local.stat().st_size and _digest(self.blocks(name, size)) == _digest_of(local)

    def send(self, name: str, local: Path) -> None:
        """Write a file, and read it back.

        Raises
        ------
        OSError
            If what arrived is not what was sent.
        """
        path = self._path(name)
        parent = path.rpartition("/")[0]
        if parent:
            self.filesystem.makedirs(parent, exist_ok=True)
        self.filesystem.put_file(str(local), path)
        self.filesystem.invalidate_cache()
        if not self.holds(name, local):
            raise OSError(f"{path}: what arrived is not what was sent; push again")

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.filesystem.rm_file(self._path(name))
        self.filesystem.invalidate_cache()

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path


def send_missing(
    source: Path, names: Sequence[str], remote: RemoteFiles, *, progress: Progress | None = None
) -> Transferred:
    """Send the files of a folder that are not there with the same size and SHA-256, in the order of their names here.

    A file itself, under the empty name, is sent in the same way.
    """
    sent = size = 0
    for number, name in enumerate(names, start=1):
        local = source / name if name else source
        if not remote.holds(name, local):
            remote.send(name, local)
            sent, size = sent + 1, size + local.stat().st_size
        if progress is not None:
            progress(number, len(names))
    return Transferred(len(names), sent, size)


def files_root_last(folder: Path) -> list[str]:
    """Names of the files of a folder that a Zarr store consists of; the root's metadata last."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    kept = (name for name in names if not name.endswith(".partial"))
    return sorted(kept, key=lambda name: (name == ROOT, name))


def replace_folder(source: Path, remote: RemoteFiles, *, progress: Progress | None = None) -> Transferred:
    """Put the files of a folder, and no others, at an address; one that was cut off goes on where it was.

    While it is under way a file `UNFINISHED` is there, and no root, so that what is not whole does not open.

    Raises
    ------
    OSError
        If what arrived is not what was sent.
    """
    names = files_root_last(source)
    if remote.size(UNFINISHED) is None:
        _send_mark(remote)
    there = remote.sizes()
    if ROOT in there:
        remote.remove(ROOT)
    for name in there.keys() - {*names, UNFINISHED, ROOT}:
        remote.remove(name)
    done = send_missing(source, names, remote, progress=progress)
    remote.remove(UNFINISHED)
    return done


def _send_mark(remote: RemoteFiles) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "mark")
        mark.write_text("attrace is writing here: run the command again if it was interrupted\n", encoding="utf-8")
        remote.send(UNFINISHED, mark)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
