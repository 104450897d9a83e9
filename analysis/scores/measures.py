"""Numbers from maps: how well a map keeps to a mask, and where its box lies."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.i2am import Compat, as_published
from attrace.analysis.trace.weights import as_mask, coverage
from attrace.schemas import InputError

GRID_DIMS: Final = ("row", "column")


def imacs(attribution: xr.DataArray, mask: ArrayLike, *, penalty: float = 3.0, compat: Compat = None) -> xr.DataArray:
    """Inpainting mask attention consistency score: how well a map keeps to a mask.

    Parameters
    ----------
    attribution
        (row, column), and any other dimensions, each of whose maps is scored by itself; lazy or not.
    mask
        (row, column) over the same picture, of any resolution: bool, or fractions in [0, 1]. It is laid over the
        cells of the map by area, and a cell counts as inside by how much of it is covered.
    penalty
        How much the mean outside weighs.
    compat
        `i2am`: as the published code does it, for comparing with its numbers: the values of `as_published`, at the
        resolution of the mask. For a perfect `r2g` map that is -3, for a random `g2r` map near +0.42. The direction is
        taken from the attributes of the map.

    Returns
    -------
    xarray.DataArray
        (mean inside) - penalty * (mean outside) of the map scaled to [0, 1]; at best 1, at worst -penalty. Over the
        other dimensions of the map; one number for a map (row, column). NaN for a map that is constant, as it cannot
        be scaled, or has a NaN.

    Raises
    ------
    InputError
        If the map has no row and column, or the mask leaves nothing inside or outside.

    Notes
    -----
    I2AM (arXiv 2407.12331).
    """
    _require_grid(attribution)
    if compat not in (None, "i2am"):
        raise InputError(f"compat: expected None or 'i2am', found {compat!r}")
    values = as_mask(mask, "mask")
    if compat == "i2am":
        covered = values
        scaled = as_published(attribution, size=(values.shape[0], values.shape[1]), mask=values)
    else:
        covered = coverage(values, (attribution.sizes["row"], attribution.sizes["column"]))
        scaled = _scaled(attribution)
    if covered.min() > 1 - 1e-9:
        raise InputError("mask: it covers the whole map, so nothing is outside to compare with")
    inside = xr.DataArray(covered, dims=GRID_DIMS)
    score = _weighted_mean(scaled, inside) - penalty * _weighted_mean(scaled, 1 - inside)
    return score.rename("imacs").assign_attrs(
        long_name="inpainting mask attention consistency score", units="1", penalty=penalty, compat=compat or "none"
    )


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

    values = _plain_map(attribution)
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


def iou(first: Box | tuple[int, int, int, int] | None, second: Box | tuple[int, int, int, int] | None) -> float:
    """Intersection over union of two boxes (top, left, bottom, right); 0 where one is None.

    Examples
    --------
    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    if first is None or second is None:
        return 0.0
    height = min(first[2], second[2]) - max(first[0], second[0])
    width = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0, height) * max(0, width)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def _scaled(attribution: xr.DataArray) -> xr.DataArray:
    """Each map scaled to [0, 1]; NaN where it is constant or has a NaN."""
    low = attribution.min(GRID_DIMS, skipna=False)
    spread = attribution.max(GRID_DIMS, skipna=False) - low
    return (attribution - low) / spread.where(spread > 0)


def _weighted_mean(values: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    return (values * weights).sum(GRID_DIMS, skipna=False) / weights.sum()


def _require_grid(attribution: xr.DataArray) -> None:
    if not set(GRID_DIMS) <= set(attribution.dims):
        raise InputError(f"expected a map with the dims row and column, found {attribution.dims}")


def _plain_map(attribution: xr.DataArray | ArrayLike) -> NDArray[Any]:
    values = np.asarray(attribution)
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"expected a map (row, column), found shape {values.shape}: select one first")
    if not np.isfinite(values).all():
        raise InputError("expected a finite map, found NaN or infinity")
    return values
