"""Numbers of maps that help to decide; `docs/scores.md` says what each means and when it misleads."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Final, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.i2am import as_published
from attrace.analysis.maps.levels import require_map
from attrace.analysis.maps.masks import as_mask, coverage
from attrace.schemas import InputError
from attrace.schemas.checks import require_choice

GRID: Final = ("row", "column")

Variant = Literal["plain", "stableviton", "viton-step-1"]
"""Whose formula of IMACS."""


def imacs(
    attribution: xr.DataArray, mask: ArrayLike, *, penalty: float = 3.0, variant: Variant = "plain"
) -> xr.DataArray:
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
    variant
        `plain`, or as published code does it, for comparing with its numbers: `stableviton` and `viton-step-1` score
        the values of `as_published` at the resolution of the mask. `stableviton` inverts R2G: a perfect map scores -3,
        and a random G2R map near +0.42. `viton-step-1` sets scaled values up to 0.4 to 0 and inverts nothing.

    Returns
    -------
    xarray.DataArray
        (mean inside) - penalty * (mean outside) of the map scaled to [0, 1]; at best 1, at worst -penalty. Over the
        other dimensions of the map; one number for a map (row, column). NaN for a map that is constant, as it cannot
        be scaled, or has a NaN.

    Raises
    ------
    InputError
        If the map has no row and column, the mask leaves nothing inside or outside, or there is no such variant.

    Notes
    -----
    I2AM (arXiv 2407.12331).
    """
    require_map(attribution)
    require_choice(variant, get_args(Variant), "variant")
    values = as_mask(mask, "mask")
    if variant == "plain":
        covered = coverage(values, (attribution.sizes["row"], attribution.sizes["column"]))
        scaled = _scaled(attribution)
    else:
        covered = values
        scaled = as_published(attribution, code=variant, size=(values.shape[0], values.shape[1]), mask=values)
    if covered.min() > 1 - 1e-9:
        raise InputError("mask: it covers the whole map, so nothing is outside to compare with")
    inside = xr.DataArray(covered, dims=GRID)
    score = _weighted_mean(scaled, inside) - penalty * _weighted_mean(scaled, 1 - inside)
    return _named(score, "imacs", "1").assign_attrs(
        long_name="inpainting mask attention consistency score", penalty=penalty, variant=variant
    )


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
    require_map(maps)
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
    require_map(maps)
    if maps.sizes.get(dim, 0) < 2:
        raise InputError(f"drift needs two maps or more along {dim!r}, found the dims {dict(maps.sizes)}")
    moved = centre_of_mass(maps).diff(dim)
    return _named(xr.ufuncs.sqrt((moved**2).sum("axis", skipna=False)).mean(dim, skipna=False), "drift", "1")


def _scaled(attribution: xr.DataArray) -> xr.DataArray:
    """Each map scaled to [0, 1]; NaN where it is constant or has a NaN."""
    low = attribution.min(GRID, skipna=False)
    spread = attribution.max(GRID, skipna=False) - low
    return (attribution - low) / spread.where(spread > 0)


def _weighted_mean(values: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    return (values * weights).sum(GRID, skipna=False) / weights.sum()


def _shares(maps: xr.DataArray) -> xr.DataArray:
    """Each map as shares of its sum; NaN where that is 0 or a value is NaN."""
    require_map(maps)
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


def _named(values: Any, name: str, units: str) -> xr.DataArray:
    named: xr.DataArray = values.rename(name)
    return named.assign_attrs(units=units)
