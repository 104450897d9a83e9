"""How near a generated picture is to the true one: PSNR and SSIM, in all and inside a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attrace.schemas import InputError


def psnr(picture: ArrayLike, truth: ArrayLike, *, mask: ArrayLike | None = None) -> float:
    """Peak signal-to-noise ratio of an 8-bit picture against the true one, in decibels; infinite where they are equal.

    Parameters
    ----------
    picture, truth
        uint8 (row, column) or (row, column, channel), of one shape.
    mask
        (row, column), bool: pixels that count; None for all.
    """
    values, true = _pictures(picture, truth)
    error = float(((values - true) ** 2)[_inside(mask, values.shape)].mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(picture: ArrayLike, truth: ArrayLike, *, mask: ArrayLike | None = None) -> float:
    """Structural similarity of an 8-bit picture and the true one: 1 where they are equal, -1 at worst.

    Parameters are those of `psnr`; it takes scikit-image (`pip install "attrace[quality]"`), with its 7 x 7 window.
    """
    try:
        from skimage.metrics import structural_similarity  # optional: only pictures with a truth need it
    except ModuleNotFoundError as error:
        raise InputError('SSIM needs scikit-image: pip install "attrace[quality]"') from error
    values, true = _pictures(picture, truth)
    if min(values.shape[:2]) < 7:
        raise InputError(f"SSIM needs pictures of at least 7 x 7 pixels, found {values.shape[0]} x {values.shape[1]}")
    channels = None if values.ndim == 2 else 2
    _, similarity = structural_similarity(values, true, channel_axis=channels, data_range=255, full=True)
    return float(similarity[_inside(mask, values.shape)].mean())


def _pictures(picture: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, true = np.asarray(picture), np.asarray(truth)
    if values.shape != true.shape or values.ndim not in (2, 3) or {values.dtype, true.dtype} != {np.dtype(np.uint8)}:
        raise InputError(
            "expected two uint8 pictures of one shape, (row, column) or (row, column, channel), found "
            f"{values.dtype} {values.shape} and {true.dtype} {true.shape}"
        )
    return values.astype(np.float64), true.astype(np.float64)


def _inside(mask: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    inside = np.ones(shape[:2], bool) if mask is None else np.asarray(mask)
    if inside.dtype != bool or inside.shape != shape[:2] or not inside.any():
        raise InputError(f"mask: expected a boolean mask of {shape[:2]} that selects something, found {inside.shape}")
    return inside
