"""Reading every chunk of a trace once: whether it decodes, what it holds, and what the trace is as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from attrace.analysis.integrity.content import ContentDigest, blocks, covered_arrays
from attrace.analysis.integrity.findings import Finding, problem
from attrace.analysis.integrity.sound_arrays import ChunkIndex, SoundArray, differences, member
from attrace.analysis.storage.bounded_codecs import bounded
from attrace.analysis.storage.limits import Limits
from attrace.analysis.storage.store import StoredTrace
from attrace.schemas import TraceFormatError, root_arrays
from attrace.schemas.layout import DERIVED, KEY_STEP, STEP_DONE

Progress = Callable[[int, int], None]
"""Called with the number of chunks read so far and the number of all."""

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


Contents = Mapping[str, Mapping[ChunkIndex, Chunk]]
"""By path of the array and index of the chunk."""

_Read = tuple[SoundArray, ChunkIndex]


def read_chunks(
    trace: StoredTrace, arrays: Mapping[str, SoundArray], steps: tuple[int, ...], progress: Progress | None
) -> tuple[Contents, str]:
    """Read every chunk of the finished steps, once.

    Parameters
    ----------
    trace
        The trace.
    arrays
        Its arrays whose structure is right, by path.
    steps
        The finished steps.
    progress
        Called after each chunk.

    Returns
    -------
    tuple
        What each chunk holds, and the identifier of the content as `content_id` computes it, which means something only
        where the trace is sound.
    """
    contents: dict[str, dict[ChunkIndex, Chunk]] = {path: {} for path in arrays}
    total = sum(array.count(steps) for array in arrays.values())
    covered = [arrays[path] for path in _covered(trace) if path in arrays]
    small = [array for array in arrays.values() if array.is_small]
    large = [array for array in covered if not array.is_small]
    large += [array for array in arrays.values() if not array.is_small and array not in covered]
    numbers = count(1)

    def keep(read: _Read, chunk: Chunk) -> None:
        contents[read[0].path][read[1]] = chunk
        if progress is not None:
            progress(next(numbers), total)

    with ThreadPoolExecutor(_READERS) as pool:
        for read, (chunk, _) in _in_order(pool, _all_chunks(small, steps)):
            keep(read, chunk)
        found = _in_order(pool, _all_chunks(large, steps))
        digest = ContentDigest(trace.manifest, len(steps))
        for array in covered:
            digest.begin(array.path, array.spec.dtype, array.spec.shape[1:])
            if array.is_small:
                digest.add(assembled(array, contents[array.path])[list(steps)])
                continue
            wanted = _stored_keys(array, arrays, contents)
            for read, (chunk, values) in islice(found, array.count(steps)):
                keep(read, chunk)
                if values is not None and not array.holds_many_steps and (wanted is None or wanted[read[1][:2]]):
                    digest.add(values)
            if array.holds_many_steps:
                _add_steps(digest, trace, array.path)
        for read, (chunk, _) in found:  # what the identifier does not cover
            keep(read, chunk)
    return contents, digest.hexdigest()


def assembled(array: SoundArray, chunks: Mapping[ChunkIndex, Chunk]) -> NDArray[Any]:
    """The whole of a small array, with the fill value for chunks that were not or cannot be read."""
    whole = np.full(array.spec.shape, array.spec.fill, array.spec.dtype)
    for index, chunk in chunks.items():
        if chunk.values is not None:
            whole[array.place(index)] = chunk.values
    return whole


def finished_steps(root: zarr.Group, findings: list[Finding]) -> tuple[int, ...]:
    """Steps whose marker is set; what is wrong with the marker goes to `findings`."""
    stored = member(root, STEP_DONE)
    length = stored.shape[0] if stored is not None and stored.shape else 0
    spec = next(spec for spec in root_arrays(length) if spec.name == STEP_DONE)
    problems = ["expected an array, found none"] if stored is None else list(differences(stored, spec))
    limit = Limits.from_environment().steps
    if length > limit:
        problems.append(f"expected at most {limit} steps, found {length}")
    findings += [problem(STEP_DONE, message) for message in problems]
    if stored is None or problems:
        return ()
    marker = SoundArray(STEP_DONE, spec, bounded(stored))
    chunks = {index: _read_chunk((marker, index))[0] for index in marker.indices(tuple(range(length)))}
    findings += chunk_findings({STEP_DONE: marker}, {STEP_DONE: chunks})
    return tuple(np.flatnonzero(assembled(marker, chunks) == 1).tolist())


def chunk_findings(arrays: Mapping[str, SoundArray], contents: Contents) -> Iterator[Finding]:
    """The chunks that cannot be used."""
    for path, chunks in contents.items():
        for index, chunk in chunks.items():
            if chunk.fault is not None:
                yield problem(path, chunk.fault, arrays[path].key(index))


def _covered(trace: StoredTrace) -> list[str]:
    """Paths of the arrays that the identifier covers; none where they cannot be told, which is a finding already."""
    try:
        return covered_arrays(trace)
    except TraceFormatError:
        return []


def _stored_keys(array: SoundArray, arrays: Mapping[str, SoundArray], contents: Contents) -> NDArray[np.bool_] | None:
    """Of the array `key`, whether a step and layer has keys of its own: (time, layer); None of other arrays."""
    group, _, name = array.path.rpartition("/")
    key_step = arrays.get(f"{group}/{KEY_STEP}")
    if name != "key" or key_step is None:
        return None
    steps = assembled(key_step, contents[key_step.path])
    return np.asarray(steps == np.arange(len(steps))[:, None])


def _add_steps(digest: ContentDigest, trace: StoredTrace, path: str) -> None:
    """Add an array whose chunks are not the pieces that the identifier takes, as the marginals of a copy."""
    with suppress(TraceFormatError):  # a chunk that cannot be read is a finding already
        for _, values in blocks(trace, path):
            digest.add(values)


def _all_chunks(arrays: Iterable[SoundArray], steps: tuple[int, ...]) -> Iterator[_Read]:
    return ((array, index) for array in arrays for index in array.indices(steps))


def _in_order(
    pool: ThreadPoolExecutor, reads: Iterable[_Read]
) -> Iterator[tuple[_Read, tuple[Chunk, NDArray[Any] | None]]]:
    """Read chunks, a few ahead of the one that is given next."""
    waiting: deque[tuple[_Read, Future[tuple[Chunk, NDArray[Any] | None]]]] = deque()
    for read in reads:
        waiting.append((read, pool.submit(_read_chunk, read)))
        if len(waiting) > _AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _read_chunk(read: _Read) -> tuple[Chunk, NDArray[Any] | None]:
    """What a chunk holds, and its values."""
    array, index = read
    try:
        values = np.asarray(array.stored[array.place(index)])
    except Exception as error:  # of a codec, a zip file, the system
        return Chunk(fault=f"the chunk cannot be read: {error}"), None
    if array.is_small:
        return Chunk(values=values), values
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return Chunk(), values
    if np.isnan(values).all():
        return Chunk(empty=True), values
    return Chunk(fault=_not_finite(array, values)), values


def _not_finite(array: SoundArray, values: NDArray[Any]) -> str | None:
    """What is wrong with values that are not finite; None where they may be."""
    bad = ~np.isfinite(values)
    if array.spec.name in _MASKED:
        bad &= values != -np.inf
    if array.path.endswith(f"{DERIVED}/{array.spec.name}"):
        bad &= ~np.isnan(values)  # one chunk holds many steps, and those of a gap are NaN
    if not bad.any():
        return None
    first = ", ".join(f"{dim} {at}" for dim, at in zip(array.spec.dims[2:], np.argwhere(bad)[0][2:], strict=True))
    return f"{bad.sum()} of {bad.size} values are not finite, the first at {first}"
