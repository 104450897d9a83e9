"""The folder of a trace as a store that reads and writes nothing outside of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from attrace.analysis.storage.limits import Limits
from attrace.schemas import InputError, TraceFormatError


class TraceFolder(LocalStore):
    """A local store that refuses links, devices and files above the limits: a chunk may not be `/dev/zero`.

    Raises
    ------
    TraceFormatError
        When such a file is read, or when something would be written or deleted through a link.
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file, or a part of it; None where there is none."""
        self._check(key)
        return await super().get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file, or a part of it; None where there is none."""
        self._check(key)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._path(key)
        await super().set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._path(key)
        super().set_sync(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file where there is none."""
        self._path(key)
        await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        """Remove a file."""
        self._path(key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder."""
        self._path(prefix)
        await super().delete_dir(prefix)

    def _path(self, key: str) -> Path:
        """Where a key lies, if that is inside the folder: no part of it below the folder may be a link."""
        self._found(key)
        return self.root / key

    def _found(self, key: str) -> os.stat_result | None:
        """What is at a key; None where there is nothing. Each part is looked at once, from the folder on."""
        path, found = str(self.root), None
        for part in key.split("/"):
            if part == "..":
                raise TraceFormatError(f"{self.root / key} leads out of the trace: do not use it")
            path = f"{path}/{part}"
            try:
                found = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", False):  # that: of Windows
                raise TraceFormatError(f"{path} is a link, where a trace has files only: do not use it")
        return found

    def _check(self, key: str) -> None:
        found = self._found(key)
        if found is None or stat.S_ISDIR(found.st_mode):
            return
        path = self.root / key
        if not stat.S_ISREG(found.st_mode):
            raise TraceFormatError(f"{path} is not a file: do not use this trace")
        Limits.from_environment().check_file(key, found.st_size, path)


def require_folder_here(path: str | Path, doing: str) -> None:
    """Refuse an address, for what writes into a trace: servers differ in what makes a write safe.

    zarr adds a group only where there is none, which some S3 servers do not heed: they replace the manifest.

    Raises
    ------
    InputError
        If the path is an address.
    """
    if "://" in str(path) and not str(path).startswith("file://"):
        raise InputError(
            f"{path}: expected a folder on this machine, as {doing} writes into it: attrace pull it, {doing} it, and "
            "attrace push it, which sends what changed"
        )
