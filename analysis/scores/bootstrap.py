"""Bootstrap intervals of means and of ratios of means: seeded, percentile."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 2000
"""Samples of the bootstrap."""


def bootstrap_interval(values: NDArray[np.float64], *, seed: int, level: float = 0.95) -> NDArray[np.float64]:
    """Percentile interval of the mean of the values that are not NaN, along the first axis.

    Parameters
    ----------
    values
        (sample, ...); every element is a mean of its own, all drawn with the same samples.
    seed
        Of the draws.
    level
        Share of the draws within the interval.

    Returns
    -------
    ndarray
        float64 (2, ...): low and high; NaN where every value is. Efron and Tibshirani, An Introduction to the
        Bootstrap, 1993, section 13.3.
    """
    known = ~np.isnan(values)
    return _interval(_drawn_means(np.where(known, values, 0.0), known.astype(np.float64), seed), level)


def bootstrap_ratio(
    above: NDArray[np.float64], below: NDArray[np.float64], *, seed: int, level: float = 0.95
) -> NDArray[np.float64]:
    """Percentile interval of mean(above) / mean(below) over the samples that both share: float64 (2).

    Both are (sample); samples are drawn together, and a draw whose mean below is 0 is left out.
    """
    return _interval(_drawn_means(above, below, seed), level)


def _drawn_means(sums: NDArray[np.float64], weights: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Sum of each draw over the sum of its weights: (draw, ...); NaN where that is 0."""
    count = len(sums)
    random = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, *sums.shape[1:]))
    with np.errstate(divide="ignore", invalid="ignore"):
        for draw in means if means.ndim > 1 else np.expand_dims(means, 1):
            times = np.bincount(random.integers(count, size=count), minlength=count).astype(np.float64)
            total = np.tensordot(times, weights, 1)
            draw[...] = np.where(total == 0, np.nan, np.tensordot(times, sums, 1) / total)
    return means


def _interval(means: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    tail = (1 - level) / 2
    known = ~np.isnan(means).all(axis=0)
    interval = np.full((2, *means.shape[1:]), np.nan)
    interval[:, known] = np.nanquantile(means[:, known], [tail, 1 - tail], axis=0)
    return interval
