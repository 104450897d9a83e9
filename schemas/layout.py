"""Where things lie in a store: names of groups and arrays, their dims, shapes and chunks.

Pure description: nothing here touches a store. The recorder creates what `class_arrays` lists; readers and
`attrace verify` compare a store with it. docs/format.md says the same in prose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.schemas.manifest import SiteClass

MANIFEST_ATTRIBUTE: Final = "attrace"
"""Attribute of the root group that holds the manifest."""

IMAGES: Final = "images"
REFERENCE: Final = "reference"
"""Group of the pictures; one uint8 array (row, column, channel) or (row, column) each."""

IMAGE_NAMES: Final = ("generated", "reference", "input", "mask")
"""Names that have a meaning; others are allowed."""

DERIVED: Final = "derived"
"""Group, inside a class group, of the optional cache of marginals."""

DERIVED_STEPS: Final = "steps"
"""Attribute of that group, written last: the finished steps that it covers. Without it the cache does not count."""

TIME: Final = "time"
"""Root array, int32 (time): number of the denoiser call, counted from 0."""

TIMESTEP: Final = "timestep"
"""Root array, float32 (time): the timestep the denoiser was called with."""

STEP_DONE: Final = "step_done"
"""Root array, uint8 (time): 1 once everything of that step is in the store; written last in each step."""

KEY_STEP: Final = "key_step"
"""Array beside `key`, int32 (time, layer): the step in which the keys are stored; -1 where the site was not called."""

SCORES_DIMS: Final = ("time", "layer", "head", "query", "key")
QUERY_DIMS: Final = ("time", "layer", "head", "query", "feature")
KEY_DIMS: Final = ("time", "layer", "head", "key", "feature")

STEPS_PER_CHUNK: Final = 1024
"""Chunk length along time of arrays with few numbers a step: opening a trace reads each of them in one request."""

DERIVED_STEPS_PER_CHUNK: Final = 64
"""Chunk length along time of the cache of marginals: bounds a chunk, however long the run."""

_ONE_STEP_AND_LAYER: Final = {"time": 1, "layer": 1}

_FILL_VALUES: Final = {"f": math.nan, "i": -1, "u": 0}


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store, before it exists."""

    name: str
    """Name inside its group."""
    dims: tuple[str, ...]
    """Dimension names, in order."""
    shape: tuple[int, ...]
    """Length along each."""
    chunks: tuple[int, ...]
    """Length of a chunk along each."""
    dtype: str
    """NumPy name of the data type: float16, float32, float64, int32 or uint8."""
    fill: float
    """Value of what was never written: NaN for floats, -1 for int32, 0 for uint8."""

    @property
    def creation(self) -> dict[str, Any]:
        """Keywords of zarr's `create_array`, but for compressors; every chunk is written, also one of fill value."""
        return {
            "name": self.name,
            "shape": self.shape,
            "chunks": self.chunks,
            "dtype": self.dtype,
            "fill_value": self.fill,
            "dimension_names": self.dims,
            "config": {"write_empty_chunks": True},
        }


def root_arrays(steps: int) -> tuple[ArraySpec, ...]:
    """Arrays of the root group for a trace of `steps` steps."""
    return tuple(
        _array(name, dtype, {"time": steps}, {"time": STEPS_PER_CHUNK})
        for name, dtype in ((TIME, "int32"), (TIMESTEP, "float32"), (STEP_DONE, "uint8"))
    )


def class_arrays(site_class: SiteClass, steps: int, *, data: bool = True) -> tuple[ArraySpec, ...]:
    """Arrays of a class group for a trace of `steps` steps: the data, then the coordinates.

    `data=False` leaves out the data: a copy may hold the marginals alone.

    Data chunks hold one (step, layer): all heads. `key_step` says in which step the key of a (step, layer) is stored:
    a key that did not change is not stored again.
    """
    return (*(_data_arrays(site_class, steps) if data else ()), *_coordinate_arrays(site_class))


def derived_arrays(site_class: SiteClass, steps: int) -> tuple[ArraySpec, ...]:
    """Arrays of the cache of marginals inside a class group."""
    lengths = _lengths(site_class, steps)
    chunks = {"time": DERIVED_STEPS_PER_CHUNK, "layer": 1}
    return tuple(
        _array(name, "float32", {dim: lengths[dim] for dim in ("time", "layer", "head", token)}, chunks)
        for name, token in (("r2g", "query"), ("g2r", "key"))
    )


def reference_name(number: int) -> str:
    """Name in `images` of a picture that keys are patches of, counted from 0: `reference`, `reference-1` and so on."""
    return f"{REFERENCE}-{number}" if number else REFERENCE


def chunk_key(index: Iterable[int]) -> str:
    """Where a chunk lies below its array, by its place on the grid of chunks, such as `c/3/0/0/0/0`."""
    return "/".join(("c", *map(str, index)))


def coordinate_values(site_class: SiteClass) -> dict[str, NDArray[np.int32]]:
    """What the coordinate arrays of a class hold, by name: int32; a key on no grid has row and column -1."""
    values = {"head": np.arange(site_class.heads, dtype=np.int32)}
    if site_class.query_grid is not None:
        values["query_row"], values["query_column"] = _grid_positions(site_class.query_grid)
    if any(segment.grid is not None for segment in site_class.key_segments):
        positions = [
            _grid_positions(segment.grid) if segment.grid is not None else np.full((2, segment.count), -1, np.int32)
            for segment in site_class.key_segments
        ]
        values["key_row"], values["key_column"] = np.concatenate(positions, axis=1)
    return values


def image_array(name: str, shape: tuple[int, ...]) -> ArraySpec:
    """The array of a picture of that shape: (row, column) or (row, column, channel)."""
    return _array(name, "uint8", dict(zip(("row", "column", "channel"), shape, strict=False)), {})


def class_group(site_class: SiteClass) -> str:
    """The usual path of a class group, such as `reference/4096x257h8d40`; a second of the same gets `-2` and so on."""
    branch = "" if site_class.branch == "conditional" else f".{site_class.branch}"
    shape = f"{site_class.queries}x{site_class.keys}h{site_class.heads}d{site_class.features}"
    return f"{site_class.context}{branch}/{shape}"


def _data_arrays(site_class: SiteClass, steps: int) -> Iterator[ArraySpec]:
    lengths = _lengths(site_class, steps)

    def array(
        name: str, dtype: str, dims: tuple[str, ...], chunks: Mapping[str, int] = _ONE_STEP_AND_LAYER
    ) -> ArraySpec:
        return _array(name, dtype, {dim: lengths[dim] for dim in dims}, chunks)

    if site_class.encoding == "scores":
        yield array("scores", site_class.dtype, SCORES_DIMS)
    else:
        yield array("query", site_class.dtype, QUERY_DIMS)
        yield array("key", site_class.dtype, KEY_DIMS)
        yield array(KEY_STEP, "int32", ("time", "layer"), {"time": STEPS_PER_CHUNK})
    if site_class.has_bias:
        yield array("bias", "float32", ("time", "layer", "key"))
    if site_class.has_lse:
        yield array("lse", "float32", ("time", "layer", "head", "query"))


def _coordinate_arrays(site_class: SiteClass) -> Iterator[ArraySpec]:
    lengths = _lengths(site_class, steps=0)
    dims = {"head": "head"}
    if site_class.query_grid is not None:
        dims |= {"query_row": "query", "query_column": "query"}
    if any(segment.grid is not None for segment in site_class.key_segments):
        dims |= {"key_row": "key", "key_column": "key"}
    for name, dim in dims.items():
        yield _array(name, "int32", {dim: lengths[dim]}, {})


def _grid_positions(grid: tuple[int, int]) -> NDArray[np.int32]:
    """Row and column of every cell in row-major order: int32 (2, cells)."""
    return np.indices(grid, dtype=np.int32).reshape(2, -1)


def _lengths(site_class: SiteClass, steps: int) -> dict[str, int]:
    return {
        "time": steps,
        "layer": len(site_class.sites),
        "head": site_class.heads,
        "query": site_class.queries,
        "key": site_class.keys,
        "feature": site_class.features,
    }


def _array(name: str, dtype: str, lengths: Mapping[str, int], chunks: Mapping[str, int]) -> ArraySpec:
    """An array with the chunk lengths of `chunks`, whole along the dims that it leaves out."""
    return ArraySpec(
        name=name,
        dims=tuple(lengths),
        shape=tuple(lengths.values()),
        chunks=tuple(chunks.get(dim, length) for dim, length in lengths.items()),
        dtype=dtype,
        fill=_FILL_VALUES[dtype[0]],
    )
