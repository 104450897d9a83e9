"""Reading every chunk of a trace once: whether it decodes, what it holds, and what the trace is as a whole."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.integrity.content import ContentDigest, blocks, covered_arrays
from attrace.analysis.storage.store import StoredTrace
from attrace.analysis.storage.stored_array import StoredArray
from attrace.schemas import ArraySpec, TraceFormatError
from attrace.schemas.layout import CALLED, DERIVED, EFFECT, KEY_STEP, is_of_keys

Progress = Callable[[int, int], None]
"""Called with the number of chunks read so far and the number of all."""

ChunkIndex = tuple[int, ...]
"""Position of a chunk on the grid of chunks of its array."""

_READERS: Final = 4
"""Chunks read at a time: enough for reading to overlap decoding."""

_AHEAD: Final = 2 * _READERS
"""Chunks that are read before they are asked for; memory holds no more of them."""

_MASKED: Final = ("scores", "bias")
"""Arrays in which -inf is a value: an additive mask put it there."""


@dataclass(frozen=True)
class Chunk:
    """What one chunk turned out to hold."""

    empty: bool = False
    """Nothing but NaN: never written, or a gap."""
    fault: str | None = None
    """Why it cannot be used."""
    values: NDArray[Any] | None = None
    """Its values, for the small arrays."""


@dataclass(frozen=True)
class ReadArray:
    """An array that meets its specification, and what its chunks hold once they were read."""

    path: str
    spec: ArraySpec
    stored: StoredArray
    chunks: dict[ChunkIndex, Chunk] = field(default_factory=dict)

    @property
    def is_small(self) -> bool:
        """Whether all its values are kept while a trace is verified: those of coordinates, times and `key_step`."""
        return len(self.spec.dims) == 1 or self.spec.name in (KEY_STEP, CALLED)

    @property
    def holds_many_steps(self) -> bool:
        """Whether one of its chunks holds more than one step, as of the marginals."""
        return self.spec.dims[0] == "time" and self.spec.chunks[0] > 1

    def grid(self, steps: Sequence[int]) -> list[Sequence[int]]:
        """Positions of its chunks along each dimension; along time, of those that hold one of some steps."""
        along: list[Sequence[int]] = [
            range(-(-length // chunk)) for length, chunk in zip(self.spec.shape, self.spec.chunks, strict=True)
        ]
        if self.spec.dims[0] == "time":
            along[0] = sorted({step // self.spec.chunks[0] for step in steps})
        return along

    def read(self, index: ChunkIndex) -> tuple[Chunk, NDArray[Any] | None]:
        """What a chunk holds, and its values."""
        try:
            values = self.stored.read(self._region(index))
        except TraceFormatError:  # what says whether the chunk must be there is an issue itself
            return Chunk(), None
        except Exception as error:  # of a codec, a zip file, the system
            return Chunk(fault=self._unreadable(index, error)), None
        if self.is_small:
            return Chunk(values=values), values
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return Chunk(), values
        if np.isnan(values).all():
            return Chunk(empty=True), values
        return Chunk(fault=self._not_finite(values)), values

    def key_of(self, index: ChunkIndex) -> str | None:
        """Key of a chunk in the store; None where the store divides the array otherwise (the read layout)."""
        same = self.stored.array.chunks == self.spec.chunks
        return self.stored.array.metadata.encode_chunk_key(index) if same else None

    @property
    def values(self) -> NDArray[Any]:
        """The whole of a small array, with the fill value for chunks that were not or cannot be read."""
        whole = np.full(self.spec.shape, self.spec.fill, self.spec.dtype)
        for index, chunk in self.chunks.items():
            if chunk.values is not None:
                whole[self._region(index)] = chunk.values
        return whole

    @property
    def is_readable(self) -> bool:
        """Whether every chunk could be read."""
        return all(chunk.fault is None for chunk in self.chunks.values())

    def _region(self, index: ChunkIndex) -> tuple[slice, ...]:
        return tuple(slice(at * size, (at + 1) * size) for at, size in zip(index, self.spec.chunks, strict=True))

    def _unreadable(self, index: ChunkIndex, error: Exception) -> str:
        """Why a chunk cannot be read; where the store divides the array otherwise, with the one of its chunks."""
        if self.key_of(index) is None:
            try:
                self.stored[self._region(index)]
            except TraceFormatError as named:
                return str(named)
        return f"the chunk cannot be read: {error}"

    def _not_finite(self, values: NDArray[Any]) -> str | None:
        """What is wrong with values that are not finite; None where they may be."""
        bad = ~np.isfinite(values)
        if self.spec.name in _MASKED:
            bad &= values != -np.inf
        if f"/{DERIVED}/" in self.path:
            bad &= ~np.isnan(values)  # one chunk holds many steps, and those of a gap are NaN
        if self.spec.name == EFFECT:
            bad &= ~np.isnan(values)  # of a layer or head that was not taken away
        if not bad.any():
            return None
        first = ", ".join(f"{dim} {at}" for dim, at in zip(self.spec.dims[2:], np.argwhere(bad)[0][2:], strict=True))
        return f"{bad.sum()} of {bad.size} values are not finite, the first at {first}"


_Read = tuple[ReadArray, ChunkIndex]


def read_chunks(
    trace: StoredTrace, arrays: Mapping[str, ReadArray], steps: tuple[int, ...], progress: Progress | None
) -> str:
    """Read every chunk of the finished steps, once, into `arrays`.

    Returns
    -------
    str
        The identifier of the content as `content_id` computes it, which means something only where the trace is valid.
    """
    total = sum(math.prod(map(len, array.grid(steps))) for array in arrays.values())
    covered = [arrays[path] for path in _covered(trace) if path in arrays]
    small = [array for array in arrays.values() if array.is_small]
    large = [array for array in covered if not array.is_small]
    large += [array for array in arrays.values() if not array.is_small and array not in large]
    done = 0

    def keep(read: _Read, chunk: Chunk) -> None:
        nonlocal done
        read[0].chunks[read[1]] = chunk
        done += 1
        if progress is not None:
            progress(done, total)

    with ThreadPoolExecutor(_READERS) as pool:
        for read, (chunk, _) in _in_order(pool, small, steps):
            keep(read, chunk)
        found = _in_order(pool, large, steps)
        digest = ContentDigest(trace.manifest, len(steps))
        for array in covered:
            digest.begin(array.path, array.spec.dtype, array.spec.shape[1:])
            if array.is_small:
                digest.add(array.values[list(steps)])
                continue
            wanted = _stored_keys(array, arrays)
            for read, (chunk, values) in islice(found, math.prod(map(len, array.grid(steps)))):
                keep(read, chunk)
                if values is not None and not array.holds_many_steps and (wanted is None or wanted[read[1][:2]]):
                    digest.add(values)
            if array.holds_many_steps:
                with suppress(TraceFormatError):  # a chunk that cannot be read is an issue already
                    for _, values in blocks(trace, array.path):
                        digest.add(values)
        for read, (chunk, _) in found:  # what the identifier does not cover
            keep(read, chunk)
    return digest.hexdigest()


def _covered(trace: StoredTrace) -> list[str]:
    """Paths of the arrays that the identifier covers; none where they cannot be told, which is an issue already."""
    try:
        return covered_arrays(trace)
    except TraceFormatError:
        return []


def _stored_keys(array: ReadArray, arrays: Mapping[str, ReadArray]) -> NDArray[np.bool_] | None:
    """Of keys and values, whether a step and layer has some of its own: (time, layer); None of other arrays."""
    group, _, name = array.path.rpartition("/")
    key_step = arrays.get(f"{group}/{KEY_STEP}")
    if not any(is_of_keys(name, major) for major in (1, 2)) or key_step is None:
        return None
    return np.asarray(key_step.values == np.arange(key_step.spec.shape[0])[:, None])


def _in_order(
    pool: ThreadPoolExecutor, arrays: Iterable[ReadArray], steps: tuple[int, ...]
) -> Iterator[tuple[_Read, tuple[Chunk, NDArray[Any] | None]]]:
    """Read the chunks of arrays, a few ahead of the one that is given next."""
    waiting: deque[tuple[_Read, Future[tuple[Chunk, NDArray[Any] | None]]]] = deque()
    for array in arrays:
        for index in product(*array.grid(steps)):
            waiting.append(((array, index), pool.submit(array.read, index)))
            if len(waiting) > _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
