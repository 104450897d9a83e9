"""The arrays of a trace whose structure is what the format asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import zarr
import zarr.codecs

from attrace.analysis.integrity.findings import Finding, problem
from attrace.analysis.storage.bounded_codecs import bounded, foreign_codecs
from attrace.analysis.storage.limits import Limits
from attrace.analysis.storage.store import StoredTrace
from attrace.schemas import ArraySpec, Manifest, SiteClass, TraceFormatError, class_arrays, derived_arrays, root_arrays
from attrace.schemas.layout import DERIVED, DERIVED_STEPS, IMAGES, STEP_DONE, image_array

ChunkIndex = tuple[int, ...]
"""Place of a chunk on the grid of chunks of its array."""


@dataclass(frozen=True)
class SoundArray:
    """An array that has the structure the format asks for."""

    path: str
    spec: ArraySpec
    stored: zarr.Array[Any]

    @property
    def is_small(self) -> bool:
        """Whether all its values are kept while a trace is verified: those of coordinates, times and `key_step`."""
        return len(self.spec.dims) == 1 or self.spec.dtype == "int32"

    @property
    def holds_many_steps(self) -> bool:
        """Whether one of its chunks holds more than one step, as of the marginals."""
        return self.spec.dims[0] == "time" and self.spec.chunks[0] > 1

    def indices(self, steps: tuple[int, ...]) -> Iterator[ChunkIndex]:
        """Index of every chunk; along time, of those that hold one of some steps."""
        counts = [-(-length // chunk) for length, chunk in zip(self.spec.shape, self.spec.chunks, strict=True)]
        along = [range(count) for count in counts]
        if self.spec.dims[0] == "time":
            return product(sorted({step // self.spec.chunks[0] for step in steps}), *along[1:])
        return product(*along)

    def count(self, steps: tuple[int, ...]) -> int:
        """How many chunks `indices` gives."""
        counts = [-(-length // chunk) for length, chunk in zip(self.spec.shape, self.spec.chunks, strict=True)]
        if self.spec.dims[0] == "time":
            counts[0] = len({step // self.spec.chunks[0] for step in steps})
        return math.prod(counts)

    def place(self, index: ChunkIndex) -> tuple[slice, ...]:
        """Where a chunk lies in the array."""
        return tuple(slice(at * size, (at + 1) * size) for at, size in zip(index, self.spec.chunks, strict=True))

    def key(self, index: ChunkIndex) -> str:
        """Where a chunk lies in the store, below the array."""
        return self.stored.metadata.encode_chunk_key(index)


def sound_arrays(
    root: zarr.Group, manifest: Manifest, steps: tuple[int, ...], findings: list[Finding]
) -> dict[str, SoundArray]:
    """Every array but the marker whose structure is right, by path; what is wrong with others goes to `findings`."""
    arrays = {}
    needed = steps[-1] + 1 if steps else 0
    for path, spec in _expected_arrays(root, manifest, needed):
        stored = member(root, path)
        if stored is None:
            findings.append(problem(path, "expected an array, found none"))
            continue
        if manifest.status == "recording":
            spec = _with_spare_steps(spec, stored)
        found = list(differences(stored, spec))
        findings += [problem(path, message) for message in found]
        if not found:
            arrays[path] = SoundArray(path, spec, bounded(stored))
    return arrays


def sound_images(trace: StoredTrace, findings: list[Finding]) -> dict[str, SoundArray]:
    """The pictures, whatever their names: taken from the consolidated metadata, as not every store can list."""
    arrays: dict[str, SoundArray] = {}
    try:
        stored_images = {f"{IMAGES}/{name}": trace.array(f"{IMAGES}/{name}").array for name in trace.arrays_in(IMAGES)}
    except TraceFormatError as error:
        findings.append(problem(IMAGES, str(error)))
        return arrays
    for path, stored in stored_images.items():
        spec = image_array(path, stored.shape)
        found = list(differences(stored, spec))
        findings += [problem(path, message) for message in found]
        if not found:
            arrays[path] = SoundArray(path, spec, stored)
    return arrays


def covered_by_cache(root: zarr.Group, site_class: SiteClass) -> int | None:
    """Steps that the cache of marginals says it covers; None where there is none, or one that was never finished."""
    try:
        group = root.get(f"{site_class.group}/{DERIVED}")
    except Exception:  # of metadata that is none: a cache may always be ignored
        return None
    steps = group.attrs.get(DERIVED_STEPS) if isinstance(group, zarr.Group) else None
    return steps if isinstance(steps, int) else None


def _expected_arrays(root: zarr.Group, manifest: Manifest, steps: int) -> Iterator[tuple[str, ArraySpec]]:
    for spec in root_arrays(steps):
        if spec.name != STEP_DONE:
            yield spec.name, spec
    for site_class in manifest.classes:
        for spec in class_arrays(site_class, steps, data=manifest.has_scores):
            yield f"{site_class.group}/{spec.name}", spec
        if not manifest.has_scores or covered_by_cache(root, site_class) is not None:
            for spec in derived_arrays(site_class, steps):
                yield f"{site_class.group}/{DERIVED}/{spec.name}", spec


def _with_spare_steps(spec: ArraySpec, stored: zarr.Array[Any]) -> ArraySpec:
    """The specification with the room for later steps that arrays have until the trace is closed."""
    if spec.dims[0] != "time" or not stored.shape:
        return spec
    return replace(spec, shape=(max(spec.shape[0], stored.shape[0]), *spec.shape[1:]))


def member(root: zarr.Group, path: str) -> zarr.Array[Any] | None:
    """An array of the trace; None where there is none whose metadata can be read."""
    try:
        found = root.get(path)
    except Exception:  # zarr raises nearly anything on metadata that it cannot make sense of
        return None
    return found if isinstance(found, zarr.Array) else None


def differences(stored: zarr.Array[Any], spec: ArraySpec) -> Iterator[str]:
    """What differs between an array and its specification, in words."""
    found_dims = getattr(stored.metadata, "dimension_names", None)
    found = {
        "dims": tuple(found_dims or ()),
        "shape": stored.shape,
        "chunks": stored.chunks,
        "data type": stored.dtype.name,
    }
    expected = {"dims": spec.dims, "shape": spec.shape, "chunks": spec.chunks, "data type": spec.dtype}
    for what, value in expected.items():
        if found[what] != value:
            yield f"expected {what} {_text(value)}, found {_text(found[what])}"
    limit = Limits.from_environment().chunk_bytes
    if math.prod(stored.chunks) * stored.dtype.itemsize > limit:
        yield f"expected chunks of at most {limit} bytes, found {_text(stored.chunks)}"
    if not np.array_equal(stored.fill_value, spec.fill, equal_nan=spec.dtype.startswith("float")):
        yield f"expected fill value {spec.fill}, found {stored.fill_value}"
    if not any(isinstance(codec, zarr.codecs.Crc32cCodec) for codec in stored.metadata.codecs):  # type: ignore[union-attr]
        yield "expected a crc32c checksum on every chunk, found none"
    foreign = foreign_codecs(stored)
    if foreign:
        yield f"expected core codecs, found {', '.join(foreign)}"


def _text(value: Any) -> str:
    return "(" + ", ".join(map(str, value)) + ")" if isinstance(value, tuple) else str(value)
