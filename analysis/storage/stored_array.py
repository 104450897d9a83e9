"""Reading an array of a trace, with errors that name the chunk that is damaged or lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import StorePath, WrapperStore

from attrace.schemas import AttraceError, TraceFormatError
from attrace.schemas.layout import DERIVED, KEY_STEP, chunk_key


class MissingChunkError(Exception):
    """A chunk is not in the store."""

    def __str__(self) -> str:
        return "it is not there: it was deleted, or not copied"


@dataclass(frozen=True)
class ExpectedChunks:
    """Which chunks of an array are in a trace that is whole."""

    steps: tuple[int, ...] = ()
    """The finished steps, of an array with a dimension `time`; of another every chunk is expected."""
    called: StoredArray | None = None
    """Where a site was called, (time, layer), of an array that has nothing where it was not."""
    is_key: bool = False
    """Whether it has something only where `called`, which is `key_step`, names the step itself."""

    def has(self, region: tuple[slice, ...], dims: tuple[str, ...]) -> bool:
        """Whether a chunk is expected, by where it lies in the array."""
        if dims[0] != "time":
            return True
        steps = [step for step in self.steps if region[0].start <= step < region[0].stop]
        if not steps or self.called is None:
            return bool(steps)
        found = self._said[steps, region[1]]
        if self.is_key:
            return bool((found == np.array(steps)[:, None]).any())
        return bool((found >= 0).any() if self.called.name.endswith(KEY_STEP) else (found == 1).any())

    @cached_property
    def _said(self) -> NDArray[Any]:
        """All that `called` says of the finished steps."""
        assert self.called is not None
        return self.called[: self.steps[-1] + 1]


@dataclass(frozen=True)
class StoredArray:
    """One array of a trace."""

    trace_path: str
    name: str
    array: zarr.Array[Any]
    expected: ExpectedChunks | None = None
    """Which of its chunks must be there; None where that is not known."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length along each dimension."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the stored values."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.array.ndim

    def __getitem__(self, selection: Any) -> NDArray[Any]:
        """Read a part, by basic indexing.

        Raises
        ------
        TraceFormatError
            If a chunk is lost, or cannot be decoded: its bytes are not those that were written.
        """
        try:
            return self.read(selection)
        except (AttraceError, OSError, IndexError):
            raise
        except Exception as error:
            self._raise_for_broken_chunk(selection)
            raise TraceFormatError(
                f"trace {self.trace_path}: array {self.name!r} cannot be read ({first_line(error)}): copy the trace "
                "again"
            ) from error

    def read(self, selection: Any) -> NDArray[Any]:
        """Read a part, with the errors of the codecs as they are.

        Raises
        ------
        MissingChunkError
            If a chunk that must be there is lost.
        """
        if self.expected is None:
            return np.asarray(self.array[selection])
        try:
            return np.asarray(self._strict[selection])
        except MissingChunkError:
            if any(self._is_lost(index) for index in self._chunks_of(selection)):
                raise
            return np.asarray(self.array[selection])

    def require(self, index: tuple[int, ...]) -> None:
        """Refuse a chunk that must be there and is not, by its position on the grid of chunks.

        Raises
        ------
        TraceFormatError
            If it is lost.
        """
        if self._is_lost(index):
            raise self._broken_chunk(index, MissingChunkError())

    def require_absent(self, step: int, layer: int) -> None:
        """Refuse what says that a site was not called in a step of which something is there: it is out of date.

        Raises
        ------
        TraceFormatError
            If the array has a chunk of the step and layer alone.
        """
        index = (step, layer, *[0] * (self.ndim - 2))
        if self.array.chunks[:2] == (1, 1) and self._is_stored(index):
            raise TraceFormatError(
                f"trace {self.trace_path}: chunk {chunk_key(index)} of array {self.name!r} is there, where the trace "
                "says that the site was not called: one of the two is of another time; copy the trace again"
            )

    def _is_lost(self, index: tuple[int, ...]) -> bool:
        dims = self.array.metadata.dimension_names or ()  # type: ignore[union-attr]
        if self.expected is None or not self.expected.has(self._region(index), tuple(map(str, dims))):
            return False
        return not self._is_stored(index)

    def _is_stored(self, index: tuple[int, ...]) -> bool:
        key = self.array.metadata.encode_chunk_key(index)
        return bool(sync(self.array.store.exists(f"{self.array.path}/{key}")))

    @cached_property
    def _strict(self) -> zarr.Array[Any]:
        """The same array, which fills in nothing for chunks that are not there."""
        asynchronous = self.array.async_array
        path = StorePath(_StrictStore(asynchronous.store_path.store), asynchronous.store_path.path)
        return zarr.Array(zarr.AsyncArray(asynchronous.metadata, path, asynchronous.config))

    def _region(self, index: tuple[int, ...]) -> tuple[slice, ...]:
        chunks = self.array.shards or self.array.chunks
        return tuple(slice(at * n, (at + 1) * n) for at, n in zip(index, chunks, strict=True))

    def _raise_for_broken_chunk(self, selection: Any) -> None:
        for index in self._chunks_of(selection):
            try:
                self.read(self._region(index))
            except (AttraceError, OSError):
                raise
            except Exception as error:
                raise self._broken_chunk(index, error) from error

    def _broken_chunk(self, index: tuple[int, ...], error: Exception) -> TraceFormatError:
        advice = "copy the trace again, or select other steps or layers"
        if f"/{DERIVED}/" in self.name:
            advice = "copy the trace again, or run attrace precompute --overwrite"
        return TraceFormatError(
            f"trace {self.trace_path}: chunk {chunk_key(index)} of array {self.name!r} cannot be read "
            f"({first_line(error)}): {advice}"
        )

    def _chunks_of(self, selection: Any) -> Iterator[tuple[int, ...]]:
        """Grid positions of the stored chunks that a basic selection touches."""
        given = selection if isinstance(selection, tuple) else (selection,)
        parts = [part for part in given if part is not Ellipsis]
        parts += [slice(None)] * (self.ndim - len(parts))
        touched = [
            np.unique(np.atleast_1d(np.arange(length)[part]) // chunk).tolist()
            for length, part, chunk in zip(self.shape, parts, self.array.shards or self.array.chunks, strict=True)
        ]
        return itertools.product(*touched)


class _StrictStore(WrapperStore[Store]):
    """A store in which a file that is not there is an error."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        content = await self._store.get(key, prototype, byte_range)  # type: ignore[arg-type]  # None is the default
        if content is None:
            raise MissingChunkError
        return content


def first_line(error: Exception) -> str:
    """The first sentence of an error of a library, or its name."""
    text = str(error).partition("\n")[0].partition(". ")[0][:200]
    return text or type(error).__name__
