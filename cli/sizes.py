"""Bytes that the parts of a stored trace take on disk."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path


def stored_sizes(path: str, groups: Collection[str]) -> dict[str, int] | None:
    """Bytes below each of some groups of a local trace, and under `""` of all else; None for one that is not local."""
    local = Path(path.removeprefix("file://")).expanduser()
    if not local.exists():
        return None
    sizes = Counter(dict.fromkeys([*groups, ""], 0))
    for name, size in _files_of_zip(local) if local.is_file() else _files_of_folder(local):
        sizes[next((group for group in groups if name.startswith(f"{group}/")), "")] += size
    return dict(sizes)


def _files_of_folder(root: Path) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            yield file.relative_to(root).as_posix(), file.stat().st_size


def _files_of_zip(path: Path) -> Iterator[tuple[str, int]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            yield entry.filename, entry.compress_size
