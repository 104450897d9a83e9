"""Weights of layers and heads in the mean of a map: their measured effects, a file, or numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from attrace.analysis.trace.derived import read_effects
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError
from attrace.schemas.layers import find_layers
from attrace.schemas.layout import EFFECT

LayerWeights = str | PathLike[str] | Mapping[Any, Any] | xr.DataArray | None
"""Weights of layers: None for equal ones, `effect` for the effects that the trace holds, a file of them, or numbers by
layer, or by (layer, head)."""

GIVEN: Final = "given numbers"
"""What weights are called that come from no file."""


def read_weights(weights: LayerWeights) -> LayerWeights:
    """Weights whose file, if they are in one, was read: None, `effect`, or numbers (layer[, head]).

    Raises
    ------
    InputError
        If the file holds none, or the numbers are not by layer, negative or not finite.
    """
    if weights is None or (isinstance(weights, str) and weights == EFFECT):
        return weights
    if isinstance(weights, str | PathLike):
        found = _checked(_read_file(Path(weights)), str(weights))
        return found.rename(Path(weights).name)
    if isinstance(weights, Mapping):
        return _checked(_of_mapping(weights), "weights").rename(GIVEN).assign_attrs(every_label=True)
    if not isinstance(weights, xr.DataArray):
        raise InputError(
            "weights: expected 'effect', a file, numbers by layer, or a DataArray (layer[, head]), found "
            f"{type(weights).__name__}"
        )
    found = _checked(weights, "weights")
    return found if found.name else found.rename(GIVEN)


def weights_of(trace: Trace, weights: LayerWeights, classes: Sequence[SelectedClass]) -> xr.DataArray | None:
    """Weights of the layers and heads of some classes.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    weights
        As for `attribution_map`.
    classes
        Selected classes of the trace that are averaged.

    Returns
    -------
    xarray.DataArray
        float64 (layer, head), named by where they come from; NaN for a head that a layer does not have. Where numbers
        are by layer, the attribute `by_head` is False and the heads of a layer share its number evenly. None where all
        pairs of layer and head weigh alike.

    Raises
    ------
    InputError
        If a layer or head has no weight, or all have the weight 0.
    """
    if weights is None:
        return None
    found = by_layer(trace, weights, [path for one in classes for path in one.paths])
    name = str(found.name)
    of_classes = [_of_class(one, found.sel(layer=list(one.paths)), name) for one in classes]
    pairs: xr.DataArray = xr.concat(of_classes, "layer", join="outer")
    if not (pairs > 0).any():
        raise InputError(f"weights: all selected layers and heads have the weight 0 in {name}")
    return pairs.rename(name).assign_attrs(by_head="head" in found.dims)


def by_layer(trace: Trace, weights: LayerWeights, layers: Sequence[str]) -> xr.DataArray:
    """Weights of some layers of a trace, by module path, as they are given: (layer[, head]).

    Raises
    ------
    InputError
        If there are none, a layer has none, or they are effects of another context.
    """
    read = read_weights(weights)
    given = read_effects(trace) if isinstance(read, str) else read
    if not isinstance(given, xr.DataArray):
        raise InputError("weights: expected 'effect', a file or numbers by layer, found None")
    context = given.attrs.get("context", trace.context)
    if context != trace.context:
        raise InputError(
            f"weights: {given.name} are effects of the context {context!r}, the selected one is {trace.context!r}: "
            "measure them for it, or pass numbers by layer"
        )
    return given.isel(layer=_positions(trace, given, str(given.name), layers)).assign_coords(layer=list(layers))


def weighted_mean(maps: xr.DataArray, dims: set[str], weights: xr.DataArray) -> xr.DataArray:
    """Mean of maps over some dims, weighted as `weights_of` says; NaN where nothing that has a weight was called.

    `maps` are (time_group, layer, head, row, column), NaN where nothing was called.
    """
    of_maps = weights.reindex(layer=maps["layer"], head=maps["head"]).fillna(0)
    averaged: xr.DataArray = maps.weighted(of_maps).mean(dims, skipna=True)
    return averaged.astype(maps.dtype)


def weights_of_layers(weights: xr.DataArray) -> xr.DataArray:
    """Weights as `weights_of` gives them for maps that have all heads together: (layer, head), of one head, 0."""
    together = weights.sum("head", keep_attrs=True).expand_dims(head=[0], axis=1)
    return together.assign_attrs(by_head=False)


def _positions(trace: Trace, given: xr.DataArray, name: str, layers: Sequence[str]) -> list[int]:
    """Where the weight of each layer is among those given; a later label goes before an earlier one."""
    known = replace(trace, selected_paths=None).layers
    labels = [str(label) for label in given["layer"].values.tolist()]
    found: dict[str, int] = {}
    for position, label in enumerate(labels):
        named = find_layers(label, known)
        if not named and given.attrs.get("every_label"):
            raise InputError(f"weights: trace {trace.path} has no layer {label!r}; it has {', '.join(known)}")
        found |= dict.fromkeys(named, position)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        raise InputError(f"weights: {name} has no weight of layer {', '.join(missing)}; it has {', '.join(labels)}")
    return [found[layer] for layer in layers]


def _of_class(one: SelectedClass, numbers: xr.DataArray, name: str) -> xr.DataArray:
    """Weights of a class: (layer, head); a number must be there for each head, or is shared by the heads of a layer."""
    if "head" not in numbers.dims:
        return (numbers / len(one.heads)).expand_dims(head=list(one.heads), axis=1)
    of_heads = numbers.reindex(head=list(one.heads))
    for pair in np.argwhere(np.isnan(of_heads.values)).tolist():
        layer, head = one.paths[pair[0]], one.heads[pair[1]]
        raise InputError(f"weights: {name} has no weight of head {head} of layer {layer}")
    return of_heads


def _checked(values: xr.DataArray, where: str) -> xr.DataArray:
    """Weights as float64 by label, none negative or infinite."""
    if values.dims not in (("layer",), ("layer", "head")) or any(dim not in values.coords for dim in values.dims):
        raise InputError(f"{where}: expected numbers (layer) or (layer, head) with labels, found dims {values.dims}")
    if values.dtype.kind not in "iuf":
        raise InputError(f"{where}: expected numbers, found {values.dtype}")
    bad = (values < 0) | np.isinf(values) | (values.isnull().all("head") if "head" in values.dims else values.isnull())
    if bool(bad.any()):
        layer = values["layer"].values[np.flatnonzero(bad.any("head") if "head" in values.dims else bad)[0]]
        raise InputError(f"{where}: expected weights of at least 0, found another one at layer {layer}")
    return values.astype(np.float64)


def _read_file(path: Path) -> xr.DataArray:
    """Numbers in a JSON object by layer, or the variable `effect` of a netCDF file as `attrace ablate` writes it."""
    if not path.exists():
        raise InputError(f"weights: there is no file {path}: give 'effect', or a file that attrace ablate wrote")
    if path.suffix == ".json":
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: expected a JSON object of numbers by layer: {error}") from error
        if not isinstance(given, dict):
            raise InputError(f"{path}: expected a JSON object of numbers by layer, found {type(given).__name__}")
        return _of_mapping(given)
    try:
        dataset = xr.load_dataset(path)
    # readers of netCDF raise nearly anything on a file that is none: type, value and index errors among them
    except Exception as error:
        raise InputError(
            f"{path}: expected a file that attrace ablate wrote, or a .json of numbers by layer"
        ) from error
    if EFFECT not in dataset:
        raise InputError(f"{path}: expected a variable {EFFECT!r}, found {', '.join(map(str, dataset)) or 'none'}")
    return dataset[EFFECT].reset_coords(drop=True)


def _of_mapping(given: Mapping[Any, Any]) -> xr.DataArray:
    """Numbers by layer, lists of them by layer (one for each head), or numbers by (layer, head)."""
    by_layer: dict[str, dict[int, Any]] = {}
    for key, number in given.items():
        layer, head = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
        if not isinstance(layer, str):
            raise InputError(f"weights: expected a layer or (layer, head) for each number, found {key!r}")
        if head is None and isinstance(number, Sequence) and not isinstance(number, str):
            by_layer.setdefault(layer, {}).update(enumerate(number))
        else:
            by_layer.setdefault(layer, {})[-1 if head is None else int(head)] = number
    heads = sorted({head for numbers in by_layer.values() for head in numbers})
    if not heads or (-1 in heads and len(heads) > 1):
        raise InputError("weights: expected numbers by layer, or for every layer by head; found " + repr(dict(given)))
    try:
        values = np.array([[numbers.get(head, np.nan) for head in heads] for numbers in by_layer.values()], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"weights: expected numbers, found {dict(given)!r}") from error
    found = xr.DataArray(values, {"layer": list(by_layer), "head": heads}, ("layer", "head"))
    return found.isel(head=0, drop=True) if heads == [-1] else found
