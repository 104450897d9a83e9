"""Dask arrays made block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

Chunks = tuple[tuple[int, ...], ...]
"""Lengths of the blocks along each dimension."""


def array_of_blocks(
    make: Callable[[tuple[int, ...]], NDArray[Any]], name: str, chunks: Chunks, dtype: np.dtype[Any]
) -> da.Array:
    """Array whose blocks `make` returns for their block indices; arrays of equal names have equal content."""
    array: da.Array = da.map_blocks(
        _Block(make), name=name, chunks=chunks, dtype=dtype, meta=np.empty((0,) * len(chunks), dtype)
    )
    return array


def split(indices: tuple[int, ...], largest: int) -> tuple[tuple[int, ...], ...]:
    """Split indices into consecutive blocks of at most `largest`."""
    return tuple(indices[start : start + largest] for start in range(0, len(indices), largest))


class _Block:
    """Callable for dask, which passes the block index as the keyword `block_id`."""

    def __init__(self, make: Callable[[tuple[int, ...]], NDArray[Any]]) -> None:
        self._make = make

    def __call__(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        return self._make(block_id)
