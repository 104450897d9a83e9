"""How much queries and keys count in a pass, and whether one exponential suits their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SAFE_SCORE: Final = 75.0
"""Scores within this magnitude need no shift: their exponentials and sums are normal float32 numbers."""

SAFE_LSE: Final = 70.0
"""A stored log-sum-exp within this of the shift keeps exp(shift - lse) a normal float32 number."""

SMALL_BIAS: Final = (-200.0, -80.0)
"""A bias, less the largest, between these has a factor too small for float32 and too large to leave out: scores that
suit one shift spread by at most 150."""


@dataclass(frozen=True)
class Weighting:
    """How much queries and keys count; the largest is 1, so that products stay normal numbers."""

    query_weights: NDArray[Any]
    """(query)."""
    query_scale: float
    """What the query weights were divided by."""
    key_weights: NDArray[Any]
    """(key); 0 for a hidden key."""
    key_scale: float
    """What the key weights were divided by."""
    bias: NDArray[Any]
    """(key): the bias less its largest; -inf for a hidden key."""
    bias_scale: float
    """That largest."""

    @property
    def key_factors(self) -> NDArray[Any]:
        """(key): exp(bias), at most 1; 0 where that is negligible."""
        return np.where(self.bias > SMALL_BIAS[0], np.exp(self.bias), 0).astype(self.bias.dtype)

    def suits_one_shift(self) -> bool:
        """Whether exp(bias) is either a normal number or negligible."""
        return not np.any((self.bias > SMALL_BIAS[0]) & (self.bias < SMALL_BIAS[1]))


def suits(shift: float, row_logarithms: NDArray[np.float64] | None) -> bool:
    """Whether exp(shift - log of the sum over keys) is a normal float32 number wherever that sum is known."""
    if row_logarithms is None:
        return True
    distances = np.abs(row_logarithms[row_logarithms != -np.inf] - shift)
    return bool(distances.max(initial=0.0) <= SAFE_LSE)
