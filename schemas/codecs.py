"""Compression of the chunks of an array, as its `zarr.json` states it."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np

Codec = Literal["auto", "zstd", "none"]
"""Compression of chunks; `auto` is zstd, behind a byte shuffle where that saves space. Every chunk has a checksum."""

ZSTD_LEVEL: Final = 1
"""Higher levels save nothing on attention and are slower."""

SHUFFLED_FROM: Final = 2**17
"""Smallest chunk, in bytes, that shuffling makes smaller (benchmarks/codecs.py)."""

_ZSTD_BLOCK_BYTES: Final = 2**17
"""Bytes that zstd describes with one table of frequencies."""

_BLOSC_MAX_BYTES: Final = 2**31 - 1 - 16
"""Largest chunk that blosc takes."""


def compressor(codec: Codec, dtype: str, chunks: tuple[int, ...]) -> dict[str, Any] | None:
    """Codec that compresses the chunks of an array; None for no compression.

    A shuffle puts the first bytes of all values together, then the second and so on. Blocks are so long that each
    such run fills whole blocks of zstd: the bytes with exponents, which compress, are then apart from those of
    mantissas, which do not, and the two that are zero in every float32 which was a bfloat16 take no room.

    Parameters
    ----------
    codec
        What was asked for.
    dtype
        Data type of the array.
    chunks
        Length of a chunk along each dimension.
    """
    if codec == "none":
        return None
    size = np.dtype(dtype).itemsize
    if codec == "auto" and size > 1 and SHUFFLED_FROM <= size * math.prod(chunks) <= _BLOSC_MAX_BYTES:
        blosc = {"cname": "zstd", "clevel": ZSTD_LEVEL, "shuffle": "shuffle"}
        return _codec("blosc", typesize=size, **blosc, blocksize=size * _ZSTD_BLOCK_BYTES)
    return _codec("zstd", level=ZSTD_LEVEL, checksum=False)


def _codec(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}
