"""A packed trace, here or at an address: its table of contents once, then one read for each entry asked for."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from attrace.analysis.storage.files import CheckSize, Files, RangesError
from attrace.analysis.storage.limits import Limits
from attrace.schemas import InputError, TraceFormatError, TraceNotFoundError

TAIL_BYTES: Final = 2**17
"""What is read of the end of a file first: of a small trace its table of contents and all that opening it takes."""

MAX_CONTENTS_BYTES: Final = 2**26
"""Largest table of contents that is read: that of some half a million entries."""

MAX_WHOLE_BYTES: Final = 2**28
"""Largest file that is read whole from a server that does not answer range requests."""

_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
"""What stands before the bytes of an entry: a signature, and the lengths of the name and of what follows it."""


class ZipFiles(Files):
    """The entries of a zip file.

    Parameters
    ----------
    packed
        The file, under the empty name.
    limits
        What it may cost.

    Raises
    ------
    TraceNotFoundError
        If there is no such file.
    TraceFormatError
        If it is no zip file, or one that no packed trace is.
    """

    is_listed = True

    def __init__(self, packed: Files, limits: Limits) -> None:
        super().__init__(packed.address)
        self._packed, self._limits = packed, limits
        self._file = _SeekableFile(packed)
        try:
            with zipfile.ZipFile(self._file) as archive:
                found = [entry for entry in archive.infolist() if not entry.is_dir()]
                contents_at = archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, IndexError) as error:
            raise TraceFormatError(
                f"{self.address} is not a packed trace: expected a folder or a .zip file ({error})"
            ) from error
        check_entries(found, self.address, self._file.length, limits)
        self._entries = {entry.filename: entry for entry in found}
        starts = sorted(entry.header_offset for entry in found)
        self._ends = dict(zip(starts, [*starts[1:], contents_at], strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipFiles, (self._packed, self._limits)

    def size(self, name: str = "", *, insist: bool = False) -> int | None:  # noqa: ARG002
        entry = self._entries.get(name)
        return None if entry is None else entry.file_size

    def sizes(self) -> dict[str, int]:
        return {name: entry.compress_size for name, entry in self._entries.items()}

    def children(self, folder: str = "") -> list[str]:
        start = f"{folder.rstrip('/')}/" if folder.rstrip("/") else ""
        below = (name.removeprefix(start) for name in self._entries if name.startswith(start))
        return list(dict.fromkeys("".join(name.partition("/")[:2]) for name in below))

    def read(
        self, name: str = "", start: int = 0, end: int | None = None, *, check: CheckSize | None = None
    ) -> bytes | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        if check is not None:
            check(entry.file_size)
        return self._content(entry)[start:end]

    def write(self, name: str, content: bytes | Path) -> None:  # noqa: ARG002
        raise InputError(f"{self.address} is a .zip, which cannot be added to: unpack it first (attrace unpack)")

    def delete(self, name: str) -> None:
        self.write(name, b"")

    def _content(self, entry: zipfile.ZipInfo) -> bytes:
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
        content = _decompressed(block[begin : begin + entry.compress_size], entry)
        if signature != b"PK\x03\x04" or len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise ValueError("its bytes in the zip file are not those that were packed")
        return content


class _SeekableFile(io.RawIOBase):
    """One of the `Files` as a file to read, whose end is kept."""

    def __init__(self, files: Files) -> None:
        length = files.size(insist=True)
        if length is None:
            raise TraceNotFoundError(f"no trace at {files.address}: there is nothing; check it")
        self._files, self.length, self._at = files, length, 0
        self._tail_at = max(0, length - TAIL_BYTES)
        try:
            self._tail = (files.read("", self._tail_at, length) if length else b"") or b""
        except RangesError:
            if length > MAX_WHOLE_BYTES:
                raise
            self._tail_at, self._tail = 0, files.read() or b""

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`: those that are kept, or those of one request."""
        if start >= self._tail_at:
            return self._tail[start - self._tail_at : end - self._tail_at]
        return (self._files.read("", start, end) or b"") if start < end else b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        if at < 0:
            raise OSError("before the beginning of the file")  # what zipfile expects of a file that is too short
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        end = self.length if size < 0 else min(self.length, self._at + size)
        if end - self._at > MAX_CONTENTS_BYTES:
            raise TraceFormatError(
                f"{self._files.address} has a table of contents of over {MAX_CONTENTS_BYTES} bytes: do not use it"
            )
        content = self.read_range(self._at, end)
        self._at = max(self._at, end)
        return content


def check_name(name: str, where: object) -> str:
    """The name of a file, if it stays inside the folder of its trace.

    Raises
    ------
    TraceFormatError
        If it does not.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(sign in name for sign in ("\\", ":", "\x00")):
        raise TraceFormatError(f"{where} has an entry named {name!r}, which is no path inside a trace: do not use it")
    return name


def check_entries(entries: Collection[zipfile.ZipInfo], where: object, packed_bytes: int, limits: Limits) -> None:
    """Refuse a table of contents that no packed trace has.

    Raises
    ------
    TraceFormatError
        If a name leads elsewhere, two are one, one is a link, encrypted or neither stored nor deflated, or the whole is
        above the limits.
    """
    if not entries:
        raise TraceFormatError(f"{where} is not a packed trace: it holds no files")
    limits.check("files", len(entries), f"{where}: {len(entries)} files")
    names = [check_name(entry.filename, where) for entry in entries]
    if len(set(names)) != len(names):
        raise TraceFormatError(f"{where} has two entries of one name: do not use it")
    for entry in entries:
        problem = _entry_problem(entry)
        if problem is not None:
            raise TraceFormatError(f"{where}: {entry.filename!r} {problem}: do not use it")
        limits.check_file(entry.filename, max(entry.file_size, entry.compress_size), where=f"{where}/{entry.filename}")
    size = sum(entry.file_size for entry in entries)
    if size > limits.expansion * packed_bytes:
        raise TraceFormatError(
            f"{where} would unpack to {size} bytes, over {limits.expansion} times its size: do not use it"
        )


def _entry_problem(entry: zipfile.ZipInfo) -> str | None:
    if entry.header_offset < 0:
        return "begins before the file, which was cut off"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link, where a trace has files"
    if entry.flag_bits & 1:
        return "is encrypted, which a packed trace is not"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is neither stored nor deflated"
    return None


def _decompressed(stored: bytes, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type == zipfile.ZIP_STORED:
        return stored
    try:
        return zlib.decompressobj(-15).decompress(stored, entry.file_size + 1)
    except zlib.error as error:
        raise ValueError(f"its entry in the zip file cannot be decompressed ({error})") from error
