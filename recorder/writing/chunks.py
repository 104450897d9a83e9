"""Chunks of a local Zarr v3 array, written straight to their files.

Through zarr a chunk takes milliseconds under the interpreter lock, which the model's thread needs; this way it takes
a tenth of one (benchmarks/recording.py). The bytes are those that zarr writes.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from attrace.schemas import ArraySpec
from attrace.schemas.codecs import Codec, compressor
from attrace.schemas.layout import chunk_key


class ChunkFiles:
    """The files of one array's chunks.

    Parameters
    ----------
    folder
        The array's folder.
    spec
        The array.
    codec
        Its compression.
    """

    def __init__(self, folder: Path, spec: ArraySpec, codec: Codec) -> None:
        self._folder = folder
        self._shape = spec.chunks
        self._fill = spec.fill
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._compress = _compression(compressor(codec, spec.dtype, spec.chunks))

    def write(self, place: Sequence[int], values: ArrayLike) -> None:
        """Write one whole chunk, atomically; several threads may write different chunks at once.

        Parameters
        ----------
        place
            Number of the chunk along the first dims; 0 along the others.
        values
            Its values; dims of length 1 may be left out.
        """
        chunk = np.ascontiguousarray(values, self._dtype).reshape(self._shape)
        data = self._compress(chunk)
        checksum = google_crc32c.value(data).to_bytes(4, "little")
        target = self._folder / chunk_key((*place, *[0] * (len(self._shape) - len(place))))
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{threading.get_ident()}.partial")
        with unfinished.open("wb") as file:
            file.write(data)
            file.write(checksum)
        os.replace(unfinished, target)  # noqa: PTH105 (one call less)

    def write_all(self, values: NDArray[Any]) -> None:
        """Write every chunk of an array that is divided along its first dim alone."""
        for start in range(0, len(values), self._shape[0]):
            part = values[start : start + self._shape[0]]
            chunk = np.full(self._shape, self._fill, self._dtype)
            chunk[: len(part)] = part
            self.write((start // self._shape[0],), chunk)

    def remove_from(self, step: int) -> None:
        """Remove the chunks that hold nothing before a step."""
        kept = -(-step // self._shape[0])
        for found in (self._folder / "c").glob("*"):
            if found.name.isdecimal() and int(found.name) >= kept:
                shutil.rmtree(found) if found.is_dir() else found.unlink()


class StepSeries:
    """An array with few numbers for each step, written a chunk of many steps at a time.

    Steps are set in order; the chunk of the last one is held in memory.

    Parameters
    ----------
    files
        Its chunks.
    spec
        The array; time comes first.
    """

    def __init__(self, files: ChunkFiles, spec: ArraySpec) -> None:
        self._files = files
        self._fill = spec.fill
        self._rows = np.full(spec.chunks, spec.fill, spec.dtype)
        self._chunk = 0
        self._lock = threading.Lock()

    def set(self, step: int, values: ArrayLike, *place: int) -> None:
        """Set the numbers of a step, or the one at a place in it; several threads may set those of one step."""
        chunk, row = divmod(step, len(self._rows))
        with self._lock:
            if chunk != self._chunk:
                self._rows[...] = self._fill
                self._chunk = chunk
            self._rows[(row, *place)] = values

    def write(self) -> None:
        """Write the chunk of the step that was set last."""
        self._files.write((self._chunk,), self._rows)


def _compression(codec: dict[str, Any] | None) -> Callable[[NDArray[Any]], bytes]:
    """What compresses a chunk as a codec of `zarr.json` says."""
    if codec is None:
        return np.ndarray.tobytes
    found = codec["configuration"]
    blosc = codec["name"] == "blosc"
    encode = (Blosc(**found | {"shuffle": Blosc.SHUFFLE}) if blosc else Zstd(**found)).encode
    return lambda chunk: bytes(encode(chunk))
