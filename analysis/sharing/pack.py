"""Copying a trace, or a part of it, into one zip file: chunks that stay the same are copied as bytes."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, Literal

import zarr
import zarr.codecs
import zarr.storage
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

from attrace.analysis.sharing.archive import ZipWriter, zip_writer
from attrace.analysis.sharing.array_copy import (
    NOWHERE,
    READ_FIRST,
    ArrayCopy,
    ChunkIndex,
    compressor_named,
    copied_arrays,
    kept_members,
)
from attrace.analysis.sharing.cut import Cut, cut_of, manifest_of_copy
from attrace.analysis.storage.store import StoredTrace, format_errors, open_store
from attrace.analysis.trace.selection import Layers, Numbers
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError, Manifest
from attrace.schemas.layout import (
    DERIVED,
    DERIVED_STEPS,
    MANIFEST_ATTRIBUTE,
)

Part = Literal["images", "prompts", "arguments"]
"""What a packed trace can do without."""

PARTS: Final[tuple[Part, ...]] = ("images", "prompts", "arguments")

_DOCUMENT: Final = "zarr.json"

Progress = Callable[[int, int], None]
"""Called with the number of chunks copied so far and the number of all."""


def pack(
    trace: Trace | str | Path,
    target: str | Path,
    *,
    without: Collection[Part] = (),
    layers: Layers = None,
    steps: Numbers = None,
    only_derived: bool = False,
    codec: str | None = None,
    licence: str | None = None,
    citation: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Pack a trace into one zip file, which every reader opens as it is; written beside its place and moved there.

    Packing the same trace in the same way gives the same bytes. What is left out stands in the manifest (`omitted`),
    and the copy then has an `id` of its own.

    Parameters
    ----------
    trace
        The trace, or where it lies. Every context and branch is packed, whatever is selected.
    target
        The file to write; its name must end in `.zip`.
    without
        Leave out `images`, `prompts` (those among the call arguments, and the texts of tokens), or `arguments`.
    layers
        Keep these: module paths or globs such as `up_blocks.*`; None for all.
    steps
        Keep these: call numbers, or a slice of them with both ends included; None for all finished steps.
    only_derived
        Keep only the marginals that `precompute` made: every map of all queries and the default keys can be drawn from
        them, but no score is there.
    codec
        Compress every chunk anew: `auto` as the recorder does by default, `zstd-1` to `zstd-22`, or `none`; None leaves
        them as they are.
    licence
        Terms under which the copy may be used.
    citation
        How to cite it.
    overwrite
        Replace a file that is there.
    progress
        Called after each chunk.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    InputError
        If an option is none of the above, or `only_derived` asks for what was not computed.
    SelectionError
        If a layer or step is not in the trace.
    TraceExistsError
        If something is there that must not be replaced.
    """
    stored = trace.stored if isinstance(trace, Trace) else open_store(trace)
    unknown = set(without) - set(PARTS)
    if unknown:
        raise InputError(f"expected parts to leave out among {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    cut = cut_of(stored, layers, steps, frozenset(without), only_derived=only_derived)
    manifest = manifest_of_copy(stored.manifest, cut, licence=licence, citation=citation)
    if codec is not None:
        compressor_named(codec, "float32", ())  # refuses an unknown one before anything is read
    target = Path(target)
    damaged = format_errors(f"trace {stored.path} cannot be packed, it is damaged (attrace verify lists what is wrong)")
    with damaged, zip_writer(target, overwrite=overwrite) as archive:
        arrays = list(copied_arrays(stored, cut, codec))
        _write(archive, stored, cut, manifest, arrays, progress)
    return target


def _write(
    archive: ZipWriter,
    stored: StoredTrace,
    cut: Cut,
    manifest: Manifest,
    arrays: list[ArrayCopy],
    progress: Progress | None,
) -> None:
    """Write the chunks and the metadata: those that opening a trace reads at the end."""
    described = _described(stored, cut, manifest, arrays)
    done = itertools.count(1)
    total = sum(copy.count() for copy in arrays)

    def write_chunks(copy: ArrayCopy) -> None:
        for index in copy.indices():
            content = _content(copy, index, described)
            if content is not None:
                archive.write(_key(copy, index), content)
            if progress is not None:
                progress(next(done), total)

    for copy in arrays:
        if copy.path not in READ_FIRST:
            write_chunks(copy)
    *documents, root = sorted(_documents(described), key=lambda name: (name == _DOCUMENT, name))
    for name in documents:
        archive.write(name, _get(described, name) or b"")
    for copy in arrays:
        if copy.path in READ_FIRST:
            write_chunks(copy)
    archive.write(root, _get(described, root) or b"")


def _described(stored: StoredTrace, cut: Cut, manifest: Manifest, arrays: list[ArrayCopy]) -> Store:
    """The copy in memory: its metadata, consolidated, and no chunk."""
    attributes = {"": dict(stored.root.attrs) | {MANIFEST_ATTRIBUTE: manifest.to_json()}}
    for path, member in kept_members(stored, cut):
        if isinstance(member, zarr.Group):
            attributes[path] = dict(member.attrs)
            if path.endswith(f"/{DERIVED}"):
                attributes[path][DERIVED_STEPS] = len(cut.steps)
    documents: dict[str, dict[str, Any]] = {
        path: {"zarr_format": 3, "node_type": "group", "attributes": described}
        for path, described in attributes.items()
    }
    documents |= {copy.path: copy.metadata for copy in arrays}
    store = zarr.storage.MemoryStore()
    for path, document in documents.items():
        content = default_buffer_prototype().buffer.from_bytes(json.dumps(document).encode())
        sync(store.set(f"{path}/{_DOCUMENT}".lstrip("/"), content))
    with warnings.catch_warnings():  # zarr warns that not every reader knows consolidated metadata: none needs it
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(store)
    return store


def _content(copy: ArrayCopy, index: ChunkIndex, described: Store) -> bytes | None:
    """The bytes of a chunk of the copy; None where nothing is stored."""
    source = copy.chunk_of_source(index)
    if source is not None:
        content = None if source == NOWHERE else _get(copy.source.array.store, _key(copy, source))
        if content is None or copy.same_codecs:
            return content
    target = zarr.open_array(described, path=copy.path, mode="r+", config={"write_empty_chunks": True})
    target[copy.place(index)] = copy.values_of(index) if source is None else copy.source[copy.place(source)]
    content = _get(described, _key(copy, index))
    sync(described.delete(_key(copy, index)))
    return content


def _key(copy: ArrayCopy, index: ChunkIndex) -> str:
    return f"{copy.path}/{copy.source.array.metadata.encode_chunk_key(index)}"


def _get(store: Store, key: str) -> bytes | None:
    content = sync(store.get(key, default_buffer_prototype()))
    return None if content is None else content.to_bytes()


def _documents(store: Store) -> list[str]:
    async def listed() -> list[str]:
        return [name async for name in store.list()]

    return sync(listed())
