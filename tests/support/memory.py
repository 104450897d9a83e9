"""`memory://`: an object store in this process, for tests of addresses that need no server."""

from __future__ import annotations

from pathlib import Path

from attrace.analysis.storage.object_files import ObjectFiles


def put(source: Path, address: str) -> str:
    """Put a file or a folder at an address, as it is; the address."""
    files = ObjectFiles(address)
    for path in [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]:
        files.write("" if path == source else path.relative_to(source).as_posix(), path)
    return address


def contents() -> dict[str, bytes]:
    """Everything that is there, by path."""
    files = ObjectFiles("memory://")
    return {name: files.read(name) or b"" for name in files.sizes()}


def clear() -> None:
    """Remove everything that is there."""
    files = ObjectFiles("memory://")
    for name in files.sizes():
        files.delete(name)
