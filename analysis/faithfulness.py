"""Whether a ranking of the reference's patches tells what the model uses: orders, curves and areas, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.bootstrap import bootstrap_interval, bootstrap_ratio
from attrace.analysis.weights import as_mask, coverage
from attrace.schemas import InputError

Order = Literal["top", "random", "bottom"]
"""Patches with the highest rank first, in random order, with the lowest rank first."""

ORDERS: Final[tuple[Order, ...]] = ("top", "random", "bottom")


def patch_orders(heat: xr.DataArray, *, draws: int, seed: int) -> dict[Order, list[NDArray[np.int64]]]:
    """Orders in which the patches of a map are hidden.

    Parameters
    ----------
    heat
        (row, column): the map that ranks the patches.
    draws
        Random orders.
    seed
        Of these.

    Returns
    -------
    dict
        By name, one or several permutations of the cells, in reading order of the map; equal cells in reading order.

    Raises
    ------
    InputError
        If the map is not (row, column) or not finite.
    """
    values = np.asarray(heat.transpose("row", "column").values, np.float64).ravel()
    if not np.isfinite(values).all():
        raise InputError("expected a finite map to rank patches by, found NaN or infinity")
    top = np.argsort(-values, kind="stable")
    random = np.random.default_rng(seed)
    return {"top": [top], "random": [random.permutation(values.size) for _ in range(draws)], "bottom": [top[::-1]]}


def first_of(order: NDArray[np.int64], fraction: float, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """The first part of an order as cells of the grid: bool (row, column); rounded to whole cells."""
    cells = np.zeros(order.size, bool)
    cells[order[: round(fraction * order.size)]] = True
    return cells.reshape(grid)


def picture_change(picture: ArrayLike, before: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean absolute difference of two uint8 pictures, in [0, 1]; inside a mask (row, column) where one is given.

    Raises
    ------
    InputError
        If the pictures have other shapes, or the mask selects nothing.
    """
    one, two = np.asarray(picture), np.asarray(before)
    if one.shape != two.shape or {one.dtype, two.dtype} != {np.dtype(np.uint8)}:
        raise InputError(f"expected two uint8 pictures of one shape, found {one.shape} and {two.shape}")
    difference = np.abs(one.astype(np.float64) - two) / 255
    if difference.ndim == 3:
        difference = difference.mean(axis=2)
    if mask is None:
        return float(difference.mean())
    weights = coverage(as_mask(mask, "mask"), difference.shape)
    return float((difference * weights).sum() / weights.sum())


@dataclass(frozen=True)
class Interval:
    """A mean or ratio over inputs and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Faithfulness:
    """What hiding patches in each order changed."""

    fractions: tuple[float, ...]
    """Shares of the patches that are hidden, from 0 to 1."""
    deletion: Mapping[Order, NDArray[np.float64]]
    """Change of the picture when the first share of an order is hidden: (input, fraction)."""
    areas: Mapping[Order, Interval]
    """Area under the deletion curve."""
    insertion_areas: Mapping[Order, Interval]
    """Area under the insertion curve: the change when only the first share of an order is shown."""
    deletion_ratio: Interval
    """Area of `top` over that of `random`; above 1 where the ranking is faithful."""
    insertion_ratio: Interval
    """The same of the insertion curves; below 1 where the ranking is faithful."""

    @property
    def insertion(self) -> dict[Order, NDArray[np.float64]]:
        """Change when only the first share of an order is shown: (input, shown), from all hidden to all shown.

        To show the first share of an order is to hide the rest, which is the first share of the reversed order: `top`
        shown is `bottom` hidden. Shares that are shown are 1 - `fractions`, reversed.
        """
        return {order: self.deletion[other][:, ::-1] for order, other in _REVERSED.items()}


_REVERSED: Final[Mapping[Order, Order]] = {"top": "bottom", "random": "random", "bottom": "top"}


def summarise(
    fractions: Sequence[float], deletion: Mapping[Order, NDArray[np.float64]], *, seed: int = 0
) -> Faithfulness:
    """Areas and ratios of deletion curves, with bootstrap intervals over the inputs.

    Parameters
    ----------
    fractions
        Rising, from 0 to 1.
    deletion
        By order, (input, fraction): mean over the draws of an order.
    seed
        Of the bootstrap.

    Raises
    ------
    InputError
        If the fractions do not rise from 0 to 1, or a curve has another shape.
    """
    places = np.asarray(fractions, np.float64)
    if places.size < 2 or places[0] != 0 or places[-1] != 1 or (np.diff(places) <= 0).any():
        raise InputError(f"fractions: expected them to rise from 0 to 1, found {list(fractions)}")
    if len({curve.shape for curve in deletion.values()}) != 1 or deletion["top"].shape[1:] != places.shape:
        raise InputError(f"expected a curve of {places.size} values for each input and order")
    areas = {order: np.asarray(np.trapezoid(deletion[order], places, axis=1)) for order in ORDERS}
    insertion = {order: areas[_REVERSED[order]] for order in ORDERS}
    return Faithfulness(
        tuple(map(float, places)),
        dict(deletion),
        {order: _mean(areas[order], seed) for order in ORDERS},
        {order: _mean(insertion[order], seed) for order in ORDERS},
        _ratio(areas["top"], areas["random"], seed),
        _ratio(insertion["top"], insertion["random"], seed),
    )


def _mean(values: NDArray[np.float64], seed: int) -> Interval:
    low, high = bootstrap_interval(values, seed=seed).tolist()
    return Interval(float(values.mean()), low, high)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64], seed: int) -> Interval:
    if below.mean() == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = bootstrap_ratio(above, below, seed=seed).tolist()
    return Interval(float(above.mean() / below.mean()), low, high)
