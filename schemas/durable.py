"""Making written data survive a loss of power."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes only what is open for writing


def sync_names(folder: Path) -> None:
    """Flush the names in a folder to the disk, such as one that was just renamed, where folders can be opened."""
    with suppress(PermissionError):
        _sync(folder, os.O_RDONLY)


def sync_tree(folder: Path) -> None:
    """Flush every file and every name below a folder to the disk."""
    for below, _, files in os.walk(folder):
        for name in files:
            sync_file(Path(below, name))
        sync_names(Path(below))


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
