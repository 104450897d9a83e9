"""The cache of marginals in a store: whether it counts, and reading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attrace.analysis.store import StoredArray, StoredTrace
from attrace.schemas import SiteClass, derived_arrays
from attrace.schemas.layout import DERIVED, DERIVED_STEPS


@dataclass(frozen=True)
class Derived:
    """The kept marginals of a class: float32 (time, layer, head, query or key)."""

    r2g: StoredArray
    g2r: StoredArray

    def read(self, quantity: str, steps: Sequence[int], layer: int, heads: Sequence[int]) -> NDArray[np.float32]:
        """Marginals of one layer in some steps: (time, 1, head, query or key)."""
        array = self.r2g if quantity == "r2g" else self.g2r
        first = min(steps)
        values = array[first : max(steps) + 1, layer : layer + 1]
        if list(steps) != list(range(first, first + len(values))):
            values = values[np.asarray(steps) - first]
        return values if len(heads) == values.shape[2] else values[:, :, list(heads)]


def open_derived(stored: StoredTrace, site_class: SiteClass, finished_steps: int) -> Derived | None:
    """The kept marginals of a class; None where there are none, or they do not cover exactly the finished steps."""
    group = stored.root.get(f"{site_class.group}/{DERIVED}")
    if not isinstance(group, zarr.Group) or group.attrs.get(DERIVED_STEPS) != finished_steps:
        return None
    expected = {spec.name: spec for spec in derived_arrays(site_class, finished_steps)}
    arrays: dict[str, Any] = {name: group.get(name) for name in expected}
    for name, spec in expected.items():
        array = arrays[name]
        if not isinstance(array, zarr.Array) or array.shape[1:] != spec.shape[1:] or array.shape[0] < finished_steps:
            return None
    path = f"{site_class.group}/{DERIVED}"
    return Derived(**{name: StoredArray(stored.path, f"{path}/{name}", array) for name, array in arrays.items()})
