"""Boxes around what a map or a mask shows most, and how far two of them overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.schemas import InputError
from attrace.schemas.checks import require_type


class Box(NamedTuple):
    """A box of cells; the last two are not included."""

    top: int
    left: int
    bottom: int
    right: int


def bounding_box(
    attribution: xr.DataArray | ArrayLike, *, percentile: float = 65.0, element: int = 5, dilate: bool = False
) -> Box | None:
    """Box around the largest region of high attribution, as in I2AM's detection study.

    Parameters
    ----------
    attribution
        (row, column); computed if it is lazy.
    percentile
        Cells above this percentile of the map are kept.
    element
        Cells along a side of the square that opens and then closes what is kept, which removes specks and fills
        holes.
    dilate
        Widen the result by the square once more, as the published code does.

    Returns
    -------
    Box or None
        (top, left, bottom, right) in cells of the map, the last two not included; None where nothing is left.

    Raises
    ------
    InputError
        If the map is not (row, column) or not finite, or a parameter is out of range.
    """
    from scipy import ndimage  # slow to import

    values = np.asarray(attribution)
    if values.dtype.kind not in "biuf":
        require_type(attribution, xr.DataArray, "attribution", "a map (row, column)")
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"expected a map (row, column), found shape {values.shape}: select one first")
    if not np.isfinite(values).all():
        raise InputError("expected a finite map, found NaN or infinity")
    if not 0 <= percentile < 100 or element < 1:
        raise InputError(f"expected 0 <= percentile < 100 and element >= 1, found {percentile} and {element}")
    square = np.ones((element, element), dtype=bool)
    kept = values > np.percentile(values, percentile)
    # what lies beyond the edge must not eat into a region that touches it
    kept = ndimage.binary_dilation(ndimage.binary_erosion(kept, square, border_value=1), square)
    kept = ndimage.binary_erosion(ndimage.binary_dilation(kept, square), square, border_value=1)
    if dilate:
        kept = ndimage.binary_dilation(kept, square)
    labels, count = ndimage.label(kept, np.ones((3, 3)))
    if count == 0:
        return None
    largest = int(np.argmax(np.bincount(labels.ravel())[1:]))
    rows, columns = ndimage.find_objects(labels)[largest]
    return Box(rows.start, columns.start, rows.stop, columns.stop)


def mask_box(cells: NDArray[np.bool_]) -> Box:
    """Box around what a mask (row, column) selects.

    Raises
    ------
    InputError
        If it selects nothing.
    """
    if not cells.any():
        raise InputError("mask: the mask selects nothing")
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def iou(first: Box | tuple[int, int, int, int] | None, second: Box | tuple[int, int, int, int] | None) -> float:
    """Intersection over union of two boxes (top, left, bottom, right); 0 where one is None.

    Examples
    --------
    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    for box in (first, second):
        require_type(box, Sequence | None, "box", "(top, left, bottom, right) or None")
    if first is None or second is None:
        return 0.0
    height = min(first[2], second[2]) - max(first[0], second[0])
    width = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0, height) * max(0, width)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0
