"""What a kernel is given: the scores of one site in one step, or the queries and keys that they are the product of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Factors:
    """Queries and keys of one site in one step, of all heads: s = scale * q.k + bias."""

    query: NDArray[Any]
    """(head, query, feature)."""
    key: NDArray[Any]
    """(head, key, feature)."""
    scale: float
    bias: NDArray[np.float32] | None = None
    """(key): added to the scores; -inf hides a key."""
    lse: NDArray[np.float32] | None = None
    """(head, query): log of the sum of exp(s) over all keys, where only some of them are in the trace."""


@dataclass(frozen=True)
class Scores:
    """Scores of one site in one step, of all heads."""

    scores: NDArray[Any]
    """(head, query, key)."""
    lse: NDArray[np.float32] | None = None
    """As in `Factors`."""


SiteValues = Factors | Scores
