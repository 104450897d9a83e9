"""The folder of a trace as a store that reads and writes nothing outside of it."""

from __future__ import annotations

import stat
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from attrace.analysis.limits import Limits, variable
from attrace.schemas import TraceFormatError


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
        """Where a key lies, if that is inside the folder."""
        path = self.root / key
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise TraceFormatError(f"{path} leads nowhere ({error}): do not use this trace") from error
        if real != self.root.resolve() / key:
            raise TraceFormatError(f"{path} is a link, or below one, where a trace has files only: do not use it")
        return path

    def _check(self, key: str) -> None:
        path = self._path(key)
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISDIR(found.st_mode):
            return
        if not stat.S_ISREG(found.st_mode):
            raise TraceFormatError(f"{path} is not a file: do not use this trace")
        limits = Limits.from_environment()
        kind = "metadata_bytes" if path.name == "zarr.json" else "chunk_bytes"
        limit = getattr(limits, kind)
        if found.st_size > limit:
            raise TraceFormatError(
                f"{path} has {found.st_size} bytes, the limit is {limit}: if you trust it, raise {variable(kind)}"
            )
