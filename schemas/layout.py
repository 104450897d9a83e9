"""Layout of a store: names of groups and arrays, their dims, shapes and chunks.

Pure description: nothing here touches a store. The recorder creates what `class_arrays` lists; readers and
`attrace verify` compare a store with it. docs/format.md says the same in prose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.schemas.manifest import MAJOR, Manifest, SiteClass

MANIFEST_ATTRIBUTE: Final = "attrace"
"""Attribute of the root group that holds the manifest."""

ROOT_ATTRIBUTES: Final[Mapping[str, Any]] = {
    "zarr_conventions": [
        {
            "uuid": "6301295a-f015-4ba9-9f50-8654fc43fb4e",
            "name": MANIFEST_ATTRIBUTE,
            "description": "Attention of a diffusion model while it made one sample",
        }
    ],
    "coordinates": "timestep",
}
"""Other attributes of the root group: the name of the convention, and xarray's list of coordinates."""

IMAGES: Final = "images"
REFERENCE: Final = "reference"
"""Group of the pictures; one uint8 array (row, column, channel) or (row, column) each."""

IMAGE_NAMES: Final = ("generated", "reference", "input", "mask")
"""Names that have a meaning; others are allowed."""

DERIVED: Final = "derived"
"""Group, inside a class group, of the optional cache of marginals."""

DERIVED_STEPS: Final = "steps"
"""Attribute of that group, written last: the finished steps that it covers. Without it the cache is ignored."""

TIME: Final = "time"
"""Root array, int32 (time): number of the denoiser call, counted from 0."""

TIMESTEP: Final = "timestep"
"""Root array, float32 (time): the timestep the denoiser was called with."""

STEP_DONE: Final = "step_done"
"""Root array, uint8 (time): 1 once everything of that step is in the store; written last in each step."""

SCORES: Final = "scores"
"""Data array of a class whose encoding is scores."""

QUERY: Final = "query_vector"
KEY: Final = "key_vector"
"""Data arrays of a class whose encoding is factors."""

VALUE: Final = "value_vector"
"""Data array of a class with `channels`: what attention adds up; stored in the step that `KEY_STEP` names."""

OUTPUT: Final = "output"
"""Array of a class with `channels`, (layer, head, feature, channel): what turns the sum of values into the output."""

KEY_STEP: Final = "key_step"
"""Array beside `KEY` and `VALUE`, int32 (time, layer): the step in which they are stored; -1 where the site was not
called."""

CALLED: Final = "called"
"""Array of a class, uint8 (time, layer): 1 where the site was called in the step; not in version 1 of the format."""

EFFECT: Final = "effect"
"""Optional array of a class, float64 (layer[, head]): how much the picture changes without the attention of each layer,
or of each head; NaN where it was not measured."""

LAYERS: Final = "layers"
"""Attribute of a class group: module paths of its layers, in their order; not in version 1 of the format."""

_NAMES_IN_1: Final = {QUERY: "query", KEY: "key"}
"""Names of arrays in version 1 of the format."""

DATA_ARRAYS: Final = frozenset(
    {SCORES, *_NAMES_IN_1, *_NAMES_IN_1.values(), VALUE, OUTPUT, KEY_STEP, CALLED, "bias", "lse"}
)
"""Arrays of a class, in any version of the format, that hold what was recorded."""

LONG_NAMES: Final = {
    TIME: "call of the denoiser, counted from 0",
    TIMESTEP: "timestep that the denoiser was called with",
    STEP_DONE: "1 once all of the step is in the trace",
    SCORES: "attention score before any softmax",
    QUERY: "query, after norm and rotary embedding",
    KEY: "key, after norm and rotary embedding, in the step that key_step names",
    VALUE: "value, in the step that key_step names",
    OUTPUT: "weights of the output projection",
    KEY_STEP: "position along time of the keys and values that the step used; -1 where the layer was not called",
    CALLED: "1 where the layer was called in the step",
    "bias": "additive mask over the keys",
    "lse": "log of the sum of exp(score) over all keys",
    EFFECT: "change of the generated picture without the attention of the layer or head",
    "layer": "position in the order of calls within a step",
    "r2g": "reference-to-generated attribution (mean over keys of the softmax over queries)",
    "g2r": "generated-to-reference attribution (mean over queries of the softmax over keys)",
}
"""Descriptions of arrays."""

SCORES_DIMS: Final = ("time", "layer", "head", "query", "key")
QUERY_DIMS: Final = ("time", "layer", "head", "query", "feature")
KEY_DIMS: Final = ("time", "layer", "head", "key", "feature")
OUTPUT_DIMS: Final = ("layer", "head", "feature", "channel")

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
    attributes: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Description of the array, for readers to show."""

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
            "attributes": dict(self.attributes),
            "config": {"write_empty_chunks": True},
        }


def root_arrays(steps: int) -> tuple[ArraySpec, ...]:
    """Arrays of the root group for a trace of `steps` steps."""
    return tuple(
        _array(name, dtype, {"time": steps}, {"time": STEPS_PER_CHUNK})
        for name, dtype in ((TIME, "int32"), (TIMESTEP, "float32"), (STEP_DONE, "uint8"))
    )


def class_arrays(
    site_class: SiteClass, steps: int, *, data: bool = True, closed: bool = True, major: int = MAJOR
) -> tuple[ArraySpec, ...]:
    """Arrays of a class group for a trace of `steps` steps: the data, then the coordinates.

    Data chunks hold one (step, layer): all heads. `key_step` says in which step the keys and values of a (step, layer)
    are stored: where neither changed they are not stored again.

    Parameters
    ----------
    site_class
        The class.
    steps
        Length along `time`.
    data
        False leaves out the data: a copy may hold the marginals alone.
    closed
        False leaves out what closing a trace adds: `time` and `timestep`, which the root holds too.
    major
        Major version of the format.
    """
    times = root_arrays(steps)[:2] if closed and major > 1 else ()
    return (
        *(_data_arrays(site_class, steps, major) if data else ()),
        *_coordinate_arrays(site_class, major),
        *times,
    )


def manifest_arrays(manifest: Manifest, steps: int) -> dict[str, ArraySpec]:
    """Every array that a manifest promises, by path: the pictures and the cache of marginals are not among them."""
    specs = {spec.name: spec for spec in root_arrays(steps)}
    kinds = {"data": manifest.has_scores, "closed": manifest.status != "recording"}
    for one in manifest.classes:
        arrays = class_arrays(one, steps, **kinds, major=manifest.major)
        specs |= {f"{one.group}/{spec.name}": spec for spec in arrays}
    return specs


def class_attributes(site_class: SiteClass) -> dict[str, Any]:
    """Attributes of a class group: its layers, and xarray's list of coordinates."""
    positions = [name for name in coordinate_values(site_class) if name not in ("layer", "head")]
    return {LAYERS: [site.path for site in site_class.sites], "coordinates": " ".join([TIMESTEP, *positions])}


def stored_name(name: str, major: int) -> str:
    """Name of an array of a class group in a major version of the format.

    >>> stored_name("key_vector", 2), stored_name("key_vector", 1)
    ('key_vector', 'key')
    """
    return _NAMES_IN_1.get(name, name) if major == 1 else name


def is_of_keys(name: str, major: int = MAJOR) -> bool:
    """Whether an array of a class group has chunks only in the steps that `key_step` names.

    >>> is_of_keys("value_vector"), is_of_keys("query_vector")
    (True, False)
    """
    return name in (stored_name(KEY, major), VALUE)


def derived_arrays(site_class: SiteClass, steps: int) -> tuple[ArraySpec, ...]:
    """Arrays of the cache of marginals inside a class group."""
    lengths = _lengths(site_class, steps)
    chunks = {"time": DERIVED_STEPS_PER_CHUNK, "layer": 1}
    return tuple(
        _array(name, "float32", {dim: lengths[dim] for dim in ("time", "layer", "head", token)}, chunks)
        for name, token in (("r2g", "query"), ("g2r", "key"))
    )


def effect_array(site_class: SiteClass, *, by_head: bool) -> ArraySpec:
    """The array of measured effects of a class."""
    lengths = _lengths(site_class, 0)
    return _array(EFFECT, "float64", {dim: lengths[dim] for dim in (("layer", "head") if by_head else ("layer",))}, {})


def reference_name(number: int) -> str:
    """Name in `images` of a picture that keys are patches of, counted from 0: `reference`, `reference-1` and so on."""
    return f"{REFERENCE}-{number}" if number else REFERENCE


def chunk_key(index: Iterable[int]) -> str:
    """Path of a chunk below its array, from its index on the chunk grid, such as `c/3/0/0/0/0`."""
    return "/".join(("c", *map(str, index)))


def coordinate_values(site_class: SiteClass, major: int = MAJOR) -> dict[str, NDArray[np.int32]]:
    """Values of the coordinate arrays of a class, by name: int32; a key that is on no grid has row and column -1."""
    values = {"head": np.arange(site_class.heads, dtype=np.int32)}
    if major > 1:
        values["layer"] = np.array([site.order for site in site_class.sites], np.int32)
    if site_class.query_grid is not None:
        values["query_row"], values["query_column"] = _grid_positions(site_class.query_grid)
    if any(segment.grid is not None for segment in site_class.key_segments):
        positions = [
            _grid_positions(segment.grid) if segment.grid is not None else np.full((2, segment.count), -1, np.int32)
            for segment in site_class.key_segments
        ]
        values["key_row"], values["key_column"] = np.concatenate(positions, axis=1)
    return values


def image_array(name: str, shape: tuple[int, ...], major: int = MAJOR) -> ArraySpec:
    """The array of a picture of that shape: (row, column) or (row, column, channel).

    Its dims have the picture's name before them: pictures of several sizes share a group.
    """
    before = "" if major == 1 else f"{name.rpartition('/')[2]}_"
    dims = [f"{before}{dim}" for dim in ("row", "column", "channel")]
    return _array(name, "uint8", dict(zip(dims, shape, strict=False)), {})


def class_group(site_class: SiteClass) -> str:
    """The usual path of a class group, such as `reference/4096x257h8d40`; a second of the same gets `-2` and so on."""
    branch = "" if site_class.branch == "conditional" else f".{site_class.branch}"
    shape = f"{site_class.queries}x{site_class.keys}h{site_class.heads}d{site_class.features}"
    return f"{site_class.context}{branch}/{shape}"


def _data_arrays(site_class: SiteClass, steps: int, major: int) -> Iterator[ArraySpec]:
    lengths = _lengths(site_class, steps)

    def array(
        name: str, dtype: str, dims: tuple[str, ...], chunks: Mapping[str, int] = _ONE_STEP_AND_LAYER
    ) -> ArraySpec:
        return _array(name, dtype, {dim: lengths[dim] for dim in dims}, chunks)

    if site_class.encoding == "scores":
        yield array(SCORES, site_class.dtype, SCORES_DIMS)
    else:
        yield array(stored_name(QUERY, major), site_class.dtype, QUERY_DIMS)
        yield array(stored_name(KEY, major), site_class.dtype, KEY_DIMS)
    if site_class.channels is not None:
        yield array(VALUE, site_class.dtype, KEY_DIMS)
        yield array(OUTPUT, site_class.dtype, OUTPUT_DIMS)
    if site_class.channels is not None or site_class.encoding == "factors":
        yield array(KEY_STEP, "int32", ("time", "layer"), {"time": STEPS_PER_CHUNK})
    if major > 1:
        yield array(CALLED, "uint8", ("time", "layer"), {"time": STEPS_PER_CHUNK})
    if site_class.has_bias:
        yield array("bias", "float32", ("time", "layer", "key"))
    if site_class.has_lse:
        yield array("lse", "float32", ("time", "layer", "head", "query"))


def _coordinate_arrays(site_class: SiteClass, major: int) -> Iterator[ArraySpec]:
    for name, values in coordinate_values(site_class, major).items():
        yield _array(name, "int32", {name.partition("_")[0]: len(values)}, {})


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
        "channel": site_class.channels or 0,
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
        attributes={"long_name": LONG_NAMES[name], "units": "1"} if name in LONG_NAMES else {},
    )
