"""Completing a trace that was cut off to a valid shorter one."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
import zarr.codecs

from attrace.analysis.storage.address import require_folder_here
from attrace.analysis.storage.checked_store import CheckedStore
from attrace.analysis.storage.files import LocalFiles
from attrace.analysis.storage.metadata import copies_in, own_documents, read_document, seal, write_document
from attrace.analysis.storage.store import StoredTrace, format_errors, open_store, unconsolidated
from attrace.schemas import InputError, Manifest, TraceExistsError, TraceFormatError, root_arrays
from attrace.schemas.digest import DIGEST, canonical_json, metadata_digest, without_copies
from attrace.schemas.durable import sync_tree
from attrace.schemas.folders import FolderLock
from attrace.schemas.layout import DERIVED, DERIVED_STEPS, MANIFEST_ATTRIBUTE
from attrace.schemas.manifest import utc_now


def repair(source: str | Path, target: str | Path | None = None) -> int:
    """Close a trace whose recorder was killed: arrays are cut to the finished steps, and the manifest says how many.

    Every finished step is kept, and nothing of them is written anew. A trace that was closed stays as it is, but for
    metadata that disagreed. A trace that is still being recorded is not repaired in place.

    Parameters
    ----------
    source
        A folder.
    target
        Folder of the repaired copy; None repairs in place.

    Returns
    -------
    int
        Finished steps.

    Raises
    ------
    InputError
        If the trace is not a folder, or lacks scores.
    TraceFormatError
        If the finished steps have a hole, or an array that the manifest promises is absent or another.
    TraceExistsError
        If something is at `target`, or the trace to repair in place is being recorded.
    """
    require_folder_here(source, "repair")
    path = Path(source)
    if not path.is_dir() and path.exists():
        raise InputError(f"{path}: expected a folder; unpack a packed trace first")
    steps = _whole_steps(_open(path))
    if target is None:
        lock = FolderLock(path)
        with format_errors(f"trace {path} cannot be repaired: metadata of it cannot be read"):
            _close(path, steps)
        lock.release()
        return steps
    target = Path(target)
    if target.exists():
        raise TraceExistsError(f"{target} exists: choose another path")
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copytree(path, partial, symlinks=True, ignore=shutil.ignore_patterns("*.partial"))
        with format_errors(f"trace {path} cannot be repaired: metadata of it cannot be read"):
            _close(partial, steps)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return steps


def _open(path: Path) -> StoredTrace:
    """The trace by the metadata of each array, or by the copy of it in the root's, if that has the digest.

    Raises
    ------
    TraceFormatError
        If neither has the digest of a closed trace.
    """
    stored = open_store(path, check=False)
    root = read_document(stored.root.store)
    own = replace(stored, root=unconsolidated(stored))
    if stored.manifest.status == "recording" or stored.manifest.major == 1:
        return own
    if metadata_digest({**(copies_in(root) or {}), "": root}) == root["attributes"].get(DIGEST):
        return stored
    with format_errors(f"{path}: metadata of an array cannot be read, and the copy of it is not what was written"):
        if metadata_digest({**own_documents(own.root), "": root}) == root["attributes"].get(DIGEST):
            return own
    raise TraceFormatError(
        f"{path}: neither the metadata of each array nor the copy of it is what was written: not repaired; copy the "
        "trace again"
    )


def _restore_documents(stored: StoredTrace, root: zarr.Group) -> None:
    """Write anew each `zarr.json` that is not what its copy says, where the trace was opened by the copies."""
    if stored.root.metadata.consolidated_metadata is None:
        return
    for path, copy in (copies_in(read_document(root.store)) or {}).items():
        own: Any = None
        with suppress(FileNotFoundError, ValueError):
            own = read_document(root.store, path)
        if own is None or canonical_json(without_copies(own)) != canonical_json(without_copies(copy)):
            write_document(root.store, dict(copy), path)


def _whole_steps(stored: StoredTrace) -> int:
    """Number of finished steps, once every array is known to hold them."""
    finished = stored.finished_steps
    if finished != tuple(range(len(finished))):
        raise TraceFormatError(f"{stored.path}: the finished steps have a hole, which no recorder leaves: not repaired")
    for path in stored.required_paths():
        stored.array(path)
    return len(finished)


def _close(path: Path, steps: int) -> None:
    for unfinished in path.rglob("*.partial"):
        unfinished.unlink()
    stored = _open(path)
    store = CheckedStore(LocalFiles(path), stored.limits, read_only=False)
    root = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
    _restore_documents(stored, root)
    for name in stored.required_paths():
        array = root[name]
        if isinstance(array, zarr.Array) and array.metadata.dimension_names[0] == "time":  # type: ignore[union-attr, index]
            array.resize((steps, *array.shape[1:]))
    if stored.manifest.status == "recording" and stored.manifest.major > 1:
        _repeat_times(root, stored.manifest, steps)
    for one in stored.manifest.classes:
        derived = stored.group(f"{one.group}/{DERIVED}")
        if derived is not None and derived.attrs.get(DERIVED_STEPS) != steps:
            del root[f"{one.group}/{DERIVED}"]
    manifest = stored.manifest
    status = "interrupted" if manifest.status == "recording" else manifest.status
    manifest = manifest.replace(status=status, steps=steps, finished=manifest.finished or utc_now())
    seal(root.store, own_documents(root), major=manifest.major, **{MANIFEST_ATTRIBUTE: manifest.to_json()})
    sync_tree(path)


def _repeat_times(root: zarr.Group, manifest: Manifest, steps: int) -> None:
    """Write the coordinates along time beside the arrays of each class, as closing a trace does."""
    for spec in root_arrays(steps)[:2]:
        values: Any = root[spec.name][...]  # type: ignore[index]
        for one in manifest.classes:
            path, crc32c = f"{one.group}/{spec.name}", zarr.codecs.Crc32cCodec()
            array = root.create_array(**spec.creation | {"name": path}, compressors=[crc32c], overwrite=True)
            array[...] = values
