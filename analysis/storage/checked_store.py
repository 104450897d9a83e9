"""The store of Zarr that every trace is read through: it checks every name and size before bytes are taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from attrace.analysis.storage.files import CheckSize, Files
from attrace.analysis.storage.limits import Limits
from attrace.schemas import TraceFormatError


class CheckedStore(Store):
    """Files as a store of Zarr, none of which is above the limits.

    Parameters
    ----------
    files
        The files of the trace.
    limits
        What reading them may cost.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, files: Files, limits: Limits, *, read_only: bool = True) -> None:
        super().__init__(read_only=read_only)
        self.files, self.limits = files, limits
        self._is_open = True

    def with_read_only(self, read_only: bool = False) -> CheckedStore:
        """The same store, to read only or to write."""
        return CheckedStore(self.files, self.limits, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file, or a part of it; None where there is none.

        Raises
        ------
        TraceFormatError
            If it is above the limits, or lies outside of the trace.
        """
        content = await asyncio.to_thread(self._read, key, byte_range)
        return None if content is None else (prototype or default_buffer_prototype()).buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several files, or parts of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return await asyncio.to_thread(self.files.size, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._check_writable()
        await asyncio.to_thread(self.files.write, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Remove a file."""
        self._check_writable()
        await asyncio.to_thread(self.files.delete, key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder."""
        await self.delete(prefix.rstrip("/"))

    async def list(self) -> AsyncIterator[str]:
        """Names of all files."""
        for name in await asyncio.to_thread(self.files.sizes):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Names of the files that begin with a prefix."""
        async for name in self.list():
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a folder."""
        for name in await asyncio.to_thread(self.files.children, prefix.rstrip("/")):
            yield name.rstrip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckedStore) and other.files == self.files

    def __hash__(self) -> int:
        return hash(self.files)

    def __str__(self) -> str:
        return self.files.address

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        where = self.files.where(key)
        check: CheckSize = partial(self.limits.check_file, key, where=where)
        match byte_range:
            case None:
                content = self.files.read(key, check=check)
                if content is not None and key.endswith("zarr.json"):
                    self.limits.check_document(content, where=where)
                return content
            case RangeByteRequest(start=start, end=end):
                pass
            case SuffixByteRequest(suffix=suffix):
                end = self.files.size(key) or 0
                start = max(0, end - suffix)
            case OffsetByteRequest():
                raise TraceFormatError(f"{where}: expected to read it whole, or a part of a known length")
        check(end - start)  # shards are read in parts, whose lengths they say themselves
        return self.files.read(key, start, end)
