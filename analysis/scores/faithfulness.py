"""Whether a ranking of the reference's patches tells what the model uses: orders, curves and areas, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Unpack

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.attribution import MapOptions, ulam
from attrace.analysis.maps.masks import Queries, as_mask, coverage
from attrace.analysis.scores.bootstrap import bootstrap_interval, bootstrap_ratio
from attrace.schemas import InputError

if TYPE_CHECKING:
    from attrace.analysis.trace.trace import Trace

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


@dataclass(frozen=True)
class DeletionPlan:
    """Which patches of one input are hidden, run by run."""

    fractions: tuple[float, ...]
    """Shares of the patches that are hidden, from 0 to 1."""
    orders: Mapping[Order, Sequence[NDArray[np.int64]]]
    """As `patch_orders` gives them."""
    grid: tuple[int, int]
    """Rows and columns of the patches."""

    @property
    def hidden(self) -> list[NDArray[np.bool_]]:
        """Patches of each run: all of them, then those of every order and share but none and all."""
        every = [one for several in self.orders.values() for one in several]
        return [np.ones(self.grid, bool)] + [
            first_of(one, share, self.grid) for one in every for share in self.fractions[1:-1]
        ]

    def curves(self, changes: Sequence[float]) -> dict[Order, NDArray[np.float64]]:
        """Change by order, from none hidden to all: (fraction), the mean over its draws; of the changes of `hidden`."""
        lengths = [len(several) for several in self.orders.values()]
        inner = np.array(changes[1:]).reshape(sum(lengths), -1)
        whole = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, changes[0])))
        split = np.split(whole, np.cumsum(lengths)[:-1])
        return {order: draws.mean(axis=0) for order, draws in zip(self.orders, split, strict=True)}


def deletion_plan(
    trace: Trace,
    fractions: Sequence[float],
    *,
    draws: int,
    seed: int,
    queries: Queries = None,
    **options: Unpack[MapOptions],
) -> DeletionPlan:
    """Rank the patches of a trace's reference by its unified g2r map, and plan what is hidden.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    fractions
        Shares of the patches to hide: rising, from 0 to 1.
    draws, seed
        As for `patch_orders`.
    queries
        Queries whose attention ranks the patches, as for `ulam`: the mask, where what changes inside it is measured.
    **options
        `size`, `layers`, `density`, `resampler`, `weights` and `contribution` as for `ulam`.
    """
    heat = ulam(trace, direction="g2r", queries=queries, **options).compute()
    orders = patch_orders(heat, draws=draws, seed=seed)
    return DeletionPlan(tuple(fractions), orders, (heat.sizes["row"], heat.sizes["column"]))


def by_order(curves: Sequence[Mapping[Order, NDArray[np.float64]]]) -> dict[Order, NDArray[np.float64]]:
    """The curves of several inputs together, as `summarise` takes them: (input, fraction) of each order."""
    return {order: np.array([curve[order] for curve in curves]) for order in ORDERS}


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
