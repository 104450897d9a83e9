"""The folder that a trace is written to: who may write there, and what happens to a trace that is replaced."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import zarr

from attrace.schemas import TraceExistsError
from attrace.schemas.durable import sync_names
from attrace.schemas.folders import FolderLock, asides, asides_text, new_aside
from attrace.schemas.layout import MANIFEST_ATTRIBUTE

logger = logging.getLogger("attrace")


class TraceFolder:
    """The folder of a trace that is being written, locked until it is released.

    A trace that is replaced is set aside in one rename, under a hidden name beside it (`.run.zarr.<hex>.aside`). It is
    removed once the new trace is complete, and brought back if that fails; finished steps of the new one are set aside
    then. If the process is killed meanwhile, both stay as they are: `attrace info` and `verify` of the unfinished trace
    name the one that was set aside, as does the error where nothing is at the path, and it comes back by a rename
    (`mv .run.zarr.<hex>.aside run.zarr`). Replacing the unfinished trace removes both once the next one is complete.

    Parameters
    ----------
    path
        The folder, which is made.
    overwrite
        Replace a trace that is there. Anything else that is there is never replaced.

    Raises
    ------
    TraceExistsError
        If something is at `path` that may not be replaced, or a trace that is being recorded.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        check_room(path, overwrite=overwrite)
        self._path = path.resolve()  # what a link points to is replaced, not the link
        self._overwrite = overwrite
        self._replaced: Path | None = None
        self._locks: list[FolderLock] = []
        try:
            if self._path.exists():
                self._locks.append(FolderLock(self._path))
                self._replaced = self._path.rename(new_aside(self._path))
            self._path.mkdir(parents=True)  # of two recorders that begin at once, one makes it
            self._locks.append(FolderLock(self._path))
        except OSError as error:
            self._bring_back()
            if isinstance(error, FileExistsError | FileNotFoundError):
                raise TraceExistsError(
                    f"{path} is being written by another recorder: choose another path{asides_text(self._path)}"
                ) from error
            raise

    def release(self, *, is_complete: bool, finished_steps: int) -> None:
        """Unlock the folder, after removing what was replaced, or bringing it back where the trace is not complete."""
        if is_complete:
            self._remove_asides()
        elif self._replaced is not None:
            self._withdraw(finished_steps)
        for lock in self._locks:
            lock.release()

    def _withdraw(self, finished_steps: int) -> None:
        """Make room for the trace that was replaced and bring it back; finished steps are set aside instead."""
        if self._locks[-1].is_at(self._path):
            if finished_steps:
                withdrawn = self._path.rename(new_aside(self._path))
                logger.warning("%s: its %d finished steps are in %s", self._path, finished_steps, withdrawn)
            else:
                shutil.rmtree(self._path)
        self._bring_back()

    def _bring_back(self) -> None:
        if self._replaced is None:
            return
        if self._path.exists():  # of another recorder
            logger.warning("%s: the trace that was there before stays in %s", self._path, self._replaced)
            return
        self._replaced.rename(self._path)
        sync_names(self._path.parent)
        logger.warning("%s: the trace that was there before is back", self._path)
        self._replaced = None

    def _remove_asides(self) -> None:
        if self._overwrite:
            for aside in asides(self._path):
                shutil.rmtree(aside, ignore_errors=True)


def check_room(path: Path, *, overwrite: bool) -> None:
    """Refuse a path where something is stored, unless it is a trace that may be replaced.

    Raises
    ------
    TraceExistsError
        If it is refused.
    """
    if not path.exists():
        return
    if not overwrite:
        raise TraceExistsError(f"{path} exists: choose another path, or pass overwrite=True (--overwrite)")
    if not _is_trace(path):
        raise TraceExistsError(
            f"{path} exists and is not a trace, so it is not overwritten: choose another path{asides_text(path)}"
        )
    FolderLock(path).release()


def _is_trace(path: Path) -> bool:
    try:
        return MANIFEST_ATTRIBUTE in zarr.open_group(path, mode="r").attrs
    except (OSError, ValueError, KeyError):
        return False
