"""A packed trace at an address, read by range requests: the end of the file once, then the chunks asked for."""

from __future__ import annotations

import asyncio
import io
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from attrace.analysis.storage.zip_entries import check_entries
from attrace.schemas import TraceFormatError

TAIL_BYTES: Final = 2**17
"""What is read of the end of a file first: of a small trace its table of contents and all that opening it takes."""

MAX_CONTENTS_BYTES: Final = 2**28
"""Largest table of contents that is read: that of some two million entries."""

MAX_WHOLE_BYTES: Final = 2**28
"""Largest file that is read whole from a server that does not answer range requests."""

_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
"""What stands before the bytes of an entry: a signature, and the lengths of the name and of what follows it."""


class RemoteObject(Protocol):
    """One object at an address."""

    @property
    def url(self) -> str:
        """Its address, for messages."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""


@dataclass(frozen=True)
class ObstoreObject:
    """An object that obstore reads."""

    url: str
    store: Any
    name: str

    @cached_property
    def size(self) -> int:
        """Its length in bytes."""
        import obstore  # optional: only addresses need it

        with obstore_errors(self.url):
            return int(obstore.head(self.store, self.name)["size"])

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        import obstore
        from obstore.exceptions import BaseError

        if "whole" not in self.__dict__:
            try:
                return bytes(obstore.get_range(self.store, self.name, start=start, end=end))
            except BaseError as error:
                if not _says_no_ranges(error) or self.size > MAX_WHOLE_BYTES:
                    raise _as_system_error(self.url, error) from error
        return self.whole[start:end]

    @cached_property
    def whole(self) -> bytes:
        """All of it, read once: from a server that does not answer range requests."""
        import obstore

        with obstore_errors(self.url):
            return bytes(obstore.get(self.store, self.name).bytes())


@dataclass(frozen=True)
class FsspecObject:
    """An object that fsspec reads."""

    url: str
    filesystem: Any
    path: str

    @cached_property
    def size(self) -> int:
        """Its length in bytes."""
        return int(self.filesystem.size(self.path))

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        return bytes(self.filesystem.cat_file(self.path, start=start, end=end))


class RemoteZipStore(Store):
    """A zip file at an address as a Zarr store that can be read.

    Each entry is one range request, several at a time; what lies in the last `TAIL_BYTES` is none.

    Raises
    ------
    TraceFormatError
        If it is no zip file.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, remote: RemoteObject) -> None:
        super().__init__(read_only=True)
        self._remote = remote
        self._file = _FileOfObject(remote)
        try:
            with zipfile.ZipFile(self._file) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                contents_at = archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise TraceFormatError(f"{remote.url} is not a packed trace: expected a .zip file ({error})") from error
        check_entries(entries, remote.url, remote.size)
        self._entries = {entry.filename: entry for entry in entries}
        starts = sorted(entry.header_offset for entry in entries)
        self._ends = dict(zip(starts, [*starts[1:], contents_at], strict=True))
        self._is_open = True

    def sizes(self) -> dict[str, int]:
        """Stored bytes of every entry, by name."""
        return {name: entry.compress_size for name, entry in self._entries.items()}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an entry, or a part of it; None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        content = await asyncio.to_thread(self._read, entry)
        return prototype.buffer.from_bytes(content[_slice(byte_range)])

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several entries, or parts of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an entry."""
        return key in self._entries

    async def list(self) -> AsyncIterator[str]:
        """Names of all entries."""
        for name in self._entries:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Names of the entries that begin with a prefix."""
        for name in self._entries:
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a folder."""
        folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        below = (name.removeprefix(folder) for name in self._entries if name.startswith(folder))
        for name in dict.fromkeys(name.partition("/")[0] for name in below):
            yield name

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refuse to write."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refuse to write."""
        self._check_writable()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteZipStore) and self._remote == other._remote

    def __hash__(self) -> int:
        return hash(self._remote.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteZipStore, (self._remote,)

    def __str__(self) -> str:
        return self._remote.url

    def _read(self, entry: zipfile.ZipInfo) -> bytes:
        """The content of an entry, checked against its length and checksum.

        Raises
        ------
        ValueError
            If it is not what was packed.
        """
        start = entry.header_offset
        longest = _LOCAL_HEADER.size + 2 * 65535 + entry.compress_size
        block = self._file.read_range(start, min(self._ends[start], start + longest))
        if len(block) < _LOCAL_HEADER.size:
            raise ValueError("its entry in the zip file is cut off")
        signature, name, extra = _LOCAL_HEADER.unpack_from(block)
        begin = _LOCAL_HEADER.size + name + extra
        stored = block[begin : begin + entry.compress_size]
        content = _decompressed(stored, entry)
        if signature != b"PK\x03\x04" or len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise ValueError("its bytes in the zip file are not those that were packed")
        return content


class _FileOfObject(io.RawIOBase):
    """A remote object as a file to read, whose end is kept."""

    def __init__(self, remote: RemoteObject) -> None:
        self._remote = remote
        self._size = remote.size
        self._tail_at = max(0, self._size - TAIL_BYTES)
        self._tail = remote.read(self._tail_at, self._size) if self._size else b""
        self._at = 0

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`: those that are kept, or those of one request."""
        if start >= self._tail_at:
            return self._tail[start - self._tail_at : end - self._tail_at]
        return self._remote.read(start, end) if start < end else b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError("before the beginning of the file")  # what zipfile expects of a file that is too short
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        if end - self._at > MAX_CONTENTS_BYTES:
            raise TraceFormatError(
                f"{self._remote.url} has a table of contents of over {MAX_CONTENTS_BYTES} bytes: do not use it"
            )
        content = self.read_range(self._at, end)
        self._at = max(self._at, end)
        return content


def _decompressed(stored: bytes, entry: zipfile.ZipInfo) -> bytes:
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("expected an entry that is stored or deflated, and not encrypted")
    if entry.compress_type == zipfile.ZIP_STORED:
        return stored
    try:
        return zlib.decompressobj(-15).decompress(stored, entry.file_size + 1)
    except zlib.error as error:
        raise ValueError(f"its entry in the zip file cannot be decompressed ({error})") from error


def _slice(byte_range: ByteRequest | None) -> slice:
    match byte_range:
        case None:
            return slice(None)
        case RangeByteRequest(start=start, end=end):
            return slice(start, end)
        case OffsetByteRequest(offset=offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix=suffix):
            return slice(-suffix, None) if suffix else slice(0)
    raise TypeError(f"expected a byte range, found {byte_range!r}")


@contextmanager
def obstore_errors(url: str) -> Iterator[None]:
    """Turn what obstore raises, which is no error of the system, into one."""
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        raise _as_system_error(url, error) from error


def answers_ranges(remote: ObstoreObject) -> bool:
    """Whether the server of an object answers a request for a part of it."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        obstore.get_range(remote.store, remote.name, start=0, end=1)
    except BaseError as error:
        if _says_no_ranges(error):
            return False
        raise _as_system_error(remote.url, error) from error
    return True


def _as_system_error(url: str, error: Exception) -> OSError:
    if _says_no_ranges(error):
        return OSError(
            f"{url}: the server does not answer range requests, by which a packed trace is read: download the file, or "
            "put the trace there unpacked"
        )
    return OSError(f"{url} cannot be read: {str(error).partition(chr(10))[0]}")


def _says_no_ranges(error: Exception) -> bool:
    from obstore.exceptions import NotSupportedError

    return isinstance(error, NotSupportedError) or "non-partial response" in str(error)
