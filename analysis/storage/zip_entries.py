"""The names and sizes in the table of contents of a packed trace, before anything of it is read."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Collection

from attrace.analysis.storage.limits import Limits, variable
from attrace.schemas import TraceFormatError


def checked_name(name: str, where: object) -> str:
    """The name of an entry, if it stays inside the folder that it is unpacked to.

    Raises
    ------
    TraceFormatError
        If it does not.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(sign in name for sign in ("\\", ":", "\x00")):
        raise TraceFormatError(f"{where} has an entry named {name!r}, which is no path inside a trace: do not use it")
    return name


def check_entries(entries: Collection[zipfile.ZipInfo], where: object, packed_bytes: int) -> None:
    """Refuse a table of contents that no packed trace has.

    Parameters
    ----------
    entries
        Its entries, folders left out.
    where
        Name of the packed trace, for messages.
    packed_bytes
        Its size.

    Raises
    ------
    TraceFormatError
        If a name leads elsewhere, two are one, one is a link or encrypted, or the whole is above the limits.
    """
    limits = Limits.from_environment()
    if len(entries) > limits.entries:
        raise TraceFormatError(
            f"{where} has {len(entries)} entries, the limit is {limits.entries}: if you trust it, raise "
            f"{variable('entries')}"
        )
    names = [checked_name(entry.filename, where) for entry in entries]
    if len(set(names)) != len(names):
        raise TraceFormatError(f"{where} has two entries of one name: do not use it")
    for entry in entries:
        if entry.header_offset < 0:
            raise TraceFormatError(
                f"{where} is not a packed trace, or was cut off: {entry.filename!r} begins before it"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise TraceFormatError(
                f"{where} has a link named {entry.filename!r}, where a trace has files: do not use it"
            )
        limits.check_file(entry.filename, max(entry.file_size, entry.compress_size), f"{where}: {entry.filename!r}")
        if entry.flag_bits & 1:
            raise TraceFormatError(f"{where} is encrypted: a packed trace is not")
    size = sum(entry.file_size for entry in entries)
    if size > limits.expansion * packed_bytes:
        raise TraceFormatError(
            f"{where} would unpack to {size} bytes, over {limits.expansion} times its size: do not use it"
        )
