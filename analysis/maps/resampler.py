"""Maps over the reference of tokens that a resampler made of it: IP-Adapter Plus.

Its tokens (16) lie nowhere on the reference. Each is made of the reference's patches by a few layers of attention,
which a trace holds as the sites `encoder_hid_proj.image_projection_layers.N.layers.K.attn` (tokens x class token,
patches and the tokens themselves). The attention of the generated picture to a token is shared out over the patches
as the resampler shared out the token's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final, Literal

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.trace.key_segments import picture_keys
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.schemas import InputError, SiteClass
from attrace.schemas.checks import require_choice

Resampler = Literal["last", "rollout"] | None
"""How tokens are laid on the patches that a resampler made them of: by its last layer, or by all of them."""

KEPT: Final = 0.5
"""Share of a token that a layer of the rollout keeps from the layer before."""

_LAYER: Final = re.compile(r"(?:^|\.)encoder_hid_proj\.image_projection_layers\.(\d+)\.layers\.(\d+)\.")
_ADAPTER: Final = re.compile(r"\.to_k_ip\.(\d+)$")


def resampler_shares(trace: Trace, how: Literal["last", "rollout"] = "last", *, adapter: int = 0) -> xr.DataArray:
    """How the tokens of an IP-Adapter Plus are made of the patches of its picture.

    Parameters
    ----------
    trace
        A trace of the adapter and its resampler; its selected steps count, its selected layers and heads do not.
    how
        `last`: the attention of the last layer, averaged over its heads, to the patches. `rollout`: attention rollout
        through all layers, half of a token kept from layer to layer, R = (A over patches + A over tokens @ R') / 2 +
        R' / 2, from R = 0 before the first.
    adapter
        Number of the adapter, where there are several.

    Returns
    -------
    xarray.DataArray
        (time, token, row, column), lazy, float32 or float64. The sum over the patches is at most 1: what is missing
        went to the class token and, by `last`, to the tokens themselves; by `rollout`, to the tokens as they were
        before the first layer, which hold nothing of the picture. It is left out, and not shared out anew.

    Raises
    ------
    InputError
        If the trace has no resampler of that number, or `how` is unknown.

    Notes
    -----
    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", arXiv 2005.00928, for the rollout.
    """
    require_trace(trace)
    require_choice(how, ("last", "rollout"), "resampler")
    group, paths, grid = _layers_of(trace, adapter)
    whole = replace(trace.sel(context="image-prompt"), selected_paths=None, selected_heads=None)
    scores = whole.scores[group]["scores"].sel(layer=paths)
    attention = xr.apply_ufunc(
        _softmax,
        scores,
        input_core_dims=[["key"]],
        output_core_dims=[["key"]],
        dask="parallelized",
        output_dtypes=[scores.dtype],
    ).mean("head")
    patches = (scores["key_kind"] == "patch").values
    of_patches = attention.isel(key=patches).rename(query="token", key="patch")
    shares = of_patches.isel(layer=-1)
    if how == "rollout":
        of_tokens = attention.isel(key=slice(-attention.sizes["query"], None)).rename(query="token", key="source")
        shares = xr.zeros_like(shares)
        for layer in range(len(paths)):
            through = xr.dot(of_tokens.isel(layer=layer), shares.rename(token="source"), dim="source")
            shares = (1 - KEPT) * (of_patches.isel(layer=layer) + through) + KEPT * shares
    shares = shares.drop_vars([name for name in shares.coords if name not in ("time", "timestep")])
    unfolded = shares.transpose("time", "token", "patch").data.reshape(*shares.shape[:2], *grid)
    return xr.DataArray(
        unfolded,
        shares.coords,
        ("time", "token", "row", "column"),
        "resampler_shares",
        {
            "units": "1",
            "long_name": "share of each patch in each token",
            "source": trace.path,
            "how": how,
            "sources": scores.sizes["key"],
        },
    )


def adapters_of(selected: SelectedClass) -> dict[int, SelectedClass]:
    """The selected layers of a class that attend to tokens of an adapter, by the number of the adapter."""
    by_number: dict[int, list[int]] = {}
    for layer, path in zip(selected.layers, selected.paths, strict=True):
        found = _ADAPTER.search(path)
        if found is not None:
            by_number.setdefault(int(found[1]), []).append(layer)
    return {number: replace(selected, layers=tuple(layers)) for number, layers in by_number.items()}


def is_resampler(site_class: SiteClass) -> bool:
    """Whether its sites are layers of a resampler, whose queries are tokens and not generated patches."""
    return all(_LAYER.search(site.path) is not None for site in site_class.sites)


def has_resampler(trace: Trace, adapter: int) -> bool:
    """Whether the trace holds the resampler of an adapter."""
    return any(_number(site.path) == adapter for one in trace.manifest.classes for site in one.sites)


def laid_on_patches(marginal: da.Array, shares: xr.DataArray) -> da.Array:
    """Attention to tokens (time, layer, head, token) as attention to patches (time, layer, head, patch)."""
    of_tokens = xr.DataArray(marginal, dims=("time", "layer", "head", "token"))
    of_patches = shares.drop_vars(list(shares.coords)).stack(patch=("row", "column"), create_index=False)
    aligned = of_patches.chunk({"time": marginal.chunks[0], "token": -1, "patch": -1})
    laid: da.Array = xr.dot(of_tokens, aligned, dim="token").transpose("time", "layer", "head", "patch").data
    return laid


def _layers_of(trace: Trace, adapter: int) -> tuple[str, list[str], tuple[int, int]]:
    """Group, module paths in the order of the layers, and grid of the patches of a resampler."""
    for one in trace.manifest.classes:
        found = {path: _LAYER.search(path) for path in (site.path for site in one.sites)}
        paths = [path for path, match in found.items() if match is not None and int(match[1]) == adapter]
        picture = picture_keys(one)
        if paths and picture is not None and one.branch == trace.branch:
            return one.group, sorted(paths, key=lambda path: int(_LAYER.search(path)[2])), picture[1]  # type: ignore[index]
    raise InputError(
        f"trace {trace.path} has no resampler of adapter {adapter} (sites encoder_hid_proj.*): the adapter has none, "
        "or layers= left it out of the recording"
    )


def _number(path: str) -> int | None:
    found = _LAYER.search(path)
    return None if found is None else int(found[1])


def _softmax(scores: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: NDArray[Any] = powers / powers.sum(axis=-1, keepdims=True)
    return shares
