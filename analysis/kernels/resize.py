"""Bicubic resizing as two small matrices: the same numbers as torch's `interpolate(mode="bicubic")`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CUBIC_A: Final = -0.75
"""Parameter of the cubic convolution kernel, as in torch."""


def resize(maps: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize the last two dimensions (row, column) to `size`: bicubic, half-pixel centres, no antialias.

    The same size gives the same numbers. Values may overshoot: the caller clamps.
    """
    rows, columns = maps.shape[-2:]
    if (rows, columns) == tuple(size):
        return maps
    across_rows = bicubic_matrix(rows, size[0]).astype(maps.dtype)
    across_columns = bicubic_matrix(columns, size[1]).astype(maps.dtype)
    resized: NDArray[Any] = across_rows @ maps @ across_columns.T
    return resized


@lru_cache(maxsize=64)
def bicubic_matrix(length: int, new_length: int) -> NDArray[np.float64]:
    """Weights of `length` samples in each of `new_length`: float64 (new, old), rows sum to 1.

    Samples beyond the edge repeat the edge.
    """
    centres = (np.arange(new_length) + 0.5) * (length / new_length) - 0.5
    first = np.floor(centres).astype(np.int64)
    matrix = np.zeros((new_length, length))
    for tap in range(-1, 3):
        place = np.clip(first + tap, 0, length - 1)
        np.add.at(matrix, (np.arange(new_length), place), _cubic(centres - first - tap))
    return matrix


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic convolution kernel (Keys, 1981)."""
    x = np.abs(distance)
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * CUBIC_A - 4 * CUBIC_A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
