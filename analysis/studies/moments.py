"""Count, mean and variance of labelled datasets, merged in any number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import xarray as xr


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the known values of each element; 0 where all are NaN."""

    count: xr.Dataset
    mean: xr.Dataset
    squares: xr.Dataset

    @classmethod
    def of(cls, values: xr.Dataset) -> Moments:
        """Those of one value of each element."""
        count = values.notnull().astype(np.int64)
        return cls(count, values.fillna(0).astype(np.float64), count * 0.0)

    def merge(self, other: Moments) -> Moments:
        """Those of both together, over the labels of both (Chan, Golub and LeVeque, 1983)."""
        sides = (self.count, self.mean, self.squares, other.count, other.mean, other.squares)
        count_a, mean_a, squares_a, count_b, mean_b, squares_b = xr.align(*sides, join="outer", fill_value=0)
        count = count_a + count_b
        share = count_b / count.clip(min=1)
        distance = mean_b - mean_a
        return Moments(count, mean_a + distance * share, squares_a + squares_b + distance**2 * count_a * share)

    def means(self) -> xr.Dataset:
        """Mean of each element; NaN where there is no value."""
        return self.mean.where(self.count > 0)

    def variances(self) -> xr.Dataset:
        """Sum of squared deviations divided by n - 1; NaN where there are fewer than two values."""
        return self.squares.where(self.count > 1) / (self.count - 1).clip(min=1)


def merge_pairwise(moments: Iterable[Moments]) -> Moments:
    """All together, in pairs of equal numbers of traces: no more than the logarithm of their number at once."""
    levels: list[Moments | None] = []
    for carried in moments:
        level = 0
        while level < len(levels) and (left := levels[level]) is not None:
            carried, levels[level] = left.merge(carried), None
            level += 1
        levels += [None] * (level + 1 - len(levels))
        levels[level] = carried
    left_over = [one for one in levels if one is not None]
    return reduce(lambda right, left: left.merge(right), left_over)
