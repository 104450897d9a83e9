"""Arrays of one trace laid over the labels of many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.studies.contribution import Arrays

STATISTIC_DIMS: Final = {
    "ulam": ("row", "column"),
    "tlam": ("time_group", "row", "column"),
    "hlam": ("head", "row", "column"),
    "llam": ("layer", "row", "column"),
    "entropy": ("layer", "head"),
    "inside": ("layer", "head"),
    "agreement": ("layer",),
    "layer": ("layer",),
    "head": ("head",),
}
"""Dimensions of what is averaged over traces, by the first word of its name."""


def statistic_dims(name: str) -> tuple[str, ...]:
    """Dimensions of a map or statistic, such as `entropy_r2g`."""
    return STATISTIC_DIMS[name.partition("_")[0]]


def laid_out(
    kept: Arrays, name: str, labels: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """A statistic of one trace over the labels of all; NaN where the trace has none."""
    values = np.full(shape, np.nan)
    if name in kept:
        places = [
            [labels[dim].tolist().index(label) for label in kept[f"labels:{dim}"].tolist()]
            if dim in labels
            else list(range(length))
            for dim, length in zip(statistic_dims(name), kept[name].shape, strict=True)
        ]
        values[np.ix_(*places)] = kept[name]
    return values
