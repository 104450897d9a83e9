"""Which files a path or an address names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrace.analysis.storage.files import Files, LocalFiles
from attrace.analysis.storage.hub_files import HUB, HubFiles
from attrace.analysis.storage.object_files import SCHEMES, ObjectFiles
from attrace.schemas import InputError
from attrace.schemas.address import is_address, local_path, scheme_of
from attrace.schemas.checks import require_type


def files_at(where: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Files:
    """The files of a path or an address.

    Raises
    ------
    InputError
        If no client is known for such an address.
    ImportError
        If the client is not installed.
    """
    address = os.fspath(where)
    if not is_address(address):
        return LocalFiles(local_path(address))
    address, options = address.rstrip("/"), tuple((storage_options or {}).items())
    if scheme_of(address) == HUB:
        return HubFiles(address, options)
    if scheme_of(address) in SCHEMES:
        return ObjectFiles(address, options)
    raise InputError(
        f"{address}: expected an address that begins with {', '.join(f'{one}://' for one in (*SCHEMES, HUB))}; for "
        "another one pass a Zarr store, such as zarr.storage.FsspecStore.from_url(...)"
    )


def require_folder_here(where: str | Path, doing: str) -> None:
    """Refuse an address, for what writes into a trace: servers differ in what makes a write safe.

    zarr adds a group only where there is none, which some S3 servers do not heed: they replace the manifest.

    Raises
    ------
    InputError
        If it is an address.
    """
    require_type(where, (str, os.PathLike), "path", "a folder")
    if is_address(where):
        raise InputError(
            f"{where}: expected a folder on this machine, as {doing} writes into it: attrace pull it, {doing} it, and "
            "attrace push it, which sends what changed"
        )
