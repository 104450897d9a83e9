"""Where a command writes its result: a path on this machine, or an address."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from attrace.cli.shared.output import check_output, chunk_progress

if TYPE_CHECKING:
    from attrace.analysis.storage.files import Files

MARK: Final = "attrace_maps"
"""Attribute of the root of every folder that is written: only one that has it is ever replaced."""


@dataclass(frozen=True)
class Destination:
    """A path, or an address that `attrace push` could send to: of a folder if it ends in `.zarr`, else of a file."""

    where: str

    def __str__(self) -> str:
        return self.where

    @property
    def name(self) -> str:
        """The last part of it."""
        return PurePosixPath(self.where.rstrip("/")).name

    @property
    def suffix(self) -> str:
        """What its name ends in."""
        return PurePosixPath(self.name).suffix

    @property
    def beside(self) -> Path:
        """The folder on this machine for what is kept until all is written: the working directory for an address."""
        return Path() if self._path is None else self._path.parent

    def check(self, *, overwrite: bool) -> None:
        """Refuse to write over what is there, before any work is done; what was cut off may go on.

        Raises
        ------
        FileExistsError
            If something is there that is not to be overwritten, or a folder that attrace did not write.
        """
        if self._path is not None:
            check_output(self._path, overwrite=overwrite)
            is_folder = self._path.is_dir()
        else:
            is_folder = self._check_address(overwrite=overwrite)
        if is_folder and not _has_mark(self._files.read("zarr.json")):
            raise FileExistsError(f"{self.where} is a folder that attrace did not write: choose another one")

    def write(self, write: Callable[[Path], None]) -> None:
        """Write a file or folder, whole or not at all; to an address by way of a file on this machine."""
        if self._path is not None:
            _write_beside(self._path, write)
            return
        from attrace.analysis.sharing.transfer import replace_folder, send

        with tempfile.TemporaryDirectory(prefix="attrace-") as folder, chunk_progress("sending") as progress:
            local = Path(folder, self.name)
            write(local)
            (replace_folder if local.is_dir() else send)(local, self._files, progress=progress)

    def _check_address(self, *, overwrite: bool) -> bool:
        """Whether a whole folder is at the address, which may be replaced."""
        from attrace.analysis.sharing.transfer import UNFINISHED

        if self.suffix == ".zarr":
            names = self._files.sizes().keys()
            is_there = is_folder = bool(names) and UNFINISHED not in names
        else:
            is_there, is_folder = self._files.size() is not None, False
        if is_there and not overwrite:
            raise FileExistsError(f"{self.where} exists: choose another address, or pass --overwrite")
        return is_folder

    @property
    def _files(self) -> Files:
        from attrace.analysis.storage.address import files_at

        return files_at(self.where)

    @property
    def _path(self) -> Path | None:
        """The path on this machine; None of an address."""
        from attrace.schemas.address import is_address, local_path

        return None if is_address(self.where) else local_path(self.where)


def _write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder beside its place, and move it there once it is whole."""
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    _remove(partial)
    try:
        write(partial)
        _remove(path)
        partial.replace(path)
    finally:
        _remove(partial)


def _has_mark(root: bytes | None) -> bool:
    """Whether attrace wrote a folder of maps or statistics, so that it may be replaced."""
    try:
        document = json.loads(root or b"null")
    except ValueError:
        return False
    return isinstance(document, dict) and MARK in document.get("attributes", {})


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
