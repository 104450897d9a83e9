"""Masks over a picture: read in one way, laid over grids by area, and what they say of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.trace.key_segments import key_slices, picture_keys
from attrace.schemas import InputError, SiteClass
from attrace.schemas.checks import require_type
from attrace.schemas.words import KEY_KINDS

if TYPE_CHECKING:
    from PIL.Image import Image

    from attrace.analysis.trace.trace import Trace

Queries = ArrayLike | None
"""Queries that count: a mask over the generated picture, of any resolution; None for all."""

Keys = ArrayLike | str | Sequence[int] | None
"""Keys that count: a mask over the reference picture, a kind of key, `all`, or numbers of keys; None for the patches
(for all keys where there are no patches)."""

Weights = NDArray[np.float64]


def trace_mask(trace: Trace) -> NDArray[np.bool_] | None:
    """The mask in a trace: bool (row, column); None where it holds none."""
    return read_mask(trace.images["mask"].values) if "mask" in trace.images else None


def read_mask(picture: Image | NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask in a picture that is white where it holds: bool (row, column), true where the luminance is above 127."""
    from PIL import Image  # slow to import

    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    return np.asarray(picture.convert("L")) > 127


def as_mask(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """A mask over a picture as float64 (row, column) in [0, 1].

    Raises
    ------
    InputError
        If it is no such mask, or selects nothing.
    """
    mask = np.asarray(values)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "biuf":
        raise InputError(
            f"{name}: expected a mask (row, column) over the picture, found {mask.dtype} of shape {mask.shape}"
        )
    if mask.dtype.kind in "iu" and mask.max() > 1:
        raise InputError(
            f"{name}: expected a boolean mask, found integers up to {mask.max()}: compare first, mask > 127"
        )
    fractions = mask.astype(np.float64)
    if not (np.isfinite(fractions).all() and fractions.min() >= 0 and fractions.max() <= 1):
        raise InputError(f"{name}: expected a mask of values in [0, 1]")
    if not fractions.any():
        raise InputError(f"{name}: the mask selects nothing")
    return fractions


def require_proportions(mask: NDArray[Any], picture: tuple[int, int], name: str = "mask") -> None:
    """Refuse a mask of other proportions than its picture, but for half a pixel of rounding.

    Raises
    ------
    InputError
        If they differ.
    """
    require_type(mask, np.ndarray, name, "an array (row, column)")
    rows, columns = mask.shape
    if abs(rows * picture[1] - columns * picture[0]) > max(*mask.shape, *picture) / 2:
        raise InputError(
            f"{name}: found {rows} x {columns} pixels, expected the proportions of the picture of {picture[0]} x "
            f"{picture[1]} that it lies over"
        )


def coverage(mask: NDArray[Any], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Share of every cell of a grid that a mask covers: float64 (row, column).

    Parameters
    ----------
    mask
        (row, column) in [0, 1], of any resolution.
    grid
        Rows and columns.
    """
    shares: NDArray[np.float64] = area_matrix(mask.shape[0], grid[0]) @ mask @ area_matrix(mask.shape[1], grid[1]).T
    return shares


def area_matrix(length: int, cells: int) -> NDArray[np.float64]:
    """Share of each pixel in each cell, when `length` pixels are laid over `cells` cells: (cell, pixel), rows sum to 1.

    Examples
    --------
    >>> area_matrix(3, 2)
    array([[0.66666667, 0.33333333, 0.        ],
           [0.        , 0.33333333, 0.66666667]])
    """
    cell, pixel = np.arange(cells)[:, None], np.arange(length)[None, :]
    # in units of 1 / (length * cells) every edge is a whole number, so shares are exact
    overlap = np.minimum((cell + 1) * length, (pixel + 1) * cells) - np.maximum(cell * length, pixel * cells)
    shares: NDArray[np.float64] = np.maximum(overlap, 0) / length
    return shares


def query_weights(site_class: SiteClass, queries: Queries) -> Weights:
    """How far each query counts, in [0, 1]: float64 (query).

    A query that a mask covers by half counts half.

    Raises
    ------
    InputError
        If a mask is given and the queries lie on no grid, or the mask selects nothing.
    """
    if queries is None:
        return np.ones(site_class.queries)
    if site_class.query_grid is None:
        raise InputError(f"{site_class.group}: the queries lie on no grid, so a mask over the picture selects none")
    return coverage(as_mask(queries, "queries"), site_class.query_grid).ravel()


def key_weights(site_class: SiteClass, keys: Keys) -> Weights:
    """How far each key counts, in [0, 1]: float64 (key); all zero where the class has none of those asked for.

    Raises
    ------
    InputError
        If the kind is unknown, a number is out of range, or the mask selects nothing.
    """
    if keys is None:
        keys = "patch" if any(segment.kind == "patch" for segment in site_class.key_segments) else "all"
    weights = np.zeros(site_class.keys)
    values = np.asarray(keys)
    if isinstance(keys, str):
        if keys != "all" and keys not in KEY_KINDS:
            raise InputError(f"keys: there is no kind of key {keys!r}; use 'all' or one of {', '.join(KEY_KINDS)}")
        for part, segment in key_slices(site_class):
            weights[part] = keys in ("all", segment.kind)
    elif values.ndim == 1:
        weights[_key_numbers(site_class, values)] = 1
    else:
        mask, picture = as_mask(values, "keys"), picture_keys(site_class)
        if picture is not None:
            weights[picture[0]] = coverage(mask, picture[1]).ravel()
    return weights


def normalised(weights: Weights) -> Weights:
    """Weights that sum to 1."""
    shares: Weights = weights / weights.sum()
    return shares


def _key_numbers(site_class: SiteClass, numbers: NDArray[Any]) -> NDArray[np.int64]:
    if numbers.dtype.kind not in "iuf":
        raise InputError(f"keys: expected numbers of keys, or a mask (row, column), found {numbers.tolist()}")
    wanted = numbers.astype(np.int64)
    if wanted.size == 0 or not np.array_equal(wanted, numbers):
        raise InputError(f"keys: expected numbers of keys, found {numbers.tolist()}")
    if wanted.min() < 0 or wanted.max() >= site_class.keys:
        raise InputError(f"keys: {site_class.group} has keys 0 to {site_class.keys - 1}, found {wanted.tolist()}")
    return wanted
