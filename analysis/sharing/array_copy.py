"""The arrays of a packed copy, each chunk of which is one of the trace or is made of several."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from attrace.analysis.sharing.cut import Cut, group_of
from attrace.analysis.storage.chunk_codecs import bounded
from attrace.analysis.storage.store import StoredArray, StoredTrace
from attrace.analysis.trace.derived import open_derived
from attrace.schemas import InputError
from attrace.schemas.codecs import compressor
from attrace.schemas.layout import DERIVED, KEY_STEP, STEP_DONE, TIME, TIMESTEP

READ_FIRST: Final = (TIME, TIMESTEP, STEP_DONE)
"""Arrays that opening a trace reads: they stand at the end of the file, beside its table of contents."""

ChunkIndex = tuple[int, ...]


@dataclass(frozen=True)
class ArrayCopy:
    """One array of the copy."""

    path: str
    source: StoredArray
    places: tuple[tuple[int, ...], ...]
    """For each dimension, the places along the source's that are kept."""
    codec: str | None
    """Compression of the copy, such as `zstd-3`; None for the source's."""
    values: NDArray[Any] | None = None
    """All its values, where they are other ones."""
    chunk_from: Mapping[ChunkIndex, ChunkIndex] | None = None
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
        if self.codec is not None:
            kept = [codec for codec in described["codecs"] if codec["name"] not in _COMPRESSION]
            compression = compressor_named(self.codec, self.source.dtype.name, self.chunks)
            compressors = [] if compression is None else [compression]
            described["codecs"] = [*kept, *compressors, zarr.codecs.Crc32cCodec().to_dict()]
        return described

    @cached_property
    def same_codecs(self) -> bool:
        """Whether chunks that hold the same values are the same bytes."""
        return bool(self.metadata["codecs"] == self.source.array.metadata.to_dict()["codecs"])

    def indices(self) -> Iterator[ChunkIndex]:
        """Index of every chunk of the copy."""
        return itertools.product(*(range(len(blocks)) for blocks in self._blocks))

    def count(self) -> int:
        """How many chunks that are."""
        return int(np.prod([len(blocks) for blocks in self._blocks], dtype=np.int64))

    def place(self, index: ChunkIndex) -> tuple[slice, ...]:
        """Where a chunk lies in the copy."""
        return tuple(slice(at * n, (at + 1) * n) for at, n in zip(index, self.chunks, strict=True))

    def chunk_of_source(self, index: ChunkIndex) -> ChunkIndex | None:
        """The chunk of the source that holds exactly what a chunk of the copy does; None where none does."""
        if self.values is not None:
            return None
        if self.chunk_from is not None:
            return (*self.chunk_from[index[:2]], *index[2:]) if index[:2] in self.chunk_from else NOWHERE
        stored = self.source.array.shards or self.source.array.chunks
        found = []
        for at, blocks, chunk, length in zip(index, self._blocks, stored, self.source.shape, strict=True):
            number = blocks[at][0] // chunk
            if blocks[at] != tuple(range(number * chunk, min((number + 1) * chunk, length))):
                return None
            found.append(number)
        return tuple(found)

    def values_of(self, index: ChunkIndex) -> NDArray[Any]:
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


NOWHERE: Final[ChunkIndex] = ()
"""In place of a chunk that the source does not have."""

_COMPRESSION: Final = ("zstd", "gzip", "blosc", "crc32c")


def compressor_named(name: str, dtype: str, chunks: tuple[int, ...]) -> dict[str, Any] | None:
    """The codec, as `zarr.json` has it, of a compression such as `zstd-3`; None where nothing compresses.

    Raises
    ------
    InputError
        If there is no compression of that name.
    """
    if name == "none":
        return None
    if name == "auto":
        return compressor("auto", dtype, chunks)
    match = re.fullmatch(r"zstd-([0-9]{1,2})", name)
    if match is None or not 1 <= int(match[1]) <= 22:
        raise InputError(f"expected the codec auto, none, or zstd-1 to zstd-22, found {name!r}")
    return zarr.codecs.ZstdCodec(level=int(match[1])).to_dict()


def copied_arrays(stored: StoredTrace, cut: Cut, codec: str | None) -> Iterator[ArrayCopy]:
    """The arrays of the copy: what opening reads comes last."""
    found = {path: member for path, member in kept_members(stored, cut) if isinstance(member, zarr.Array)}
    for path in sorted(found, key=lambda path: (path in READ_FIRST, path)):
        group = group_of(stored.manifest, path)
        copy = ArrayCopy(path, _source(stored, path, found[path]), _places(found[path], cut, group), codec)
        name = path.rpartition("/")[2]
        if group is not None and name in ("key", KEY_STEP) and cut.steps != cut.finished:
            new_steps, chunk_from = _moved_keys(stored, group, cut)
            copy = replace(copy, values=new_steps) if name == KEY_STEP else replace(copy, chunk_from=chunk_from)
        yield copy


def _source(stored: StoredTrace, path: str, array: zarr.Array[Any]) -> StoredArray:
    """An array of the trace, if it is what the manifest says, or one that we do not know and that is not absurd."""
    if stored.knows(path):
        return stored.array(path)
    longest = max((*array.shape, array.nchunks))
    stored.limits.check("files", longest, f"trace {stored.path}: array {path!r} has shape {array.shape}")
    return StoredArray(stored.path, path, bounded(array))


def kept_members(stored: StoredTrace, cut: Cut) -> Iterator[tuple[str, zarr.Array[Any] | zarr.Group]]:
    """Groups and arrays that are kept, also those that we do not know."""
    stale = [
        f"{one.group}/{DERIVED}"
        for one in stored.manifest.classes
        if open_derived(stored, one, len(cut.finished)) is None
    ]
    for path, member in stored.members():
        if cut.keeps(stored.manifest, path) and not any(f"{path}/".startswith(f"{cache}/") for cache in stale):
            yield path, member


def _places(array: zarr.Array[Any], cut: Cut, group: str | None) -> tuple[tuple[int, ...], ...]:
    kept = {"time": cut.steps} | ({} if group is None else {"layer": cut.layers[group]})
    return tuple(
        kept.get(dim or "", tuple(range(length))) for dim, length in zip(_dims(array), array.shape, strict=True)
    )


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    return tuple(getattr(array.metadata, "dimension_names", None) or [None] * array.ndim)


def _moved_keys(stored: StoredTrace, group: str, cut: Cut) -> tuple[NDArray[np.int32], dict[ChunkIndex, ChunkIndex]]:
    """`key_step` of the copy, and where its keys are in the source: each in the first step that is kept and uses it."""
    stored_in = stored.array(f"{group}/{KEY_STEP}")[:]
    key_step = np.full((len(cut.steps), len(cut.layers[group])), -1, np.int32)
    chunk_from: dict[ChunkIndex, ChunkIndex] = {}
    for new_layer, layer in enumerate(cut.layers[group]):
        first: dict[int, int] = {}
        for new_step, step in enumerate(cut.steps):
            place = int(stored_in[step, layer])
            if place >= 0:
                key_step[new_step, new_layer] = first.setdefault(place, new_step)
                chunk_from[first[place], new_layer] = (place, layer)
    return key_step, chunk_from
