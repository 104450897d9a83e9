"""The arrays of a trace as lazy, labelled xarray objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from attrace.analysis.kernels.values import Scores, SiteValues
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.source import ClassSource
from attrace.analysis.trace.trace import Trace
from attrace.schemas import SiteClass
from attrace.schemas.layout import IMAGES, KEY_DIMS, QUERY_DIMS, SCORES_DIMS, coordinate_values

BLOCK_BYTES: Final = 2**26
"""Largest block of recomputed scores, in bytes."""

_ATTRIBUTES: Final[Mapping[str, dict[str, str]]] = {
    "scores": {"long_name": "attention score before any softmax", "units": "1"},
    "query_vector": {"long_name": "query, after norm and rotary embedding", "units": "1"},
    "key_vector": {"long_name": "key, after norm and rotary embedding", "units": "1"},
    "bias": {"long_name": "additive mask over the keys", "units": "1"},
    "lse": {"long_name": "log of the sum of exp(score) over all keys", "units": "1"},
}


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


def image_array(trace: Trace, name: str) -> xr.DataArray:
    """One picture of a trace, lazily."""
    stored = trace.stored.array(f"{IMAGES}/{name}")
    dims = ("row", "column", "channel")[: len(stored.shape)]
    attributes = {"long_name": f"{name} picture", "units": "1", "source": trace.path}
    return xr.DataArray(_lazy(stored, stored.shape, trace, name), dims=dims, name=name, attrs=attributes)


def _scores_dataset(trace: Trace, selected: SelectedClass) -> xr.Dataset:
    site_class = selected.site_class
    coordinates = class_coordinates(trace, selected) | query_coordinates(site_class) | key_coordinates(site_class)
    lazy = _SelectedScores(ClassSource.of(trace.stored, site_class), trace.step_places, selected.layers, selected.heads)
    variables = {
        "scores": (SCORES_DIMS, _lazy(lazy, _scores_blocks(lazy), trace, selected.group), _ATTRIBUTES["scores"])
    }
    return xr.Dataset(variables, coordinates, _class_attributes(trace, site_class))


def _stored_dataset(trace: Trace, selected: SelectedClass) -> xr.Dataset:
    site_class = selected.site_class
    source = ClassSource.of(trace.stored, site_class)
    dims = {
        "scores": SCORES_DIMS,
        "query": QUERY_DIMS,
        "key": KEY_DIMS,
        "bias": ("time", "layer", "key"),
        "lse": ("time", "layer", "head", "query"),
    }
    variables = {}
    for name in source.arrays.keys() & dims.keys():
        label = {"query": "query_vector", "key": "key_vector"}.get(name, name)
        heads = selected.heads if "head" in dims[name] else ()
        lazy = _SelectedArray(source, name, trace.step_places, selected.layers, heads)
        blocks = (1, 1, *lazy.shape[2:])
        variables[label] = (dims[name], _lazy(lazy, blocks, trace, selected.group, name), _ATTRIBUTES[label])
    coordinates = class_coordinates(trace, selected) | query_coordinates(site_class) | key_coordinates(site_class)
    return xr.Dataset(variables, coordinates, _class_attributes(trace, site_class))


def _class_attributes(trace: Trace, site_class: SiteClass) -> dict[str, Any]:
    return {
        "source": trace.path,
        "context": site_class.context,
        "branch": site_class.branch,
        "encoding": site_class.encoding,
        "scale": site_class.scale,
    }


@dataclass(frozen=True)
class _SelectedScores:
    """Scores of a selected class as something to index: (time, layer, head, query, key)."""

    source: ClassSource
    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        site_class = self.source.site_class
        return len(self.steps), len(self.layers), len(self.heads), site_class.queries, site_class.keys

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(self.source.site_class.dtype, np.float32)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        time, layer, head, query, key = _as_slices(index, self.shape)
        layers, heads = self.layers[layer], list(self.heads[head])
        parts = [
            [
                _score_block(values, heads, query, key, self.dtype)
                if values is not None
                else np.full(_block_shape(self.shape, (head, query, key)), np.nan, self.dtype)
                for values in self.source.read(self.steps[time], stored)
            ]
            for stored in layers
        ]
        block = np.array(parts, dtype=self.dtype).swapaxes(0, 1)
        selected: NDArray[Any] = block[_without_slices(index)]
        return selected


@dataclass(frozen=True)
class _SelectedArray:
    """A stored data array of a selected class as something to index; each key stands in every step that uses it."""

    source: ClassSource
    name: str
    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    """Empty where the array has no heads."""

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.source.arrays[self.name].shape
        inner = (len(self.heads), *stored[3:]) if self.heads else stored[2:]
        return len(self.steps), len(self.layers), *inner

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.arrays[self.name].dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        time, layer, *inner = _as_slices(index, self.shape)
        parts = [[self._read(step, stored) for step in self.steps[time]] for stored in self.layers[layer]]
        block = np.array(parts, dtype=self.dtype).swapaxes(0, 1)[:, :, *inner]
        selected: NDArray[Any] = block[_without_slices(index)]
        return selected

    def _read(self, step: int, layer: int) -> NDArray[Any]:
        if self.name == "key":
            step = self.source.key_steps([step], layer)[0]
            if step < 0:
                return np.full(self.shape[2:], np.nan, self.dtype)
        values = self.source.arrays[self.name][step, layer]
        return values[list(self.heads)] if self.heads else values


def _score_block(values: SiteValues, heads: list[int], query: slice, key: slice, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Scores of some heads, queries and keys: (head, query, key)."""
    if isinstance(values, Scores):
        return values.scores[heads, query, key].astype(dtype)
    queries = values.query[heads, query].astype(dtype)
    keys = values.key[heads, key].astype(dtype)
    scores: NDArray[Any] = queries @ keys.swapaxes(1, 2)
    scores *= values.scale
    if values.bias is not None:
        scores += values.bias[key]
    return scores


def _scores_blocks(scores: _SelectedScores) -> tuple[int, ...]:
    """Shape of a block: one (step, layer), and as many heads, else queries, as keep it within `BLOCK_BYTES`."""
    _, _, heads, queries, keys = scores.shape
    rows = max(1, BLOCK_BYTES // (scores.dtype.itemsize * keys))
    if rows < queries:
        return 1, 1, 1, rows, keys
    return 1, 1, min(heads, rows // queries), queries, keys


def _lazy(source: Any, blocks: Sequence[int], trace: Trace, *labels: str) -> da.Array:
    """A dask array of an indexable source, named by what it holds, so that equal ones are computed once."""
    name = f"{type(source).__name__.strip('_')}-{tokenize(trace, *labels)}"
    meta = np.empty((0,) * len(source.shape), source.dtype)
    array: da.Array = da.from_array(
        source, chunks=tuple(blocks), name=name, asarray=False, fancy=False, inline_array=True, meta=meta
    )
    return array


def _as_slices(index: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A basic index with every integer as a slice of length one, and one slice for every dimension."""
    index = index if isinstance(index, tuple) else (index,)
    full = (*index, *[slice(None)] * (len(shape) - len(index)))
    return tuple(part if isinstance(part, slice) else slice(part, part + 1) for part in full)


def _without_slices(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """Index that drops the dimensions for which `index` gave an integer."""
    index = index if isinstance(index, tuple) else (index,)
    return tuple(slice(None) if isinstance(part, slice) else 0 for part in index)


def _block_shape(shape: tuple[int, ...], inner: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(len(range(*part.indices(length))) for part, length in zip(inner, shape[2:], strict=True))
