"""Copying a trace, or a part of it, into one zip file: chunks that stay the same are copied as bytes."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

from attrace.analysis.archive import ZipWriter, zip_writer
from attrace.analysis.bounded_codecs import bounded
from attrace.analysis.derived import open_derived
from attrace.analysis.store import StoredArray, StoredTrace, open_store
from attrace.analysis.trace import Layers, Numbers, Trace, match_layers, trace_of
from attrace.schemas import InputError, Manifest, Omitted, SiteClass, terms_of_use
from attrace.schemas.layout import (
    DERIVED,
    DERIVED_STEPS,
    IMAGES,
    KEY_STEP,
    MANIFEST_ATTRIBUTE,
    STEP_DONE,
    TIME,
    TIMESTEP,
)

Part = Literal["images", "prompts", "arguments"]
"""What a packed trace can do without."""

PARTS: Final[tuple[Part, ...]] = ("images", "prompts", "arguments")

Progress = Callable[[int, int], None]
"""Called with the number of chunks copied so far and the number of all."""

_DATA: Final = ("scores", "query", "key", KEY_STEP, "bias", "lse")
"""Arrays of a class that a copy of the marginals alone does not have."""

_READ_FIRST: Final = (TIME, TIMESTEP, STEP_DONE)
"""Arrays that opening a trace reads: they stand at the end of the file, beside its table of contents."""

_Index = tuple[int, ...]


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
        Compress every chunk anew: `zstd-1` to `zstd-22`, or `none`; None leaves them as they are.
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
    cut = _cut(stored, layers, steps, frozenset(without), only_derived=only_derived)
    manifest = _manifest(stored.manifest, cut, licence=licence, citation=citation)
    arrays = list(_arrays(stored, cut, None if codec is None else _codecs(codec)))
    target = Path(target)
    with zip_writer(target, overwrite=overwrite) as archive:
        _write(archive, stored, cut, manifest, arrays, progress)
    return target


@dataclass(frozen=True)
class _Cut:
    """What of a trace is kept."""

    steps: tuple[int, ...]
    """Places along the stored `time` dimension."""
    finished: tuple[int, ...]
    """Those of every finished step."""
    layers: Mapping[str, tuple[int, ...]]
    """Places along the stored `layer` dimension, by the group of each class of which there are any."""
    without: frozenset[str]
    """Parts left out."""

    def keeps(self, manifest: Manifest, path: str) -> bool:
        """Whether a group or array is kept."""
        if "images" in self.without and (path == IMAGES or path.startswith(f"{IMAGES}/")):
            return False
        group = _group_of(manifest, path)
        if group is None:
            return True
        name = path.removeprefix(f"{group}/")
        return group in self.layers and not ("scores" in self.without and name in _DATA)


def _cut(stored: StoredTrace, layers: Layers, steps: Numbers, without: frozenset[str], *, only_derived: bool) -> _Cut:
    whole = trace_of(stored)
    chosen = whole if steps is None else whole.sel(time=steps)
    paths = {site.path for one in stored.manifest.classes for site in one.sites}
    kept = paths if layers is None else set(match_layers(layers, sorted(paths), stored.path))
    places = {
        one.group: tuple(layer for layer, site in enumerate(one.sites) if site.path in kept)
        for one in stored.manifest.classes
    }
    cut = _Cut(
        chosen.step_places, whole.finished_places, {group: some for group, some in places.items() if some}, without
    )
    if not only_derived:
        return cut
    for one in stored.manifest.classes:
        if one.group in cut.layers and open_derived(stored, one, whole.steps) is None:
            raise InputError(
                f"trace {stored.path}: {one.group} keeps no marginals of its {whole.steps} steps: run attrace "
                "precompute first (what is stored in float64 has none)"
            )
    return replace(cut, without=without | {"scores"})


def _manifest(manifest: Manifest, cut: _Cut, *, licence: str | None, citation: str | None) -> Manifest:
    classes = tuple(_cut_class(one, cut) for one in manifest.classes if one.group in cut.layers)
    changes: dict[str, Any] = {"classes": classes, "steps": len(cut.steps)}
    if "arguments" in cut.without:
        changes["call_arguments"] = {}
    elif "prompts" in cut.without:
        changes["call_arguments"] = {
            name: value for name, value in manifest.call_arguments.items() if not _is_prompt(name, value)
        }
    if manifest.status == "recording":  # what is copied of a trace that was never closed is closed
        changes["status"] = "interrupted"
    changes |= terms_of_use(licence, citation)
    omitted = _omitted(manifest, cut)
    if omitted is not None and omitted != manifest.omitted:
        changes |= {"omitted": omitted, "id": _id_of_copy(omitted, cut)}
    return manifest.replace(**changes)


def _cut_class(one: SiteClass, cut: _Cut) -> SiteClass:
    sites = tuple(one.sites[layer] for layer in cut.layers[one.group])
    return one.model_copy(update={"sites": sites, "tokens": None if "prompts" in cut.without else one.tokens})


def _is_prompt(name: str, value: Any) -> bool:
    """Whether a call argument was written by a person; a number such as `num_images_per_prompt` was not."""
    return "prompt" in name and (isinstance(value, bool) or not isinstance(value, int | float))


def _omitted(manifest: Manifest, cut: _Cut) -> Omitted | None:
    """What the copy lacks of the trace that everything began with."""
    before = manifest.omitted or Omitted(source=manifest.id)
    sites = sum(len(one.sites) for one in manifest.classes) - sum(map(len, cut.layers.values()))
    after = before.model_copy(
        update={
            "parts": (*before.parts, *sorted(cut.without - set(before.parts))),
            "layers": before.layers + sites,
            "steps": before.steps + len(cut.finished) - len(cut.steps),
        }
    )
    return manifest.omitted if after == before else after


def _id_of_copy(omitted: Omitted, cut: _Cut) -> str:
    """An identifier that is the same for the same part of the same trace."""
    described = [omitted.model_dump(mode="json"), cut.steps, sorted(cut.layers.items())]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Copy:
    """One array of the copy."""

    path: str
    source: StoredArray
    places: tuple[tuple[int, ...], ...]
    """For each dimension, the places along the source's that are kept."""
    codecs: tuple[dict[str, Any], ...] | None
    """Codecs of the copy; None for those of the source."""
    values: NDArray[Any] | None = None
    """All its values, where they are other ones."""
    chunk_from: Mapping[_Index, _Index] | None = None
    """Chunks of the source by their index in the copy, along time and layer, where that is not plain."""

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """Length of a chunk along each dimension: the source's, and all layers where that holds all."""
        stored = self.source.array.shards or self.source.array.chunks
        return tuple(
            len(places) if dim == "layer" and chunk == length else chunk
            for dim, places, chunk, length in zip(
                _dims(self.source.array), self.places, stored, self.source.shape, strict=True
            )
        )

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Its `zarr.json`."""
        described: dict[str, Any] = dict(self.source.array.metadata.to_dict())
        described["shape"] = [len(places) for places in self.places]
        described["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}}
        if self.codecs is not None:
            kept = [codec for codec in described["codecs"] if codec["name"] not in _COMPRESSION]
            described["codecs"] = [*kept, *self.codecs]
        return described

    @cached_property
    def same_codecs(self) -> bool:
        """Whether chunks that hold the same values are the same bytes."""
        return bool(self.metadata["codecs"] == self.source.array.metadata.to_dict()["codecs"])

    def indices(self) -> Iterator[_Index]:
        """Index of every chunk of the copy."""
        return itertools.product(*(range(len(blocks)) for blocks in self._blocks))

    def count(self) -> int:
        """How many chunks that are."""
        return int(np.prod([len(blocks) for blocks in self._blocks], dtype=np.int64))

    def place(self, index: _Index) -> tuple[slice, ...]:
        """Where a chunk lies in the copy."""
        return tuple(slice(at * n, (at + 1) * n) for at, n in zip(index, self.chunks, strict=True))

    def chunk_of_source(self, index: _Index) -> _Index | None:
        """The chunk of the source that holds exactly what a chunk of the copy does; None where none does."""
        if self.values is not None:
            return None
        if self.chunk_from is not None:
            return (*self.chunk_from[index[:2]], *index[2:]) if index[:2] in self.chunk_from else _NOWHERE
        stored = self.source.array.shards or self.source.array.chunks
        found = []
        for at, blocks, chunk, length in zip(index, self._blocks, stored, self.source.shape, strict=True):
            number = blocks[at][0] // chunk
            if blocks[at] != tuple(range(number * chunk, min((number + 1) * chunk, length))):
                return None
            found.append(number)
        return tuple(found)

    def values_of(self, index: _Index) -> NDArray[Any]:
        """The values of a chunk of the copy, read from whatever chunks hold them."""
        if self.values is not None:
            return self.values[self.place(index)]
        kept = [blocks[at] for at, blocks in zip(index, self._blocks, strict=True)]
        around = tuple(slice(min(places), max(places) + 1) for places in kept)
        wanted = np.ix_(*(np.subtract(places, min(places)) for places in kept))
        values: NDArray[Any] = self.source[around][wanted]
        return values

    @cached_property
    def _blocks(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each dimension, the kept places of each chunk."""
        return tuple(
            tuple(tuple(places[at : at + chunk]) for at in range(0, len(places), chunk))
            for places, chunk in zip(self.places, self.chunks, strict=True)
        )


_DOCUMENT: Final = "zarr.json"

_NOWHERE: Final[_Index] = ()
"""In place of a chunk that the source does not have."""

_COMPRESSION: Final = ("zstd", "gzip", "blosc", "crc32c")


def _codecs(name: str) -> tuple[dict[str, Any], ...]:
    """Codecs after `bytes`, as `zarr.json` has them, of a compression such as `zstd-3`."""
    checksum = zarr.codecs.Crc32cCodec().to_dict()
    if name == "none":
        return (checksum,)
    match = re.fullmatch(r"zstd-([0-9]{1,2})", name)
    if match is None or not 1 <= int(match[1]) <= 22:
        raise InputError(f"expected the codec none or zstd-1 to zstd-22, found {name!r}")
    return zarr.codecs.ZstdCodec(level=int(match[1])).to_dict(), checksum


def _arrays(stored: StoredTrace, cut: _Cut, codecs: tuple[dict[str, Any], ...] | None) -> Iterator[_Copy]:
    """The arrays of the copy: what opening reads comes last."""
    found = {path: member for path, member in _members(stored, cut) if isinstance(member, zarr.Array)}
    for path in sorted(found, key=lambda path: (path in _READ_FIRST, path)):
        group = _group_of(stored.manifest, path)
        copy = _Copy(
            path, StoredArray(stored.path, path, bounded(found[path])), _places(found[path], cut, group), codecs
        )
        name = path.rpartition("/")[2]
        if group is not None and name in ("key", KEY_STEP) and cut.steps != cut.finished:
            new_steps, chunk_from = _moved_keys(stored, group, cut)
            copy = replace(copy, values=new_steps) if name == KEY_STEP else replace(copy, chunk_from=chunk_from)
        yield copy


def _members(stored: StoredTrace, cut: _Cut) -> Iterator[tuple[str, zarr.Array[Any] | zarr.Group]]:
    """Groups and arrays that are kept, also those that we do not know."""
    stale = [
        f"{one.group}/{DERIVED}"
        for one in stored.manifest.classes
        if open_derived(stored, one, len(cut.finished)) is None
    ]
    for path, member in stored.root.members(max_depth=None):
        if cut.keeps(stored.manifest, path) and not any(f"{path}/".startswith(f"{cache}/") for cache in stale):
            yield path, member


def _places(array: zarr.Array[Any], cut: _Cut, group: str | None) -> tuple[tuple[int, ...], ...]:
    kept = {"time": cut.steps} | ({} if group is None else {"layer": cut.layers[group]})
    return tuple(
        kept.get(dim or "", tuple(range(length))) for dim, length in zip(_dims(array), array.shape, strict=True)
    )


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    return tuple(getattr(array.metadata, "dimension_names", None) or [None] * array.ndim)


def _moved_keys(stored: StoredTrace, group: str, cut: _Cut) -> tuple[NDArray[np.int32], dict[_Index, _Index]]:
    """`key_step` of the copy, and where its keys are in the source: each in the first step that is kept and uses it."""
    stored_in = stored.array(f"{group}/{KEY_STEP}")[:]
    key_step = np.full((len(cut.steps), len(cut.layers[group])), -1, np.int32)
    chunk_from: dict[_Index, _Index] = {}
    for new_layer, layer in enumerate(cut.layers[group]):
        first: dict[int, int] = {}
        for new_step, step in enumerate(cut.steps):
            place = int(stored_in[step, layer])
            if place >= 0:
                key_step[new_step, new_layer] = first.setdefault(place, new_step)
                chunk_from[first[place], new_layer] = (place, layer)
    return key_step, chunk_from


def _group_of(manifest: Manifest, path: str) -> str | None:
    """The group of the class that a path is in or is."""
    return next((one.group for one in manifest.classes if f"{path}/".startswith(f"{one.group}/")), None)


def _write(
    archive: ZipWriter,
    stored: StoredTrace,
    cut: _Cut,
    manifest: Manifest,
    arrays: list[_Copy],
    progress: Progress | None,
) -> None:
    """Write the chunks and the metadata: those that opening a trace reads at the end."""
    described = _described(stored, cut, manifest, arrays)
    done = itertools.count(1)
    total = sum(copy.count() for copy in arrays)

    def write_chunks(copy: _Copy) -> None:
        for index in copy.indices():
            content = _content(copy, index, described)
            if content is not None:
                archive.write(_key(copy, index), content)
            if progress is not None:
                progress(next(done), total)

    for copy in arrays:
        if copy.path not in _READ_FIRST:
            write_chunks(copy)
    *documents, root = sorted(_documents(described), key=lambda name: (name == _DOCUMENT, name))
    for name in documents:
        archive.write(name, _get(described, name) or b"")
    for copy in arrays:
        if copy.path in _READ_FIRST:
            write_chunks(copy)
    archive.write(root, _get(described, root) or b"")


def _described(stored: StoredTrace, cut: _Cut, manifest: Manifest, arrays: list[_Copy]) -> Store:
    """The copy in memory: its metadata, consolidated, and no chunk."""
    attributes = {"": dict(stored.root.attrs) | {MANIFEST_ATTRIBUTE: manifest.to_json()}}
    for path, member in _members(stored, cut):
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


def _content(copy: _Copy, index: _Index, described: Store) -> bytes | None:
    """The bytes of a chunk of the copy; None where nothing is stored."""
    source = copy.chunk_of_source(index)
    if source is not None:
        content = None if source == _NOWHERE else _get(copy.source.array.store, _key(copy, source))
        if content is None or copy.same_codecs:
            return content
    target = zarr.open_array(described, path=copy.path, mode="r+", config={"write_empty_chunks": True})
    target[copy.place(index)] = copy.values_of(index) if source is None else copy.source[copy.place(source)]
    content = _get(described, _key(copy, index))
    sync(described.delete(_key(copy, index)))
    return content


def _key(copy: _Copy, index: _Index) -> str:
    return f"{copy.path}/{copy.source.array.metadata.encode_chunk_key(index)}"


def _get(store: Store, key: str) -> bytes | None:
    content = sync(store.get(key, default_buffer_prototype()))
    return None if content is None else content.to_bytes()


def _documents(store: Store) -> list[str]:
    async def listed() -> list[str]:
        return [name async for name in store.list()]

    return sync(listed())
