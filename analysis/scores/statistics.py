"""Numbers from maps and pictures that help to decide; `docs/scores.md` says what each means and when it misleads."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.trace.weights import as_mask, coverage
from attrace.schemas import InputError

GRID: Final = ("row", "column")


def mass(attribution: xr.DataArray, mask: ArrayLike) -> xr.DataArray:
    """Share of a map inside a mask, in [0, 1]; an even map has the share of the picture that the mask covers.

    Parameters
    ----------
    attribution
        (row, column) and any other dimensions, not negative; lazy or not.
    mask
        (row, column) over the same picture, of any resolution: bool, or fractions in [0, 1].

    Returns
    -------
    xarray.DataArray
        Over the other dimensions; NaN for a map that is zero or has a NaN.
    """
    shares = _shares(attribution)
    covered = coverage(as_mask(mask, "mask"), (attribution.sizes["row"], attribution.sizes["column"]))
    return _named((shares * xr.DataArray(covered, dims=GRID)).sum(GRID, skipna=False), "mass", "1")


def entropy(attribution: xr.DataArray) -> xr.DataArray:
    """Shannon entropy of a map as shares of its sum, in nats: 0 for one cell, log(cells) for an even map.

    `attribution` is (row, column) and any other dimensions, not negative, lazy or not; the result is over the others,
    NaN for a map that is zero or has a NaN.
    """
    shares = _shares(attribution)
    logarithms = xr.ufuncs.log(shares.where(shares > 0, 1))
    return _named(-(shares * logarithms).sum(GRID, skipna=False), "entropy", "nat")


def effective_tokens(attribution: xr.DataArray) -> xr.DataArray:
    """How many cells an even map of the same entropy has: exp(entropy), from 1 to the number of cells."""
    return _named(xr.ufuncs.exp(entropy(attribution)), "effective_tokens", "cells")


def agreement(maps: xr.DataArray, dim: str) -> xr.DataArray:
    """How alike the maps along a dimension are: the mean over all pairs of 1 - their Jensen-Shannon divergence.

    Parameters
    ----------
    maps
        (row, column), `dim` (such as head or layer) and any other dimensions, not negative; lazy or not.
    dim
        The dimension whose maps are compared; at least two.

    Returns
    -------
    xarray.DataArray
        Over the other dimensions: 1 where all maps are equal, 0 where no two share a cell; NaN where a map is zero or
        has a NaN. The divergence is in bits (Lin, Divergence measures based on the Shannon entropy, 1991).

    Raises
    ------
    InputError
        If there is no such dimension, or it has fewer than two maps.
    """
    if maps.sizes.get(dim, 0) < 2:
        raise InputError(f"agreement needs two maps or more along {dim!r}, found the dims {dict(maps.sizes)}")
    result = xr.apply_ufunc(
        _mean_agreement,
        _shares(maps),
        input_core_dims=[[dim, *GRID]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"allow_rechunk": True},
    )
    return _named(result, "agreement", "1")


def centre_of_mass(attribution: xr.DataArray) -> xr.DataArray:
    """Centre of a map, (axis, ...) with `axis` row and column, as a share of the picture's height and width."""
    shares = _shares(attribution)
    places = {dim: xr.DataArray((np.arange(shares.sizes[dim]) + 0.5) / shares.sizes[dim], dims=dim) for dim in GRID}
    centres = [(shares * places[dim]).sum(GRID, skipna=False) for dim in GRID]
    return _named(xr.concat(centres, xr.Variable("axis", list(GRID))), "centre_of_mass", "1")


def drift(maps: xr.DataArray, dim: str = "time_group") -> xr.DataArray:
    """How far the centre of a map moves from one map along `dim` to the next, on average.

    0 where it stands still, at most the square root of 2; distances are in shares of the picture's height and width.

    Raises
    ------
    InputError
        If there are fewer than two maps along `dim`.
    """
    if maps.sizes.get(dim, 0) < 2:
        raise InputError(f"drift needs two maps or more along {dim!r}, found the dims {dict(maps.sizes)}")
    moved = centre_of_mass(maps).diff(dim)
    return _named(xr.ufuncs.sqrt((moved**2).sum("axis", skipna=False)).mean(dim, skipna=False), "drift", "1")


def correspondence_error(found: xr.DataArray, truth: ArrayLike) -> xr.DataArray:
    """Median distance between where each patch looks most and where it comes from, in cells of the key grid.

    Parameters
    ----------
    found
        (layer, query_row, query_column, axis): the result of `correspondence`.
    truth
        (query_row, query_column, axis): true row and column, in cells of the key grid as in `found`; NaN where there
        is none, which is left out.

    Returns
    -------
    xarray.DataArray
        (layer): 0 at best.

    Raises
    ------
    InputError
        If the truth has another shape.
    """
    dims = ("query_row", "query_column", "axis")
    values = np.asarray(truth, np.float64)
    expected = tuple(found.sizes[dim] for dim in dims)
    if values.shape != expected:
        raise InputError(
            f"truth: expected the shape {expected} of (query_row, query_column, axis), found {values.shape}"
        )
    distances = xr.ufuncs.sqrt(((found - xr.DataArray(values, dims=dims)) ** 2).sum("axis", skipna=False))
    return _named(
        distances.chunk(query_row=-1, query_column=-1).median(dims[:2], skipna=True), "correspondence_error", "cells"
    )


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


def _shares(maps: xr.DataArray) -> xr.DataArray:
    """Each map as shares of its sum; NaN where that is 0 or a value is NaN."""
    if not set(GRID) <= set(maps.dims):
        raise InputError(f"expected a map with the dims row and column, found {maps.dims}")
    total = maps.astype(np.float64).sum(GRID, skipna=False)
    return maps / total.where(total > 0)


def _mean_agreement(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = shares.reshape(*shares.shape[:-2], -1)
    own = _bits(flat)
    pairs = list(combinations(range(flat.shape[-2]), 2))
    divergences = [
        _bits((flat[..., one, :] + flat[..., two, :]) / 2) - (own[..., one] + own[..., two]) / 2 for one, two in pairs
    ]
    return 1 - np.asarray(sum(divergences)) / len(pairs)


def _bits(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy along the cells, in bits."""
    logarithms = np.log2(np.where(shares > 0, shares, 1))
    bits: NDArray[np.float64] = -(shares * logarithms).sum(axis=-1)
    return bits


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


def _named(values: Any, name: str, units: str) -> xr.DataArray:
    named: xr.DataArray = values.rename(name)
    return named.assign_attrs(units=units)
