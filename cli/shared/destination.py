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
    from attrace.analysis.storage.remote_files import RemoteFiles

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
        return PurePosixPath(self.where.rstrip("/")).name if self._is_address else self._path.name

    @property
    def suffix(self) -> str:
        """What its name ends in."""
        return PurePosixPath(self.name).suffix

    @property
    def beside(self) -> Path:
        """The folder on this machine for what is kept until all is written: the working directory for an address."""
        return Path() if self._is_address else self._path.parent

    def check(self, *, overwrite: bool) -> None:
        """Refuse to write over what is there, before any work is done; what was cut off may go on.

        Raises
        ------
        FileExistsError
            If something is there that is not to be overwritten, or a folder that attrace did not write.
        """
        if self._is_address:
            self._check_address(overwrite=overwrite)
            return
        check_output(self._path, overwrite=overwrite)
        if self._path.is_dir() and not _is_ours(self._path):
            raise FileExistsError(f"{self.where} is a folder that attrace did not write: choose another path")

    def write(self, write: Callable[[Path], None]) -> None:
        """Write a file or folder, whole or not at all; to an address by way of a file on this machine."""
        if not self._is_address:
            _write_beside(self._path, write)
            return
        from attrace.analysis.storage.remote_files import replace_folder, send_missing

        with tempfile.TemporaryDirectory(prefix="attrace-") as folder, chunk_progress("sending") as progress:
            local = Path(folder, self.name)
            write(local)
            if local.is_dir():
                replace_folder(local, self._files(), progress=progress)
            else:
                send_missing(local, [""], self._files(), progress=progress)

    def _check_address(self, *, overwrite: bool) -> None:
        is_there, is_other = self._folder_there() if self.suffix == ".zarr" else (self._file_is_there(), False)
        if is_there and not overwrite:
            raise FileExistsError(f"{self.where} exists: choose another address, or pass --overwrite")
        if is_other:
            raise FileExistsError(f"{self.where} is a folder that attrace did not write: choose another address")

    def _file_is_there(self) -> bool:
        return self._files().size("") is not None

    def _folder_there(self) -> tuple[bool, bool]:
        """Whether there is a folder that is not a cut-off one of ours, and whether it is none of ours."""
        from attrace.analysis.storage.remote_files import ROOT, UNFINISHED

        files = self._files()
        sizes = files.sizes()
        if not sizes or UNFINISHED in sizes:
            return False, False
        return True, not (ROOT in sizes and _has_mark(b"".join(files.blocks(ROOT, sizes[ROOT]))))

    def _files(self) -> RemoteFiles:
        from attrace.analysis.storage.remote_files import RemoteFiles

        return RemoteFiles.at(self.where)

    @property
    def _is_address(self) -> bool:
        return "://" in self.where and not self.where.startswith("file://")

    @property
    def _path(self) -> Path:
        return Path(self.where.removeprefix("file://"))


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


def _is_ours(folder: Path) -> bool:
    """Whether attrace wrote a folder of maps or statistics, so that it may be replaced."""
    try:
        return _has_mark((folder / "zarr.json").read_bytes())
    except OSError:
        return False


def _has_mark(root: bytes) -> bool:
    try:
        document = json.loads(root)
    except ValueError:
        return False
    return isinstance(document, dict) and MARK in document.get("attributes", {})


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
