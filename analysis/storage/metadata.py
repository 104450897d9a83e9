"""The documents that describe a trace: reading them as they are, and their digest."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from attrace.schemas import TraceFormatError
from attrace.schemas.digest import CONSOLIDATED, DIGEST, DOCUMENT, Documents, metadata_digest, sealed


def read_document(store: Store, path: str = "") -> dict[str, Any]:
    """What the `zarr.json` of a group or array holds.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not a JSON object.
    """
    name = f"{path}/{DOCUMENT}".lstrip("/")
    content = sync(store.get(name, default_buffer_prototype()))
    if content is None:
        raise FileNotFoundError(f"there is no {name}")
    try:
        document = json.loads(content.to_bytes())
    except RecursionError as error:
        raise ValueError("lists and objects in it lie too deep in one another") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, found a {type(document).__name__}")
    return document


def write_document(store: Store, document: dict[str, Any], path: str = "") -> None:
    """Write the `zarr.json` of a group or array, whole or not at all."""
    content = default_buffer_prototype().buffer.from_bytes(json.dumps(document, indent=2).encode())
    sync(store.set(f"{path}/{DOCUMENT}".lstrip("/"), content))


def copies_in(root: dict[str, Any]) -> Documents | None:
    """The copies of all other documents in the root's; None where there are none."""
    consolidated = root.get(CONSOLIDATED)
    copies = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    return copies if isinstance(copies, dict) and all(isinstance(one, dict) for one in copies.values()) else None


def check_digest(root: dict[str, Any], *, where: str, closed: bool) -> None:
    """Refuse the documents of a trace whose digest is another than the one stored with them.

    Parameters
    ----------
    root
        The root's document, with copies of all others.
    where
        Name of the trace, for messages.
    closed
        Whether the recording came to an end, which is when the digest is written.

    Raises
    ------
    TraceFormatError
        If the two differ, or a closed trace has no digest or no copies.
    """
    stored, copies = root["attributes"].get(DIGEST), copies_in(root)
    if stored is None and not closed:
        return
    if stored is None or copies is None:
        lacking = "digest of its metadata" if stored is None else "copy of all metadata in its zarr.json"
        raise TraceFormatError(
            f"{where} lacks the {lacking}, which every closed trace has: copy it again, or run attrace repair"
        )
    found = metadata_digest({**copies, "": root})
    if found != stored:
        raise TraceFormatError(
            f"the metadata of {where} is not what was written: expected the digest {stored}, found {found}; copy the "
            "trace again (attrace verify names what differs), or, if you changed it on purpose, write both anew"
        )


def members_of(group: zarr.Group) -> list[tuple[str, zarr.Array[Any] | zarr.Group]]:
    """Every group and array below a group, by path; what has no `zarr.json` is passed over.

    zarr raises the first error and leaves the others to asyncio, which prints their tracebacks.
    """
    if group.metadata.consolidated_metadata is not None:
        return list(group.members(max_depth=None))
    names = [name for name in sync(_names_in(group)) if name != DOCUMENT]
    found = zip(names, sync(_nodes(group, names)), strict=True)
    members: list[tuple[str, zarr.Array[Any] | zarr.Group]] = []
    for name, node in found:
        if isinstance(node, KeyError):
            continue
        if isinstance(node, BaseException):
            raise node
        member = zarr.Group(node) if isinstance(node, zarr.AsyncGroup) else zarr.Array(node)
        members.append((name, member))
        if isinstance(member, zarr.Group):
            members += [(f"{name}/{path}", one) for path, one in members_of(member)]
    return members


async def _names_in(group: zarr.Group) -> list[str]:
    return sorted([name async for name in group.store.list_dir(group.path)])


async def _nodes(group: zarr.Group, names: list[str]) -> list[Any]:
    return await asyncio.gather(*(group._async_group.getitem(name) for name in names), return_exceptions=True)


def own_documents(root: zarr.Group, below: str = "") -> dict[str, dict[str, Any]]:
    """What the `zarr.json` of each group and array holds, by path: of a trace, or of a group and of what is in it."""
    group = root[below] if below else root
    names = [name for name, _ in members_of(group)] if isinstance(group, zarr.Group) else []
    paths = [below] * bool(below) + [f"{below}/{name}".lstrip("/") for name in names]
    return {path: read_document(root.store, path) for path in paths}


def seal(store: Store, members: Documents, *, major: int, **attributes: Any) -> None:
    """Write the root's document with copies of all others and their digest, in one piece: the last that is written.

    Parameters
    ----------
    store
        The store of the trace.
    members
        All other documents, by path. Where the trace had a digest before, those that did not change come from what it
        was checked for, so that no damage gets a digest of its own.
    major
        Major version of the trace's format.
    attributes
        Attributes of the root that change.
    """
    document = read_document(store)
    document["attributes"] = {**document.get("attributes", {}), **attributes}
    write_document(store, sealed(document, members, major=major))
