"""Addresses such as `s3://bucket/run.zarr`, as opposed to paths on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def is_address(where: str | os.PathLike[str]) -> bool:
    """Whether something lies on a server; `file://` is this machine.

    Examples
    --------
    >>> is_address("s3://bucket/run.zarr"), is_address("file:///run.zarr"), is_address("run.zarr")
    (True, False, False)
    """
    return "://" in os.fspath(where) and not os.fspath(where).startswith("file://")


def local_path(where: str | os.PathLike[str]) -> Path:
    """The path on this machine, with or without `file://` before it."""
    return Path(os.fspath(where).removeprefix("file://")).expanduser()


def scheme_of(address: str) -> str:
    """The scheme of an address, such as `s3`; empty for a path."""
    return address.partition("://")[0] if is_address(address) else ""
