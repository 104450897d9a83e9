"""Copying a trace to an address and back: what is there already is not sent again, and what arrived is checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from attrace.analysis.integrity.verify import verify
from attrace.analysis.storage.limits import Limits, variable
from attrace.analysis.storage.remote_files import (
    BLOCK_BYTES,
    ROOT,
    Progress,
    RemoteFiles,
    Transferred,
    files_root_last,
    send_missing,
)
from attrace.analysis.storage.store import open_store
from attrace.analysis.storage.zip_entries import checked_name
from attrace.schemas import InputError, TraceExistsError, TraceFormatError, TraceNotFoundError


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
    names = [""] if source.is_file() else files_root_last(source)
    return send_missing(source, names, RemoteFiles.at(url, storage_options), progress=progress)


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


class _Source(Protocol):
    """Where a trace is pulled from."""

    def sizes(self) -> dict[str, int]:
        """Length of every file by its name below the address; of a packed trace under the empty name."""

    def blocks(self, name: str, begin: int) -> Iterator[bytes]:
        """The bytes of a file from a place on."""

    def can_go_on(self, name: str) -> bool:
        """Whether a part of a file can be asked for."""


@dataclass(frozen=True)
class _ListedFiles:
    """A packed trace, or the files of a folder, that a file system lists."""

    url: str
    remote: RemoteFiles

    def sizes(self) -> dict[str, int]:
        if self.url.endswith(".zip"):
            size = self.remote.size("")
            sizes = {} if size is None else {"": size}
        else:
            sizes = self.remote.sizes()
        if not sizes:
            raise TraceNotFoundError(f"no trace at {self.url}: there is nothing; check the address")
        return sizes

    def blocks(self, name: str, begin: int) -> Iterator[bytes]:
        return self.remote.blocks(name, self.remote.size(name) or 0, begin)

    def can_go_on(self, name: str) -> bool:  # noqa: ARG002
        return True


def _source(url: str, storage_options: Mapping[str, Any] | None) -> _Source:
    if url.startswith(("http://", "https://")):
        from attrace.analysis.storage.web_files import WebFiles  # needs obstore

        return WebFiles(url.rstrip("/"), storage_options or {}, BLOCK_BYTES)
    return _ListedFiles(url, RemoteFiles.at(url, storage_options))


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
    if ROOT not in sizes:
        raise TraceNotFoundError(f"no trace at {url}: expected a file {ROOT} there, found none; check the address")
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
