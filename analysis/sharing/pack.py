"""Copy a trace, or what is selected of it, into one zip file: chunks that stay the same are copied as bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import zarr
import zarr.codecs
import zarr.storage
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

from attrace.analysis.sharing.archive import ZipWriter, zip_writer
from attrace.analysis.sharing.copy_plan import (
    READ_FIRST,
    ArrayCopy,
    ChunkIndex,
    Layout,
    Part,
    Region,
    array_copies,
    compressor_named,
)
from attrace.analysis.storage.metadata import write_document
from attrace.analysis.storage.store import format_errors
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.schemas import InputError, Manifest
from attrace.schemas.digest import DOCUMENT, sealed
from attrace.schemas.layout import DERIVED, DERIVED_STEPS, MANIFEST_ATTRIBUTE, class_attributes

Without = Literal["images", "prompts", "arguments"]
"""What a packed trace can do without."""

Progress = Callable[[int, int], None]
"""Called with the number of regions copied so far and the number of all."""


def pack(
    trace: Trace | str | Path,
    target: str | Path,
    *,
    without: Collection[Without] = (),
    only_derived: bool = False,
    codec: str | None = None,
    layout: Layout = "recorded",
    licence: str | None = None,
    citation: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Pack a trace into one zip file, which every reader opens as it is; written beside it and moved there.

    Packing the same trace in the same way gives the same bytes. What is left out stands in the manifest (`omitted`),
    and the copy then has an `id` of its own.

    Parameters
    ----------
    trace
        The trace, or its path. Of a trace what is selected is packed: layers and steps of every context and branch,
        or of those that `sel` chose.
    target
        The file to write; its name must end in `.zip`.
    without
        Leave out `images`, `prompts` (those among the call arguments, and the texts of tokens), or `arguments`.
    only_derived
        Copy only the marginals that `precompute` made: every map of all queries and the default keys can be drawn from
        them, but no score is there.
    codec
        Compress every chunk anew: `auto` as the recorder does by default, `zstd-1` to `zstd-22`, or `none`; None leaves
        them as they are.
    layout
        `read`: a chunk holds all steps of a layer for some queries, so that a patch is read from few chunks; or as
        `recorded`: one step of a layer.
    licence
        Terms under which the copy may be used.
    citation
        How to cite it.
    overwrite
        Replace a file that is there.
    progress
        Called after each chunk, or region of chunks.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    InputError
        If an option is none of the above, `only_derived` asks for what was not computed, or heads or a picture are
        selected.
    TraceFormatError
        If the trace is damaged or lacks a chunk; nothing is written then.
    TraceExistsError
        If something is there that must not be replaced.
    """
    unknown = set(without) - set(get_args(Without))
    if unknown:
        raise InputError(
            f"expected parts to leave out among {', '.join(get_args(Without))}, found {', '.join(sorted(unknown))}"
        )
    trace = trace if isinstance(trace, Trace) else open_trace(trace)
    part = Part.of(trace, frozenset(without), only_derived=only_derived)
    manifest = part.manifest(licence, citation)
    if codec is not None:
        compressor_named(codec, "float32", ())  # refuses an unknown one before anything is read
    target = Path(target)
    damaged = format_errors(f"trace {trace.path} cannot be packed, it is damaged (attrace verify lists what is wrong)")
    with damaged, zip_writer(target, overwrite=overwrite) as archive:
        _write(archive, part, manifest, array_copies(part, codec, layout), progress)
    return target


def _write(
    archive: ZipWriter, part: Part, manifest: Manifest, copies: list[ArrayCopy], progress: Progress | None
) -> None:
    """Write the chunks and the metadata: those that opening a trace reads at the end."""
    metadata = _metadata(part, manifest, copies)
    regions = {copy.path: copy.regions() for copy in copies}
    done, total = itertools.count(1), sum(map(len, regions.values()))

    def write_chunks(chosen: Iterable[ArrayCopy]) -> None:
        for copy in chosen:
            for region in regions[copy.path]:
                for key, content in _chunks(copy, region, metadata):
                    archive.write(key, content)
                if progress is not None:
                    progress(next(done), total)

    write_chunks(copy for copy in copies if copy.path not in READ_FIRST)
    *documents, root = sorted(_documents(metadata), key=lambda name: (name == DOCUMENT, name))
    for name in documents:
        archive.write(name, _get(metadata, name) or b"")
    write_chunks(copy for copy in copies if copy.path in READ_FIRST)
    archive.write(root, _get(metadata, root) or b"")


def _metadata(part: Part, manifest: Manifest, copies: list[ArrayCopy]) -> Store:
    """The copy in memory: its metadata, consolidated, and no chunk."""
    attributes = {"": dict(part.stored.root.attrs) | {MANIFEST_ATTRIBUTE: manifest.to_json()}}
    for path, member in part.members():
        if isinstance(member, zarr.Group):
            attributes[path] = dict(member.attrs)
            if path.endswith(f"/{DERIVED}"):
                attributes[path][DERIVED_STEPS] = len(part.steps)
    for one in manifest.classes if manifest.major > 1 else ():
        attributes[one.group] |= class_attributes(one)
    documents: dict[str, dict[str, Any]] = {
        path: {"zarr_format": 3, "node_type": "group", "attributes": described}
        for path, described in attributes.items()
    }
    documents |= {copy.path: copy.metadata for copy in copies}
    root = documents.pop("")
    documents[""] = sealed(root, documents, major=manifest.major)
    store = zarr.storage.MemoryStore()
    for path, document in documents.items():
        write_document(store, document, path)
    return store


def _chunks(copy: ArrayCopy, region: Region, metadata: Store) -> Iterator[tuple[str, bytes]]:
    """Keys and bytes of the chunks of a region of the copy; none where the source has none and need not."""
    source = copy.chunk_of_source(region)
    if source is not None:
        content = _get(copy.source.array.store, _key(copy, source))
        if content is None:
            return copy.source.require(source)
        if copy.same_codecs:
            yield _key(copy, tuple(part.start // n for part, n in zip(region, copy.chunks, strict=True))), content
            return
    target = zarr.open_array(metadata, path=copy.path, mode="r+").with_config({"write_empty_chunks": True})
    target[region] = copy.values_of(region)
    counts = zip(region, copy.chunks, target.shape, strict=True)
    for index in itertools.product(*(range(one.start // n, -(-min(one.stop, end) // n)) for one, n, end in counts)):
        yield _key(copy, index), _get(metadata, _key(copy, index)) or b""
        sync(metadata.delete(_key(copy, index)))


def _key(copy: ArrayCopy, index: ChunkIndex) -> str:
    return f"{copy.path}/{copy.source.array.metadata.encode_chunk_key(index)}"


def _get(store: Store, key: str) -> bytes | None:
    content = sync(store.get(key, default_buffer_prototype()))
    return None if content is None else content.to_bytes()


def _documents(store: Store) -> list[str]:
    async def listed() -> list[str]:
        return [name async for name in store.list()]

    return sync(listed())
