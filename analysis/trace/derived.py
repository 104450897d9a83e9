"""What a store may hold beside what was recorded: the cache of marginals, if it counts, and measured effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.storage.store import StoredTrace
from attrace.analysis.storage.stored_array import StoredArray
from attrace.analysis.trace.selected import TraceSelection
from attrace.schemas import InputError, SiteClass, TraceFormatError, derived_arrays
from attrace.schemas.layout import DERIVED, DERIVED_STEPS, EFFECT


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
    path = f"{site_class.group}/{DERIVED}"
    try:
        group = stored.group(path)
        if group is None or group.attrs.get(DERIVED_STEPS) != finished_steps:
            return None
        return Derived(**{spec.name: stored.array(f"{path}/{spec.name}") for spec in derived_arrays(site_class, 0)})
    except TraceFormatError:  # a cache may always be ignored
        return None


def read_effects(trace: TraceSelection) -> xr.DataArray:
    """The effects that a trace holds of its selected layers, named `effect`: float64 (layer[, head]).

    Raises
    ------
    InputError
        If it holds none.
    """
    found = []
    for one in trace.classes:
        group = trace.stored.group(one.group)
        if group is not None and EFFECT in group:
            values = trace.stored.array(f"{one.group}/{EFFECT}")[...][list(one.layers)]
            heads = {} if values.ndim == 1 else {"head": range(values.shape[1])}
            found.append(xr.DataArray(values, {"layer": list(one.paths)} | heads, ("layer", *heads), EFFECT))
    if not found:
        raise InputError(
            f"trace {trace.path} holds no measured effects: measure them with attrace ablate --into, or pass weights= "
            "(--weights) a file that it wrote"
        )
    effects: xr.DataArray = xr.concat(found, "layer", join="outer")
    return effects.dropna("layer", how="all")
