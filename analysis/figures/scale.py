"""The colour scale that all panels of a figure share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attrace.schemas import InputError


@dataclass(frozen=True)
class ColourScale:
    """Values at the two ends of the colours."""

    low: float
    high: float
    extend: Literal["neither", "min", "max", "both"] = "neither"
    """Ends that values lie beyond: the colour bar gets an arrow there."""

    def share(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values as a share of the scale, 0 at `low` and 1 at `high`."""
        return np.clip((values - self.low) / (self.high - self.low), 0, 1)

    @property
    def exponent(self) -> int:
        """Power of ten to take out of the numbers beside the colour bar; 0 where they read well as they are."""
        power = math.floor(math.log10(max(abs(self.low), abs(self.high)) or 1))
        return power if power < -1 or power > 3 else 0


def colour_scale(
    values: NDArray[np.float64], *, limits: tuple[float, float] | None = None, above: float = 0
) -> ColourScale:
    """A scale over all values of a figure.

    Parameters
    ----------
    values
        Of every panel; NaN is left out.
    limits
        Values at the ends; by default taken from the values.
    above
        Percent of the values that may lie above the upper end, so that a few cells do not darken all others.

    Raises
    ------
    InputError
        If no value is finite, or the limits are not in order.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InputError("nothing to draw: the map has no finite value; the selected layers were not called in it")
    if limits is not None and not limits[0] < limits[1]:
        raise InputError(f"expected limits with the smaller value first, found {limits[0]:g} and {limits[1]:g}")
    low, high = limits or tuple(float(end) for end in np.percentile(finite, [0, 100 - above]))
    if low == high:  # a map of one value: drawn in the colour of the lower end
        high = low + (abs(low) or 1)
    under, over = bool(finite.min() < low), bool(finite.max() > high)
    extend: Literal["neither", "min", "max", "both"] = (
        "both" if under and over else "min" if under else "max" if over else "neither"
    )
    return ColourScale(low, high, extend)
