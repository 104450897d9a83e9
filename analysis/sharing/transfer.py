"""Copying a trace to an address and back: what is there already is not sent again, and what arrived is checked."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import zarr

from attrace.analysis.integrity.verify import verify
from attrace.analysis.storage.address import files_at
from attrace.analysis.storage.files import Files, RangesError
from attrace.analysis.storage.limits import Limits
from attrace.analysis.storage.store import open_store
from attrace.analysis.storage.zip_files import check_name
from attrace.schemas import InputError, TraceExistsError, TraceFormatError, TraceNotFoundError

Progress = Callable[[int, int], None]
"""Called with the number of files done so far and the number of all."""

ROOT: Final = "zarr.json"
"""What a reader of a folder needs first, and what is therefore sent last."""

UNFINISHED: Final = ".attrace-unfinished"
"""A file in a folder that is being replaced, which is there until all of it is."""

_REQUESTS: Final = 8
"""Requests for the length of a file that run at a time."""


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
    metadata that a reader needs first is sent last, so that a trace that is not whole does not open; to `hf://` all of
    it goes in one commit.

    Parameters
    ----------
    source
        The trace on this machine.
    url
        Where to: `s3://`, `gs://`, `az://`, `https://` of a WebDAV server, or `hf://datasets/owner/name/...`. It ends
        in `.zip` exactly where the trace is packed.
    storage_options
        Options of the address's client, as for `open_trace`.
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
    return send(source, files_at(url, storage_options), progress=progress)


def send(source: Path, files: Files, *, progress: Progress | None = None) -> Transferred:
    """Send a file, or the files of a folder that a Zarr store consists of, the root's metadata last."""
    local = _local_files(source)
    done = itertools.count(1)
    sent = files.send(local, lambda: progress(next(done), len(local)) if progress else None)
    return Transferred(len(local), len(sent), sum(local[name].stat().st_size for name in sent))


def replace_folder(source: Path, files: Files, *, progress: Progress | None = None) -> Transferred:
    """Put the files of a folder, and no others, at an address; one that was cut off goes on where it was.

    While it is under way a file `UNFINISHED` is there, and no root, so that what is not whole does not open.

    Raises
    ------
    OSError
        If what arrived is not what was sent.
    """
    there = files.sizes()
    if UNFINISHED not in there:
        files.write(UNFINISHED, b"attrace is writing here: run the command again if it was interrupted\n")
    for name in [ROOT, *(there.keys() - _local_files(source).keys() - {UNFINISHED, ROOT})]:
        if name in there:
            files.delete(name)
    done = send(source, files, progress=progress)
    files.delete(UNFINISHED)
    return done


def pull(
    url: str,
    target: str | Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Transferred:
    """Copy a trace from an address; a pull that was cut off goes on where it was.

    Files are fetched beside `target` and moved there once `verify` finds the trace valid. What was fetched before is
    kept if its size is right; if the trace is then not valid, all of it is fetched anew the next time.

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
        If what arrived is not valid.
    """
    url, target = url.rstrip("/"), Path(target)
    if target.exists():
        raise TraceExistsError(f"{target} exists: choose another path")
    files = files_at(url, storage_options)
    sizes = _sizes(files, url, storage_options)
    partial = target.with_name(f".{target.name}.partial{target.suffix}")
    sent = size = 0
    for number, (name, length) in enumerate(sizes.items(), start=1):
        local = partial / name if name else partial
        if not local.is_file() or local.stat().st_size != length:
            _fetch(files, name, local, length)
            sent, size = sent + 1, size + length
        if progress is not None:
            progress(number, len(sizes))
    _require_valid(partial, url)
    partial.rename(target)
    return Transferred(len(sizes), sent, size)


def _local_files(source: Path) -> dict[str, Path]:
    """A file under the empty name, or the files of a folder, the root's metadata last."""
    if source.is_file():
        return {"": source}
    paths = [path for path in source.rglob("*") if path.is_file() and path.suffix != ".partial"]
    names = sorted((path.relative_to(source).as_posix() for path in paths), key=lambda name: (name == ROOT, name))
    return {name: source / name for name in names}


def _sizes(files: Files, url: str, storage_options: Mapping[str, Any] | None) -> dict[str, int]:
    """Length of every file of a trace by its name below the address; of a packed trace under the empty name."""
    if url.endswith(".zip"):
        found = {"": files.size(insist=True)}
    elif url.startswith(("http://", "https://")):  # lists nothing
        names = _names_in_metadata(url, storage_options)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found = dict(zip(names, pool.map(partial(files.size, insist=True), names), strict=True))
    else:
        found = dict(files.sizes())
    sizes = {name: size for name, size in found.items() if size is not None}
    if "" not in sizes and ROOT not in sizes:
        raise TraceNotFoundError(f"no trace at {url}: expected a file {ROOT} there, found none; check the address")
    limits = Limits.from_environment()
    limits.check("files", len(sizes), f"{url}: {len(sizes)} files")
    for name, size in sizes.items():
        if name:
            limits.check_file(check_name(name, url), size, where=files.where(name))
    return sizes


def _names_in_metadata(url: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    """Names of every file that a trace may consist of: metadata of each group and array, and each chunk."""
    stored = open_store(url, storage_options)
    if stored.root.metadata.consolidated_metadata is None:
        raise TraceFormatError(
            f"{stored.path} has no consolidated metadata, and a web server lists no files: it was not closed (attrace "
            "repair closes it), or ask for it packed"
        )
    members = stored.members()
    count = len(members) + sum(member.nchunks for _, member in members if isinstance(member, zarr.Array))
    stored.limits.check("files", count, f"{stored.path} says that it has {count} files")
    names = [ROOT]
    for path, member in members:
        names.append(f"{path}/{ROOT}")
        if isinstance(member, zarr.Array):
            grid = (range(count) for count in member.cdata_shape)
            names += [f"{path}/{member.metadata.encode_chunk_key(index)}" for index in itertools.product(*grid)]
    return names


def _fetch(files: Files, name: str, local: Path, length: int) -> None:
    """Fetch a file; of one that was cut off, what is missing, where the server answers that."""
    local.parent.mkdir(parents=True, exist_ok=True)
    begun = local.stat().st_size if local.is_file() and local.stat().st_size < length else 0
    try:
        _append(files, name, local, begun, length)
    except RangesError:
        _append(files, name, local, 0, length)
    if local.stat().st_size != length:
        raise OSError(f"{files.where(name)}: expected {length} bytes, {local.stat().st_size} came; pull again")


def _append(files: Files, name: str, local: Path, begun: int, length: int) -> None:
    with local.open("ab" if begun else "wb") as file:
        for block in files.blocks(name, begun):
            file.write(block)
            if file.tell() > length:
                break
        file.flush()
        os.fsync(file.fileno())


def _require_valid(partial: Path, url: str) -> None:
    try:
        problems = verify(partial).problems
    except TraceFormatError as error:
        _remove(partial)
        raise TraceFormatError(f"what arrived from {url} is no trace ({error})") from error
    if problems:
        _remove(partial)
        raise TraceFormatError(f"what arrived from {url} is not valid: {problems[0]} ({len(problems)} problems)")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
