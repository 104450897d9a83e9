"""Pictures under heat: the picture in grey, so that colour means heat and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap
from numpy.typing import NDArray

from attrace.schemas import InputError

GREY_RANGE: Final = (0.12, 0.92)
"""Grey of black and of white in a picture under heat: the ends of the colours stay visible over both."""

NO_VALUE: Final = 0.5
"""Grey of cells without a value where there is no picture."""

SHORTEST_SIDE: Final = 256
"""Pixels that a drawn panel has at least along its shorter side: small pictures are repeated, never blurred."""


@dataclass(frozen=True)
class Paint:
    """How heat is laid over a picture."""

    colours: str = "inferno"
    """A perceptually uniform colour map of matplotlib: dark where little happens."""
    opacity: tuple[float, float] = (0.45, 0.85)
    """Of the heat at the low and at the high end of the colours: the picture shows where little happens."""
    smooth: bool = False
    """Interpolate between the cells of the grid (bilinear); else each cell is one block, as it was recorded."""

    @property
    def map(self) -> Colormap:
        """The colours without a picture."""
        return colormaps[self.colours]

    def over_grey(self, grey: float) -> Colormap:
        """The colours as they look over one grey: those of the colour bar."""
        return ListedColormap(self.mixed(np.linspace(0, 1, 256), np.full((256, 1), grey)))

    def mixed(self, share: NDArray[np.float64], grey: NDArray[np.float64]) -> NDArray[np.float64]:
        """The colours of shares of the scale over greys that have one more dimension, of length 1."""
        low, high = self.opacity
        opacity = (low + (high - low) * share)[..., None]
        mixed: NDArray[np.float64] = opacity * self.map(share)[..., :3] + (1 - opacity) * grey
        return mixed


def as_rgb(picture: Any, name: str) -> NDArray[np.float64]:
    """A picture as float64 (row, column, 3) in [0, 1]; greyscale is spread, an alpha channel dropped.

    Parameters
    ----------
    picture
        uint8, bool, or float in [0, 1], (row, column) or (row, column, channel): an array, a DataArray, a PIL image.
    name
        What it is, for messages.

    Raises
    ------
    InputError
        If it has another shape or other values.
    """
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            f"{name}: expected a picture (row, column) or (row, column, channel) with 1, 3 or 4 channels, found shape "
            f"{np.shape(picture)}"
        )
    scaled = array.astype(np.float64) / (255 if array.dtype == np.uint8 else 1)
    if not (np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1):
        raise InputError(f"{name}: expected uint8 pixels or floats in [0, 1], found {array.dtype} outside of it")
    return np.broadcast_to(scaled[..., :3], (*array.shape[:2], 3)) if array.shape[2] != 4 else scaled[..., :3]


def reduced(rgb: NDArray[np.float64], shortest: int) -> NDArray[np.float64]:
    """A picture made smaller by a whole factor, each block of pixels averaged, until its shorter side is about that."""
    rows, columns = rgb.shape[:2]
    factor = round(min(rows, columns) / shortest)
    if factor < 2:
        return rgb
    whole = rgb[: rows // factor * factor, : columns // factor * factor]
    blocks = whole.reshape(rows // factor, factor, columns // factor, factor, 3)
    smaller: NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return smaller


def as_grey(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """The luminance (ITU-R BT.709) of a picture, squeezed into `GREY_RANGE`: (row, column)."""
    low, high = GREY_RANGE
    luminance: NDArray[np.float64] = rgb @ np.array([0.2126, 0.7152, 0.0722])
    return low + (high - low) * luminance


def blend(
    share: NDArray[np.float64], rgb: NDArray[np.float64] | None, paint: Paint, size: tuple[int, int]
) -> NDArray[np.float64]:
    """Heat over a picture, as pixels.

    Parameters
    ----------
    share
        Heat on the colour scale, 0 to 1: (row, column). NaN is drawn without heat.
    rgb
        The picture below, of any size: (row, column, 3); None for the bare colours.
    paint
        How.
    size
        Rows and columns of the result.

    Returns
    -------
    ndarray
        float64 (row, column, 3) in [0, 1].
    """
    heat = resampled(share, size, smooth=paint.smooth)
    known = np.isfinite(heat)[..., None]
    heat = np.nan_to_num(heat)
    if rgb is None:
        return np.where(known, paint.map(heat)[..., :3], NO_VALUE)
    grey = resampled(as_grey(rgb), size, smooth=False)[..., None]
    return np.where(known, paint.mixed(heat, grey), grey)


def resampled(values: NDArray[np.float64], size: tuple[int, int], *, smooth: bool) -> NDArray[np.float64]:
    """Values on another grid over the same rectangle: nearest, or bilinear with half-pixel centres."""
    for axis, length in enumerate(size):
        values = _resampled_along(values, axis, length, smooth)
    return values


def canvas_size(rgb: NDArray[np.float64] | None, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns to draw a panel with: a whole multiple of the picture's, or of the grid's without a picture."""
    rows, columns = grid if rgb is None else rgb.shape[:2]
    factor = -(-SHORTEST_SIDE // min(rows, columns))
    return rows * factor, columns * factor


def _resampled_along(values: NDArray[np.float64], axis: int, length: int, smooth: bool) -> NDArray[np.float64]:
    """Values at other places along one axis."""
    count = values.shape[axis]
    centres = (np.arange(length) + 0.5) * count / length
    if not smooth:
        nearest: NDArray[np.float64] = np.take(values, np.minimum(centres.astype(int), count - 1), axis)
        return nearest
    place = np.clip(centres - 0.5, 0, count - 1)
    below = np.minimum(place.astype(int), max(count - 2, 0))
    above = np.minimum(below + 1, count - 1)
    weight = (place - below).reshape([-1 if dim == axis else 1 for dim in range(values.ndim)])
    between: NDArray[np.float64] = (1 - weight) * np.take(values, below, axis) + weight * np.take(values, above, axis)
    return between
