"""Copying a trace to an address and back: what is there already is not sent again, and what arrived is checked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from attrace.analysis.entries import checked_name
from attrace.analysis.limits import Limits, variable
from attrace.analysis.store import OBSTORE_SCHEMES, open_store
from attrace.analysis.verify import verify
from attrace.analysis.webdav import WEB_SCHEMES, webdav_files
from attrace.schemas import InputError, TraceExistsError, TraceFormatError, TraceNotFoundError

Progress = Callable[[int, int], None]
"""Called with the number of files done so far and the number of all."""

BLOCK_BYTES: Final = 2**26
"""What is read of a file at a time."""

_ROOT: Final = "zarr.json"


@dataclass(frozen=True)
class Transferred:
    """What a transfer did."""

    files: int
    """Files of the trace."""
    sent: int
    """Those that were copied; the others were there."""
    bytes_sent: int
    """Their length."""


def push(
    source: str | Path,
    url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Transferred:
    """Copy a trace, a folder or a packed one, to an address; a push that was cut off goes on where it was.

    A file that is there with the same size and SHA-256 is not sent again. What was sent is read back and compared. The
    metadata that a reader needs first is sent last, so that a trace that is not whole does not open.

    Parameters
    ----------
    source
        The trace on this machine.
    url
        Where to: `s3://`, `gs://`, `az://`, `https://` of a WebDAV server, `hf://datasets/owner/name/...`, or another
        address that fsspec writes. It ends in `.zip` exactly where the trace is packed.
    storage_options
        Options of the address's file system, as for `open_trace`.
    progress
        Called after each file.

    Raises
    ------
    InputError
        If the address does not fit the trace.
    TraceFormatError
        If `source` is no trace.
    OSError
        If what arrived is not what was sent.
    """
    source = Path(source)
    open_store(source)
    if source.is_file() != url.endswith(".zip"):
        raise InputError(f"{url}: expected an address that ends in .zip exactly where the trace is a packed one")
    filesystem, target = _filesystem(url, storage_options)
    files = [""] if source.is_file() else _files_root_last(source)
    sent = size = 0
    for number, name in enumerate(files, start=1):
        local, remote = (source / name, f"{target}/{name}") if name else (source, target)
        if not _is_there(filesystem, remote, local):
            _send(filesystem, remote, local)
            sent, size = sent + 1, size + local.stat().st_size
        if progress is not None:
            progress(number, len(files))
    return Transferred(len(files), sent, size)


def pull(
    url: str,
    target: str | Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Transferred:
    """Copy a trace from an address; a pull that was cut off goes on where it was.

    Files are fetched beside `target` and moved there once `verify` finds the trace sound. What was fetched before is
    kept if its size is right; if the trace is then not sound, all of it is fetched anew the next time.

    Parameters
    ----------
    url
        A packed trace, or a folder: at an address that can be listed, or on a web server, where the consolidated
        metadata of a closed trace says which files there may be.
    target
        The file or folder to make.
    storage_options, progress
        As for `push`.

    Raises
    ------
    TraceExistsError
        If something is at `target`.
    TraceNotFoundError
        If there is nothing at `url`.
    TraceFormatError
        If what arrived is not sound.
    """
    target = Path(target)
    if target.exists():
        raise TraceExistsError(f"{target} exists: choose another path")
    source = _source(url, storage_options)
    sizes = _checked(source.sizes(), url)
    partial = target.with_name(f".{target.name}.partial{target.suffix}")
    sent = size = 0
    for number, (name, length) in enumerate(sizes.items(), start=1):
        local = partial / name if name else partial
        if not local.is_file() or local.stat().st_size != length:
            _fetch(source, name, local, length)
            sent, size = sent + 1, size + length
        if progress is not None:
            progress(number, len(sizes))
    _require_sound(partial, url)
    partial.rename(target)
    return Transferred(len(sizes), sent, size)


def _filesystem(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """A file system of fsspec, or what works like one, and the path in it: obstore's where it has one."""
    scheme = url.partition("://")[0]
    try:
        if scheme in WEB_SCHEMES:
            return webdav_files(url, storage_options)
        if scheme in OBSTORE_SCHEMES:
            import obstore.fsspec  # optional: only addresses need it

            store: Any = obstore.fsspec.FsspecStore
            return store(scheme, **(storage_options or {})), url.partition("://")[2].rstrip("/")
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url, **(storage_options or {}))
    except ImportError as error:
        raise ImportError(f"{url} needs {error.name}: pip install 'attrace[cluster]', or its client") from error
    return filesystem, str(path).rstrip("/")


def _files_root_last(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    kept = (name for name in names if not name.endswith(".partial"))
    return sorted(kept, key=lambda name: (name == _ROOT, name))


def _is_there(filesystem: Any, remote: str, local: Path) -> bool:
    try:
        size = filesystem.info(remote)["size"]
    except FileNotFoundError:
        return False
    return size == local.stat().st_size and _digest(_remote_blocks(filesystem, remote, size)) == _digest_of(local)


def _send(filesystem: Any, remote: str, local: Path) -> None:
    parent = remote.rpartition("/")[0]
    if parent:
        filesystem.makedirs(parent, exist_ok=True)
    filesystem.put_file(str(local), remote)
    filesystem.invalidate_cache()
    if not _is_there(filesystem, remote, local):
        raise OSError(f"{remote}: what arrived is not what was sent; push again")


class _Source(Protocol):
    """Where a trace is pulled from."""

    def sizes(self) -> dict[str, int]:
        """Length of every file by its name below the address; of a packed trace under the empty name."""

    def blocks(self, name: str, begin: int) -> Iterator[bytes]:
        """The bytes of a file from a place on."""

    def can_go_on(self, name: str) -> bool:
        """Whether a part of a file can be asked for."""


@dataclass(frozen=True)
class _FsspecFiles:
    """A packed trace, or the files of a folder, that a file system of fsspec lists."""

    url: str
    filesystem: Any
    path: str

    def sizes(self) -> dict[str, int]:
        try:
            if self.url.endswith(".zip"):
                return {"": int(self.filesystem.info(self.path)["size"])}
            found = self.filesystem.find(self.path, detail=True)
        except FileNotFoundError as error:
            raise TraceNotFoundError(f"no trace at {self.url}: there is nothing; check the address") from error
        return {str(path).removeprefix(self.path).strip("/"): int(one["size"]) for path, one in found.items()}

    def blocks(self, name: str, begin: int) -> Iterator[bytes]:
        path = self._path(name)
        return _remote_blocks(self.filesystem, path, int(self.filesystem.info(path)["size"]), begin)

    def can_go_on(self, name: str) -> bool:  # noqa: ARG002
        return True

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path


def _source(url: str, storage_options: Mapping[str, Any] | None) -> _Source:
    if url.startswith(("http://", "https://")):
        from attrace.analysis.web_files import WebFiles  # needs obstore

        return WebFiles(url.rstrip("/"), storage_options or {}, BLOCK_BYTES)
    return _FsspecFiles(url, *_filesystem(url, storage_options))


def _checked(sizes: dict[str, int], url: str) -> dict[str, int]:
    """The lengths of a trace's files, if a trace may have such files."""
    if url.endswith(".zip"):
        return sizes
    limits = Limits.from_environment()
    if len(sizes) > limits.entries:
        raise TraceFormatError(
            f"{url} has {len(sizes)} files, the limit is {limits.entries}: if you trust it, raise {variable('entries')}"
        )
    for name, size in sizes.items():
        limits.check_file(checked_name(name, url), size, f"{url}/{name}")
    if _ROOT not in sizes:
        raise TraceNotFoundError(f"no trace at {url}: expected a file {_ROOT} there, found none; check the address")
    return sizes


def _fetch(source: _Source, name: str, local: Path, length: int) -> None:
    """Fetch a file; of one that was cut off, what is missing."""
    local.parent.mkdir(parents=True, exist_ok=True)
    begun = local.stat().st_size if local.is_file() and local.stat().st_size < length else 0
    if begun and not source.can_go_on(name):
        begun = 0
    with local.open("ab" if begun else "wb") as file:
        for block in source.blocks(name, begun):
            file.write(block)
            if file.tell() > length:
                break
        file.flush()
        os.fsync(file.fileno())
    if local.stat().st_size != length:
        raise OSError(f"{name or local.name}: expected {length} bytes, {local.stat().st_size} came; pull again")


def _remote_blocks(filesystem: Any, remote: str, length: int, begin: int = 0) -> Iterator[bytes]:
    """The bytes of a remote file from a place on; a small one in one request without a range."""
    if begin == 0 and length <= BLOCK_BYTES:
        yield filesystem.cat_file(remote)
        return
    for start in range(begin, length, BLOCK_BYTES):
        yield filesystem.cat_file(remote, start=start, end=min(length, start + BLOCK_BYTES))


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _require_sound(partial: Path, url: str) -> None:
    try:
        problems = verify(partial).problems
    except TraceFormatError as error:
        _remove(partial)
        raise TraceFormatError(f"what arrived from {url} is no trace ({error})") from error
    if problems:
        _remove(partial)
        raise TraceFormatError(f"what arrived from {url} is not sound: {problems[0]} ({len(problems)} problems)")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
