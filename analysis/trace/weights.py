"""Which queries and keys count, and how much: masks over a picture become weights over the patches of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attrace.schemas import InputError, KeySegment, SiteClass
from attrace.schemas.words import KEY_KINDS

Queries = ArrayLike | None
"""Queries that count: a mask over the generated picture, of any resolution; None for all."""

Keys = ArrayLike | str | Sequence[int] | None
"""Keys that count: a mask over the reference picture, a kind of key, `all`, or places of keys; None for the patches
(for all keys where there are no patches)."""

Weights = NDArray[np.float64]


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
        If the kind is unknown, a place is out of range, or the mask selects nothing.
    """
    if keys is None:
        keys = "patch" if any(segment.kind == "patch" for segment in site_class.key_segments) else "all"
    if isinstance(keys, str):
        return _weights_of_kind(site_class, keys)
    values = np.asarray(keys)
    if values.ndim == 1:
        return _weights_at(site_class, values)
    return _weights_under_mask(site_class, as_mask(values, "keys"))


def picture_segment(site_class: SiteClass) -> tuple[slice, KeySegment] | None:
    """The keys that lie on a grid over the reference, and where they stand among all keys; None if none do.

    Raises
    ------
    InputError
        If there are several such grids.
    """
    found = [(place, segment) for place, segment in _segments(site_class) if segment.grid is not None]
    if len(found) > 1:
        grids = " and ".join(f"{segment.grid[0]} x {segment.grid[1]}" for _, segment in found if segment.grid)
        raise InputError(
            f"{site_class.group}: the keys hold {len(found)} pictures ({grids}), of which a map shows one: choose it "
            "with trace.sel(picture=0) (--picture 0)"
        )
    return found[0] if found else None


def pictures_in(site_class: SiteClass) -> int:
    """How many pictures the keys of a class hold: grids of patches."""
    return sum(segment.grid is not None for segment in site_class.key_segments)


def of_one_picture(site_class: SiteClass, number: int) -> SiteClass:
    """A class as if only one of the pictures in its keys were a picture: the patches of others are `other` keys."""
    pictures = [place for place, segment in enumerate(site_class.key_segments) if segment.grid is not None]
    others = set(pictures) - {pictures[number]}
    segments = tuple(
        KeySegment(kind="other", count=segment.count) if place in others else segment
        for place, segment in enumerate(site_class.key_segments)
    )
    return site_class.model_copy(update={"key_segments": segments})


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


def coverage(mask: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.float64]:
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


def normalised(weights: Weights) -> Weights:
    """Weights that sum to 1."""
    shares: Weights = weights / weights.sum()
    return shares


def _weights_of_kind(site_class: SiteClass, kind: str) -> Weights:
    if kind != "all" and kind not in KEY_KINDS:
        raise InputError(f"keys: there is no kind of key {kind!r}; use 'all' or one of {', '.join(KEY_KINDS)}")
    weights = np.zeros(site_class.keys)
    for place, segment in _segments(site_class):
        weights[place] = kind in ("all", segment.kind)
    return weights


def _weights_at(site_class: SiteClass, places: NDArray[Any]) -> Weights:
    if places.dtype == bool:
        raise InputError("keys: expected places of keys, or a mask (row, column), found a boolean list")
    wanted = places.astype(np.int64)
    if wanted.size == 0 or not np.array_equal(wanted, places):
        raise InputError(f"keys: expected places of keys, found {places.tolist()}")
    if wanted.min() < 0 or wanted.max() >= site_class.keys:
        raise InputError(f"keys: {site_class.group} has keys 0 to {site_class.keys - 1}, found {wanted.tolist()}")
    weights = np.zeros(site_class.keys)
    weights[wanted] = 1
    return weights


def _weights_under_mask(site_class: SiteClass, mask: NDArray[np.float64]) -> Weights:
    weights = np.zeros(site_class.keys)
    picture = picture_segment(site_class)
    if picture is not None and picture[1].grid is not None:
        weights[picture[0]] = coverage(mask, picture[1].grid).ravel()
    return weights


def _segments(site_class: SiteClass) -> list[tuple[slice, KeySegment]]:
    """The key segments, each with its place among all keys."""
    stops = np.cumsum([segment.count for segment in site_class.key_segments]).tolist()
    return [
        (slice(stop - segment.count, stop), segment)
        for stop, segment in zip(stops, site_class.key_segments, strict=True)
    ]
