"""Plan of a copy: which part of a trace it holds, the manifest that says so, and the chunks of its arrays."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from attrace.analysis.storage.chunk_codecs import bounded
from attrace.analysis.storage.store import StoredTrace
from attrace.analysis.storage.stored_array import StoredArray
from attrace.analysis.trace.derived import open_derived
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError, Manifest, Omitted, terms_of_use
from attrace.schemas.codecs import compressor
from attrace.schemas.layout import (
    CALLED,
    DATA_ARRAYS,
    DERIVED,
    IMAGES,
    KEY_STEP,
    OUTPUT,
    SCORES,
    STEP_DONE,
    TIME,
    TIMESTEP,
    is_of_keys,
)

READ_FIRST: Final = (TIME, TIMESTEP, STEP_DONE)
"""Arrays that opening a trace reads: they stand at the end of the file, beside its table of contents."""

ChunkIndex = tuple[int, ...]

Region = tuple[slice, ...]
"""Part of an array of the copy, of whole chunks."""

Layout = Literal["read", "recorded"]
"""What one chunk holds of the data of a layer: all steps for some queries, or one step for all of them."""

READ_CHUNK_BYTES: Final = 2**18
"""Bytes of a chunk of the read layout, before compression: a patch is read with little else, in few requests."""

_REGION_BYTES: Final = 2**27
"""Most bytes that are read at once to be arranged in other chunks."""

_COMPRESSION: Final = ("zstd", "gzip", "blosc", "crc32c")


@dataclass(frozen=True)
class Part:
    """The part of a trace that is copied."""

    stored: StoredTrace
    steps: tuple[int, ...]
    """Positions along the stored `time` dimension."""
    finished: tuple[int, ...]
    """Those of every finished step."""
    layers: Mapping[str, tuple[int, ...]]
    """Positions along the stored `layer` dimension, by the group of each class that is copied."""
    without: frozenset[str]
    """What else is left out: `images`, `prompts`, `arguments`, `scores`."""

    @classmethod
    def of(cls, trace: Trace, without: frozenset[str], *, only_derived: bool) -> Part:
        """What is selected in a trace: also in other contexts and branches, unless one was chosen.

        Raises
        ------
        InputError
            If heads or a picture are selected; or for `only_derived`, if a class has no marginals.
        """
        if trace.selected_heads is not None or trace.picture is not None:
            raise InputError(
                f"trace {trace.path}: a copy has all heads and pictures of its layers, and some are selected: select "
                "layers, steps, a context or a branch"
            )
        looked_at = {one.group for one in trace.classes}
        layers = {
            one.group: tuple(
                layer
                for layer, site in enumerate(one.sites)
                if trace.selected_paths is None or site.path in trace.selected_paths
            )
            for one in trace.manifest.classes
            if not trace.narrowed or one.group in looked_at
        }
        layers = {group: some for group, some in layers.items() if some}
        part = cls(trace.stored, trace.selected_steps, trace.finished_steps, layers, without)
        if not only_derived:
            return part
        for group in layers:
            if group in part.stale:
                raise InputError(
                    f"trace {trace.path}: {group} has no marginals of its {len(part.finished)} steps: run attrace "
                    "precompute first (what is stored in float64 has none)"
                )
        return replace(part, without=without | {"scores"})

    @cached_property
    def stale(self) -> frozenset[str]:
        """Groups of the classes that have no marginals of exactly the finished steps."""
        classes, steps = self.stored.manifest.classes, len(self.finished)
        return frozenset(one.group for one in classes if open_derived(self.stored, one, steps) is None)

    def members(self) -> Iterator[tuple[str, zarr.Array[Any] | zarr.Group]]:
        """Groups and arrays of the copy, also those that we do not know."""
        data = {
            f"{one.group}/{name}"
            for one in self.stored.manifest.classes
            for name in DATA_ARRAYS
            if "scores" in self.without
        }
        for path, member in self.stored.members():
            group = self.group_of(path)
            is_class = any(f"{path}/".startswith(f"{one.group}/") for one in self.stored.manifest.classes)
            is_stale = group in self.stale and f"{path}/".startswith(f"{group}/{DERIVED}/")
            is_image = f"{path}/".startswith(f"{IMAGES}/")
            left_out = (is_class and group is None) or is_stale or (is_image and "images" in self.without)
            if not left_out and path not in data:
                yield path, member

    def group_of(self, path: str) -> str | None:
        """The group of the copied class that a path is in or is."""
        return next((group for group in self.layers if f"{path}/".startswith(f"{group}/")), None)

    def manifest(self, licence: str | None, citation: str | None) -> Manifest:
        """The manifest of the copy, which says what it lacks."""
        whole = self.stored.manifest
        classes = []
        for one in (one for one in whole.classes if one.group in self.layers):
            sites = tuple(one.sites[layer] for layer in self.layers[one.group])
            tokens = None if "prompts" in self.without else one.tokens
            classes.append(one.model_copy(update={"sites": sites, "tokens": tokens}))
        changes: dict[str, Any] = {"classes": tuple(classes), "steps": len(self.steps)}
        if self.without & {"arguments", "prompts"}:
            changes["call_arguments"] = {
                name: value
                for name, value in whole.call_arguments.items()
                if "arguments" not in self.without and not _is_prompt(name, value)
            }
        if whole.status == "recording":  # what is copied of a trace that was never closed is closed
            changes["status"] = "interrupted"
        omitted = self._omitted()
        if omitted is not None and omitted != whole.omitted:
            described = [omitted.model_dump(mode="json"), self.steps, sorted(self.layers.items())]
            # an identifier that is the same for the same part of the same trace
            identifier = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]
            changes |= {"omitted": omitted, "id": identifier}
        return whole.replace(**changes, **terms_of_use(licence, citation))

    def _omitted(self) -> Omitted | None:
        """What the copy lacks of the trace that everything began with."""
        manifest = self.stored.manifest
        before = manifest.omitted or Omitted(source=manifest.id)
        sites = sum(len(one.sites) for one in manifest.classes) - sum(map(len, self.layers.values()))
        after = before.model_copy(
            update={
                "parts": (*before.parts, *sorted(self.without - set(before.parts))),
                "layers": before.layers + sites,
                "steps": before.steps + len(self.finished) - len(self.steps),
            }
        )
        return manifest.omitted if after == before else after


def _is_prompt(name: str, value: Any) -> bool:
    """Whether a call argument was written by a person; a number such as `num_images_per_prompt` was not."""
    return "prompt" in name and (isinstance(value, bool) or not isinstance(value, int | float))


@dataclass(frozen=True)
class ArrayCopy:
    """One array of the copy, each chunk of which is one of the trace or is made of several."""

    path: str
    source: StoredArray
    positions: tuple[tuple[int, ...], ...]
    """For each dimension, the positions along the source's that are copied."""
    codec: str | None
    """Compression of the copy, such as `zstd-3`; None for the source's."""
    values: NDArray[Any] | None = None
    """All its values, where they are not the source's."""
    stored_at: NDArray[np.int32] | None = None
    """The step of the source that holds each (step, layer), -1 where none does; None where steps are where they were.
    """
    all_steps: bool = False
    """Whether a chunk holds all steps of a layer, for some queries or keys: the read layout."""

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """Length of a chunk along each dimension; but for the read layout the source's, or all layers as it."""
        dims, lengths = dims_of(self.source.array), [len(positions) for positions in self.positions]
        if not self.all_steps:
            whole = zip(dims, lengths, self._source_chunks, self.source.shape, strict=True)
            return tuple(len_ if dim == "layer" and chunk == full else chunk for dim, len_, chunk, full in whole)
        token = next(number for number, dim in enumerate(dims) if dim in ("query", "key"))
        chunks = [1 if dim == "layer" else length for dim, length in zip(dims, lengths, strict=True)]
        bytes_per_token = math.prod(chunks) // chunks[token] * self.source.dtype.itemsize
        chunks[token] = min(max(READ_CHUNK_BYTES // bytes_per_token, 1), lengths[token])
        return tuple(chunks)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Its `zarr.json`."""
        described: dict[str, Any] = dict(self.source.array.metadata.to_dict())
        described["shape"] = [len(positions) for positions in self.positions]
        described["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}}
        if self.codec is not None:
            others = [codec for codec in described["codecs"] if codec["name"] not in _COMPRESSION]
            compression = compressor_named(self.codec, self.source.dtype.name, self.chunks)
            compressors = [] if compression is None else [compression]
            described["codecs"] = [*others, *compressors, zarr.codecs.Crc32cCodec().to_dict()]
        return described

    @cached_property
    def same_codecs(self) -> bool:
        """Whether chunks that hold the same values are the same bytes."""
        return bool(self.metadata["codecs"] == self.source.array.metadata.to_dict()["codecs"])

    def regions(self) -> list[Region]:
        """Parts that are written one by one: chunks, or many of them where a chunk of the source holds some of each."""
        lengths = list(self.chunks)
        if self.all_steps and self.chunks != self._source_chunks:
            token = next(n for n, dim in enumerate(dims_of(self.source.array)) if dim in ("query", "key"))
            chunk_bytes = math.prod(self.chunks) * self.source.dtype.itemsize
            lengths[token] *= max(_REGION_BYTES // chunk_bytes, 1)
        starts = (range(0, len(one), length) for one, length in zip(self.positions, lengths, strict=True))
        regions = (
            tuple(slice(start, start + length) for start, length in zip(corner, lengths, strict=True))
            for corner in itertools.product(*starts)
        )
        return [one for one in regions if self.stored_at is None or (self.stored_at[one[:2]] >= 0).any()]

    def chunk_of_source(self, region: Region) -> ChunkIndex | None:
        """The chunk of the source that holds exactly what a region of the copy does; None where none does."""
        if self.values is not None:
            return None
        index = []
        for number, (chunk, length) in enumerate(zip(self._source_chunks, self.source.shape, strict=True)):
            positions = self._positions(region)[number]
            if number == 0 and self.stored_at is not None and len(positions) == 1:
                positions = (int(self.stored_at[region[:2]].item()),)
            first = positions[0] // chunk * chunk
            if positions != tuple(range(first, min(first + chunk, length))):
                return None
            index.append(first // chunk)
        return tuple(index)

    def values_of(self, region: Region) -> NDArray[Any]:
        """The values of a region of the copy, read from whatever chunks hold them."""
        if self.values is not None:
            return self.values[region]
        positions = self._positions(region)
        if self.stored_at is not None:  # a region of one layer
            of_steps = self.stored_at[region[:2]][:, 0]
            positions = (tuple(of_steps[of_steps >= 0].tolist()), *positions[1:])
        around = tuple(slice(min(one), max(one) + 1) for one in positions)
        found: NDArray[Any] = self.source[around]
        if any(len(one) != length for one, length in zip(positions, found.shape, strict=True)):
            found = found[np.ix_(*(np.subtract(one, min(one)) for one in positions))]
        if self.stored_at is None or len(found) == len(of_steps):
            return found
        values = np.full((len(of_steps), *found.shape[1:]), self.source.array.fill_value, found.dtype)
        values[of_steps >= 0] = found
        return values

    def _positions(self, region: Region) -> tuple[tuple[int, ...], ...]:
        """For each dimension, the positions along the source's in a region of the copy."""
        return tuple(positions[part] for positions, part in zip(self.positions, region, strict=True))

    @cached_property
    def _source_chunks(self) -> tuple[int, ...]:
        return self.source.array.shards or self.source.array.chunks


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


def array_copies(part: Part, codec: str | None, layout: Layout) -> list[ArrayCopy]:
    """The arrays of the copy: what opening reads comes last."""
    stored = part.stored
    found = {path: member for path, member in part.members() if isinstance(member, zarr.Array)}
    copies = []
    for path in sorted(found, key=lambda path: (path in READ_FIRST, path)):
        group, name = part.group_of(path), path.rpartition("/")[2]
        source = _source(stored, path, found[path])  # first, as it refuses absurd lengths
        along = {"time": part.steps} | ({} if group is None else {"layer": part.layers[group]})
        positions = tuple(
            along.get(dim or "", tuple(range(length)))
            for dim, length in zip(dims_of(found[path]), found[path].shape, strict=True)
        )
        copy = ArrayCopy(path, source, positions, codec)
        if group is not None and name in DATA_ARRAYS - {CALLED, OUTPUT} and path == f"{group}/{name}":
            copy = _of_called_layers(copy, name, part, group)
        if layout == "read" and group is not None and path == f"{group}/{name}":
            copy = replace(copy, all_steps=_is_read_by_patch(copy, name))
        copies.append(copy)
    if stored.manifest.status == "recording" and stored.manifest.major > 1:
        copies = [*_times(part, codec), *copies]
    return copies


def _of_called_layers(copy: ArrayCopy, name: str, part: Part, group: str) -> ArrayCopy:
    """An array with the data of a class, which has a chunk only where a layer was called, or its keys changed."""
    stored, steps = part.stored, np.array(part.steps, np.int32)[:, None]
    if copy.path == f"{group}/{SCORES}" or not stored.knows(f"{group}/{KEY_STEP}"):
        if stored.manifest.major == 1:
            return copy
        called = stored.array(f"{group}/{CALLED}")[:][np.ix_(part.steps, part.layers[group])]
        return replace(copy, stored_at=np.where(called == 1, steps, -1))
    key_step, first_use = _key_steps(part, group)
    if name == KEY_STEP:
        return copy if part.steps == part.finished else replace(copy, values=key_step)
    return replace(
        copy, stored_at=first_use if is_of_keys(name, stored.manifest.major) else np.where(key_step < 0, -1, steps)
    )


def _times(part: Part, codec: str | None) -> Iterator[ArrayCopy]:
    """The coordinates along time of each class, which a trace that was not closed has in its root alone."""
    for name in (TIME, TIMESTEP):
        source = part.stored.array(name)
        values = source[:][list(part.steps)]
        for group in part.layers:
            yield ArrayCopy(f"{group}/{name}", source, (part.steps,), codec, values)


def _is_read_by_patch(copy: ArrayCopy, name: str) -> bool:
    """Whether the read layout changes an array: the data of a class, but for keys and values that never change."""
    once = copy.stored_at is not None and (copy.stored_at >= 0).sum(axis=0).max(initial=0) <= 1
    return name in DATA_ARRAYS - {CALLED, KEY_STEP, OUTPUT} and not once


def dims_of(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    """Names of the dimensions of an array, None where one has none."""
    return tuple(getattr(array.metadata, "dimension_names", None) or [None] * array.ndim)


def _source(stored: StoredTrace, path: str, array: zarr.Array[Any]) -> StoredArray:
    """An array of the trace, if it is what the manifest says, or one that we do not know and that is not absurd."""
    if stored.knows(path):
        return stored.array(path)
    longest = max((*array.shape, array.nchunks))
    stored.limits.check("files", longest, f"trace {stored.path}: array {path!r} has shape {array.shape}")
    return StoredArray(stored.path, path, bounded(array))


def _key_steps(part: Part, group: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`key_step` of the copy, and the step of the source with the keys that each (step, layer) of the copy stores.

    Keys are stored in the first step of the copy that uses them; -1 where a step stores none.
    """
    layers = part.layers[group]
    before = part.stored.array(f"{group}/{KEY_STEP}")[:][np.ix_(part.steps, layers)]
    key_step, first_use = np.full_like(before, -1), np.full_like(before, -1)
    for layer in range(len(layers)):
        stored_at, first, of_step = np.unique(before[:, layer], return_index=True, return_inverse=True)
        used = stored_at >= 0
        key_step[:, layer] = np.where(used, first, -1)[of_step]
        first_use[first[used], layer] = stored_at[used]
    return key_step, first_use
