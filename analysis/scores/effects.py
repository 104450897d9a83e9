"""The effect of each layer or head on the generated picture, from what changed without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.schemas import InputError
from attrace.schemas.layout import EFFECT

if TYPE_CHECKING:
    import xarray as xr


def effects(changes: xr.Dataset, *, seed: int = 0) -> xr.Dataset:
    """Effects of layers or heads, with intervals over the inputs.

    Parameters
    ----------
    changes
        As `attrace.ablate` gives them.
    seed
        Of the bootstrap.

    Returns
    -------
    xarray.Dataset
        The changes, with `effect` (layer[, head]): the mean over the inputs of the absolute change, inside the mask
        where every input has one, else of the whole picture, as the attribute `region` says; and `effect_interval`
        (bound, layer[, head]): its 95 % bootstrap interval, NaN for one input. `effects(changes).effect` can be passed
        as `weights=`, and so can the name of a netCDF file that this is written to
        (`to_netcdf(path, engine="scipy")`).

    Raises
    ------
    InputError
        If there are no changes in it.
    """
    if "absolute" not in changes or not {"input", "region", "layer"} <= set(changes["absolute"].dims):
        raise InputError("expected the changes of pictures that attrace.ablate measured")
    of_regions = changes["absolute"]
    masked = bool(of_regions.sel(region="inside").notnull().any(of_regions.dims[2:]).all())
    region = "inside" if masked else "whole"
    chosen = of_regions.sel(region=region, drop=True)
    mean = chosen.mean("input").assign_attrs(long_name="change of the picture without it", units="1", region=region)
    mean = mean.assign_attrs(context=changes.attrs["context"])
    bounds = bootstrap_interval(chosen.values if chosen.sizes["input"] > 1 else chosen.values * np.nan, seed=seed)
    found = changes.assign({EFFECT: mean, f"{EFFECT}_interval": (("bound", *mean.dims), bounds)})
    found = found.assign_coords(bound=["low", "high"])
    return found.assign_attrs(region=region, seed=seed)
