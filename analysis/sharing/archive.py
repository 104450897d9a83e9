"""A trace in one zip file: writing it whole or not at all, and taking it apart without trusting it."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrace.analysis.storage.files import LocalFiles
from attrace.analysis.storage.store import open_store
from attrace.analysis.storage.zip_files import ZipFiles, check_name
from attrace.schemas import InputError, TraceExistsError, TraceFormatError, TraceNotFoundError
from attrace.schemas.checks import require_type
from attrace.schemas.durable import sync_names

ZIP: Final = ".zip"
"""End of the name of a packed trace."""

_TIMELESS: Final = (1980, 1, 1, 0, 0, 0)
"""Date of every entry, so that equal traces are equal files: the first that a zip file can hold."""


class ZipWriter:
    """Adds entries to a zip file: stored, not deflated, with nothing in it that differs from run to run."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def write(self, name: str, content: bytes) -> None:
        """Add an entry."""
        entry = zipfile.ZipInfo(check_name(name, "the trace"), _TIMELESS)
        entry.create_system = 3  # Unix, on every system
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        self._archive.writestr(entry, content)


@contextmanager
def zip_writer(target: Path, *, overwrite: bool) -> Iterator[ZipWriter]:
    """A zip file that is written beside its place and moved there once it is whole and on the disk.

    Raises
    ------
    InputError
        If the name does not end in `.zip`.
    TraceExistsError
        If something is there that must not be replaced.
    """
    if target.suffix != ZIP:
        raise InputError(f"{target}: expected a name that ends in {ZIP}, by which a packed trace is known")
    if target.is_dir() or (target.exists() and not overwrite):
        raise TraceExistsError(f"{target} exists: choose another path, or pass overwrite=True (--overwrite)")
    partial = _beside(target)
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                yield ZipWriter(archive)
            os.fsync(file.fileno())
        partial.replace(target)
        sync_names(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def unpack(packed: str | Path, target: str | Path, *, overwrite: bool = False) -> Path:
    """Take a packed trace apart: a folder with the same content, written beside its place and moved there.

    Parameters
    ----------
    packed
        The zip file.
    target
        Folder to make.
    overwrite
        Replace a trace that is there. Anything else that is there is never replaced.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    TraceNotFoundError, TraceFormatError
        If there is no packed trace, if an entry would be written elsewhere (an absolute name, `..`, a link), if two
        have one name, if it unpacks to more than 100 times its size, or if bytes are not those that were packed.
    TraceExistsError
        If something is there that must not be replaced.

    Notes
    -----
    Nothing is read of the chunks but their bytes; `verify` checks what they hold.
    """
    for path, expected in ((packed, f"the path of a {ZIP} file"), (target, "the path of a folder to make")):
        require_type(path, (str, os.PathLike), "path", expected)
    packed, target = Path(packed), Path(target)
    if not packed.is_file():
        raise TraceNotFoundError(f"no packed trace at {packed}: expected a {ZIP} file, found none; check the path")
    _check_room(target, overwrite=overwrite)
    limits = open_store(packed).limits
    partial = _beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _extract(ZipFiles(LocalFiles(packed), limits), partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        sync_names(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _extract(entries: ZipFiles, folder: Path) -> None:
    for name in entries.sizes():
        try:
            content = entries.read(name) or b""
        except ValueError as error:
            raise TraceFormatError(
                f"{entries.where(name)} cannot be unpacked, it is damaged ({error}): copy it again"
            ) from error
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
            os.fsync(file.fileno())


def _check_room(target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise TraceExistsError(f"{target} exists: choose another path, or pass overwrite=True (--overwrite)")
    try:
        open_store(target)
    except TraceFormatError as error:
        raise TraceExistsError(
            f"{target} exists and is not a trace, so it is not overwritten: choose another path"
        ) from error


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")
