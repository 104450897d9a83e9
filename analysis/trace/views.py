"""The arrays of a trace as lazy, labelled xarray objects."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from attrace.analysis.kernels.values import Scores
from attrace.analysis.storage.stored_array import StoredArray
from attrace.analysis.trace.blocks import array_of_blocks, split
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.source import ClassSource
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError, SiteClass, class_arrays
from attrace.schemas.layout import (
    CALLED,
    IMAGES,
    KEY_STEP,
    LONG_NAMES,
    OUTPUT,
    SCORES,
    SCORES_DIMS,
    coordinate_values,
)

BLOCK_BYTES: Final = 2**26
"""Largest block of recomputed scores, in bytes."""


def time_coordinates(trace: Trace) -> dict[str, Any]:
    """`time` (call number) and `timestep` of the selected steps; the place of each one's tile where there are tiles."""
    return {"time": ("time", trace.time), "timestep": ("time", trace.timesteps)} | _tile_coordinates(trace)


def _tile_coordinates(trace: Trace) -> dict[str, Any]:
    """`tile_row` and `tile_column`, int32 in cells of the latent, -1 where a step has none."""
    tiles = trace.manifest.capture.get("tiles")
    if not isinstance(tiles, dict):
        return {}
    places = [tiles.get(str(call)) for call in trace.time.tolist()]
    found = [place if _is_place(place) else (-1, -1) for place in places]
    rows, columns = np.array(found, np.int32).reshape(-1, 2).T
    return {"tile_row": ("time", rows), "tile_column": ("time", columns)}


def _is_place(place: object) -> bool:
    limits = np.iinfo(np.int32)
    return (
        isinstance(place, list)
        and len(place) == 2
        and all(type(one) is int and limits.min <= one <= limits.max for one in place)
    )


def class_coordinates(trace: Trace, selected: SelectedClass) -> dict[str, Any]:
    """Coordinates along time, layer and head of a selected class."""
    return time_coordinates(trace) | {
        "layer": ("layer", np.array(selected.paths, dtype=np.str_)),
        "head": ("head", np.array(selected.heads, dtype=np.int32)),
    }


def query_coordinates(site_class: SiteClass) -> dict[str, Any]:
    """Row and column of every query, where they lie on a grid."""
    values = coordinate_values(site_class)
    return {name: ("query", values[name]) for name in ("query_row", "query_column") if name in values}


def key_coordinates(site_class: SiteClass) -> dict[str, Any]:
    """Kind of every key; row and column (-1 off the grid) where some lie on a grid; token where keys are text."""
    segments = site_class.key_segments
    kinds = np.repeat([segment.kind for segment in segments], [segment.count for segment in segments])
    coordinates: dict[str, Any] = {"key_kind": ("key", kinds)}
    values = coordinate_values(site_class)
    coordinates |= {name: ("key", values[name]) for name in ("key_row", "key_column") if name in values}
    if site_class.tokens is not None:
        coordinates["token"] = ("key", np.array(site_class.tokens, dtype=np.str_))
    return coordinates


def scores_tree(trace: Trace) -> xr.DataTree:
    """The scores of every selected class, lazily."""
    return class_tree(trace, {one.group: _scores_dataset(trace, one) for one in trace.classes})


def stored_tree(trace: Trace) -> xr.DataTree:
    """The stored arrays of every selected class, lazily; images beside them are left to `Trace.images`."""
    return class_tree(trace, {one.group: _stored_dataset(trace, one) for one in trace.classes})


def class_tree(trace: Trace, datasets: Mapping[str, xr.Dataset]) -> xr.DataTree:
    """A tree of one dataset a class group, below a root that holds the time coordinates."""
    root = xr.Dataset(coords=time_coordinates(trace), attrs={"trace": trace.path, "id": trace.manifest.id})
    return xr.DataTree.from_dict({"/": root, **datasets})


def require_steps(trace: Trace) -> None:
    """Refuse a trace of which no step is selected.

    Raises
    ------
    InputError
        If it has no finished step.
    """
    if trace.steps == 0:
        raise InputError(
            f"trace {trace.path} has no finished step, so it has no scores: its recording is under way, or ended "
            "before the first step was written"
        )


def image_array(trace: Trace, name: str) -> xr.DataArray:
    """One picture of a trace, lazily."""
    stored = trace.stored.array(f"{IMAGES}/{name}")
    chunks = tuple((length,) for length in stored.shape)
    array = array_of_blocks(partial(_whole, stored), f"image-{tokenize(trace, name)}", chunks, stored.dtype)
    dims = ("row", "column", "channel")[: len(stored.shape)]
    attributes = {"long_name": f"{name} picture", "units": "1", "source": trace.path}
    return xr.DataArray(array, dims=dims, name=name, attrs=attributes)


def _whole(array: StoredArray, _: tuple[int, ...]) -> NDArray[Any]:
    return array[...]


def _scores_dataset(trace: Trace, selected: SelectedClass) -> xr.Dataset:
    attributes = {"long_name": LONG_NAMES[SCORES], "units": "1"}
    variables = {SCORES: (SCORES_DIMS, _scores(trace, selected), attributes)}
    return _class_dataset(trace, selected, variables)


def _stored_dataset(trace: Trace, selected: SelectedClass) -> xr.Dataset:
    source = ClassSource.of(trace.stored, selected.site_class)
    specs = {spec.name: spec for spec in class_arrays(selected.site_class, 0)}
    variables = {}
    for name in source.arrays.keys() - {KEY_STEP, CALLED}:
        spec = specs[name]
        if name == OUTPUT:
            variables[name] = (spec.dims, _stored_output(trace, selected, source.arrays[name]), spec.attributes)
            continue
        heads = selected.heads if "head" in spec.dims else None
        variables[name] = (spec.dims, _stored(trace, selected, source, name, heads), spec.attributes)
    return _class_dataset(trace, selected, variables)


def _class_dataset(trace: Trace, selected: SelectedClass, variables: Mapping[str, Any]) -> xr.Dataset:
    """The dataset of a class, labelled."""
    site_class = selected.site_class
    coordinates = class_coordinates(trace, selected) | query_coordinates(site_class) | key_coordinates(site_class)
    attributes = {
        "source": trace.path,
        "context": site_class.context,
        "branch": site_class.branch,
        "encoding": site_class.encoding,
        "scale": site_class.scale,
    }
    return xr.Dataset(variables, coordinates, attributes)


def _scores(trace: Trace, selected: SelectedClass) -> da.Array:
    """The scores of a class: a block is one (step, layer), and as many heads or queries as `BLOCK_BYTES` holds."""
    require_steps(trace)
    site_class = selected.site_class
    dtype = np.result_type(site_class.dtype, np.float32)
    rows = max(1, BLOCK_BYTES // (dtype.itemsize * site_class.keys))
    heads = split(selected.heads, max(1, rows // site_class.queries))
    queries = split(tuple(range(site_class.queries)), rows)
    source = ClassSource.of(trace.stored, site_class)
    make = partial(_scores_block, source, trace.selected_steps, selected.layers, heads, queries)
    inner = tuple(map(len, heads)), tuple(map(len, queries)), (site_class.keys,)
    return array_of_blocks(
        make, f"scores-{tokenize(trace, selected.group)}", (*_one_by_one(trace, selected), *inner), dtype
    )


def _scores_block(
    source: ClassSource,
    steps: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[tuple[int, ...], ...],
    queries: tuple[tuple[int, ...], ...],
    block: tuple[int, ...],
) -> NDArray[Any]:
    """One block of scores: (time, layer, head, query, key); NaN in a gap."""
    step, layer, chosen, rows = steps[block[0]], layers[block[1]], list(heads[block[2]]), queries[block[3]]
    site_class = source.site_class
    dtype = np.result_type(site_class.dtype, np.float32)
    (values,) = source.read([step], layer)
    if values is None:
        return np.full((1, 1, len(chosen), len(rows), site_class.keys), np.nan, dtype)
    query = slice(rows[0], rows[-1] + 1)
    if isinstance(values, Scores):
        return values.scores[chosen, query].astype(dtype)[None, None]
    keys = values.key[chosen].astype(dtype)
    scores: NDArray[Any] = values.query[chosen, query].astype(dtype) @ keys.swapaxes(1, 2)
    scores *= values.scale
    if values.bias is not None:
        scores += values.bias
    return scores[None, None]


def _stored(
    trace: Trace, selected: SelectedClass, source: ClassSource, name: str, heads: tuple[int, ...] | None
) -> da.Array:
    """A stored array of a class, each (step, layer) a block; `heads` is None where it has none."""
    require_steps(trace)
    stored = source.arrays[name]
    inner = stored.shape[2:] if heads is None else (len(heads), *stored.shape[3:])
    make = partial(_stored_block, source, name, trace.selected_steps, selected.layers, heads)
    chunks = (*_one_by_one(trace, selected), *((length,) for length in inner))
    return array_of_blocks(make, f"stored-{tokenize(trace, selected.group, name)}", chunks, stored.dtype)


def _stored_block(
    source: ClassSource,
    name: str,
    steps: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...] | None,
    block: tuple[int, ...],
) -> NDArray[Any]:
    """One (step, layer) of a stored array; a key stands in every step that uses it, and is NaN in a gap."""
    array = source.arrays[name]
    stored = source.stored(name, steps[block[0]], layers[block[1]])
    values = np.full(array.shape[2:], np.nan, array.dtype) if stored is None else stored
    return (values if heads is None else values[list(heads)])[None, None]


def _stored_output(trace: Trace, selected: SelectedClass, stored: StoredArray) -> da.Array:
    """The weights of the output projections of a class, each layer a block: (layer, head, feature, channel)."""
    chunks = ((1,) * len(selected.layers), (len(selected.heads),), *((length,) for length in stored.shape[2:]))
    make = partial(_output_block, stored, selected)
    return array_of_blocks(make, f"stored-{tokenize(trace, selected.group, OUTPUT)}", chunks, stored.dtype)


def _output_block(stored: StoredArray, selected: SelectedClass, block: tuple[int, ...]) -> NDArray[Any]:
    return stored[selected.layers[block[0]]][list(selected.heads)][None]


def _one_by_one(trace: Trace, selected: SelectedClass) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths of blocks along time and layer."""
    return (1,) * trace.steps, (1,) * len(selected.layers)
