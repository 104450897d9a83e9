"""Stores at addresses that read no file above the limits: a chunk may not be a terabyte."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, ObjectStore

from attrace.analysis.storage.limits import Limits
from attrace.schemas import TraceFormatError


class BoundedObjectStore(ObjectStore[Any]):
    """A folder that obstore reads; the length of an object is looked at before its bytes are taken.

    Raises
    ------
    TraceFormatError
        When an object above the limits is read, or a part above them.
    """

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object, or a part of it; None where there is none."""
        if byte_range is not None:
            _check_part(key, byte_range)
            return await super().get(key, prototype, byte_range)
        import obstore  # optional: only addresses need it

        try:
            answer = await obstore.get_async(self.store, key)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        Limits.from_environment().check_file(key, answer.meta["size"], key)
        return prototype.buffer.from_bytes(await answer.bytes_async())  # type: ignore[arg-type]  # a buffer, as bytes are

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several objects, or parts of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))


class BoundedFsspecStore(FsspecStore):
    """A folder that fsspec reads; of a file no more is asked for than the limits allow, and one byte.

    Raises
    ------
    TraceFormatError
        When a file above the limits is read, or a part above them.
    """

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a file, or a part of it; None where there is none."""
        if byte_range is not None:
            _check_part(key, byte_range)
            return await super().get(key, prototype, byte_range)
        limits = Limits.from_environment()
        content = await super().get(key, prototype, RangeByteRequest(0, limits.of_file(key) + 1))
        if content is not None:
            limits.check_file(key, len(content), key)
        return content

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several files, or parts of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))


def _check_part(key: str, byte_range: ByteRequest) -> None:
    """Refuse a part above the limits; shards are read in parts, whose lengths they say themselves."""
    match byte_range:
        case RangeByteRequest(start=start, end=end):
            length = end - start
        case SuffixByteRequest(suffix=length):
            pass
        case OffsetByteRequest():
            raise TraceFormatError(f"{key}: expected to read it whole, or a part of a known length")
    Limits.from_environment().check_file(key, length, f"a part of {key}")
