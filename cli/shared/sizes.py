"""Bytes that the parts of a stored trace take on disk."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrace.analysis import Trace


def stored_sizes(trace: Trace, groups: Collection[str]) -> dict[str, int] | None:
    """Bytes below each of some groups, and under `""` of all else; None for a folder that is not local."""
    files = _files(trace)
    if files is None:
        return None
    sizes = Counter(dict.fromkeys([*groups, ""], 0))
    for name, size in files:
        sizes[next((group for group in groups if name.startswith(f"{group}/")), "")] += size
    return dict(sizes)


def _files(trace: Trace) -> Iterable[tuple[str, int]] | None:
    from attrace.analysis.storage.remote_zip import RemoteZipStore

    store = trace.stored.root.store
    if isinstance(store, RemoteZipStore):
        return store.sizes().items()
    local = Path(trace.path.removeprefix("file://")).expanduser()
    if not local.exists():
        return None
    return _files_of_zip(local) if local.is_file() else _files_of_folder(str(local))


def _files_of_folder(root: str, below: str = "") -> Iterator[tuple[str, int]]:
    # not by os.walk and Path: with some thousand chunks they take longer than all else of `attrace info`
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_of_folder(entry.path, f"{below}{entry.name}/")
            else:
                yield f"{below}{entry.name}", entry.stat(follow_symlinks=False).st_size


def _files_of_zip(path: Path) -> Iterator[tuple[str, int]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            yield entry.filename, entry.compress_size
