"""Checks a whole trace against the format: structure, checksums, finite values, steps against their marker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from attrace.analysis.content import content_id
from attrace.analysis.limits import Limits
from attrace.analysis.store import StoredTrace, open_store, unconsolidated
from attrace.schemas import (
    ArraySpec,
    Manifest,
    SiteClass,
    Status,
    TraceFormatError,
    class_arrays,
    derived_arrays,
    root_arrays,
)
from attrace.schemas.layout import DERIVED, DERIVED_STEPS, IMAGES, KEY_STEP, STEP_DONE, TIME, TIMESTEP, image_array

Progress = Callable[[int, int], None]
"""Called with the number of chunks read so far and the number of all."""

_READERS: Final = 4
"""Chunks read at a time: enough for reading to overlap decoding."""

_MASKED: Final = ("scores", "bias")
"""Arrays in which -inf is a value: an additive mask put it there."""

_Index = tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that verifying found."""

    severity: Literal["problem", "note"]
    """A problem breaks the format or is damage; a note is allowed and worth knowing."""
    array: str
    """Path of the array in the store; empty for the trace as a whole."""
    message: str
    """What was expected and what was found."""
    chunk: str | None = None
    """Key of the chunk below the array, such as `c/3/0/0/0/0`, where one chunk is at fault."""

    def __str__(self) -> str:
        place = "/".join(part for part in (self.array, self.chunk) if part)
        return f"{place}: {self.message}" if place else self.message


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    path: str
    """Where the trace is."""
    status: Status
    """Status in the manifest."""
    steps: int
    """Finished steps."""
    arrays: int
    """Arrays that were read."""
    chunks: int
    """Chunks that were read."""
    findings: tuple[Finding, ...]
    """Everything found, in the order of the checks."""
    content_id: str | None = None
    """Identifier of the content, as of `content_id`; None where there is a problem."""

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that make the trace invalid."""
        return tuple(finding for finding in self.findings if finding.severity == "problem")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that are allowed."""
        return tuple(finding for finding in self.findings if finding.severity == "note")

    @property
    def sound(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


@dataclass(frozen=True)
class _Array:
    """An array that has the structure the format asks for."""

    path: str
    spec: ArraySpec
    stored: zarr.Array[Any]


@dataclass(frozen=True)
class _Chunk:
    """What one chunk turned out to hold."""

    empty: bool = False
    """Nothing but NaN: never written, or a gap."""
    fault: str | None = None
    """Why it cannot be used."""
    values: NDArray[Any] | None = None
    """Its values, for the small arrays."""


_Contents = Mapping[str, Mapping[_Index, _Chunk]]
"""By path of the array and index of the chunk."""


def verify(path: str | Path, *, progress: Progress | None = None) -> Report:
    """Check a trace: structure, every checksum, finite values, steps against their marker.

    Every chunk of the finished steps is read and decoded, a few at a time: memory does not grow with the trace.

    Parameters
    ----------
    path
        A folder, a `.zip` file or an address, as for `open_trace`.
    progress
        Called after each chunk.

    Returns
    -------
    Report
        Each problem names the array and, where there is one, the chunk at fault.

    Raises
    ------
    TraceNotFoundError
        If nothing is stored at `path`.
    TraceFormatError
        If what is stored there is no trace, or its manifest breaks the format.
    """
    trace = open_store(path)
    manifest = trace.manifest
    root = unconsolidated(trace)
    findings: list[Finding] = []
    steps = _finished_steps(root, findings)
    arrays = _sound_arrays(root, manifest, steps, findings) | _images(trace, findings)
    contents = _read(arrays, steps, progress)
    findings += _chunk_findings(arrays, contents)
    findings += _step_findings(manifest, arrays, contents, steps)
    for site_class in manifest.classes:
        findings += _gap_findings(site_class, arrays, contents, steps)
        findings += _coordinate_findings(site_class, contents)
        findings += _cache_findings(root, site_class, len(steps))
    findings += _consolidation_findings(trace, arrays)
    chunks = sum(len(chunks) for chunks in contents.values())
    sound = not any(finding.severity == "problem" for finding in findings)
    content = content_id(trace) if sound else None
    return Report(str(path), manifest.status, len(steps), len(arrays), chunks, tuple(findings), content)


def _problem(array: str, message: str, chunk: str | None = None) -> Finding:
    return Finding("problem", array, message, chunk)


def _note(array: str, message: str, chunk: str | None = None) -> Finding:
    return Finding("note", array, message, chunk)


def _finished_steps(root: zarr.Group, findings: list[Finding]) -> tuple[int, ...]:
    """Steps whose marker is set; what is wrong with the marker goes to `findings`."""
    stored = _member(root, STEP_DONE)
    length = stored.shape[0] if stored is not None and stored.shape else 0
    spec = next(spec for spec in root_arrays(length) if spec.name == STEP_DONE)
    problems = ["expected an array, found none"] if stored is None else list(_differences(stored, spec))
    limit = Limits.from_environment().steps
    if length > limit:
        problems.append(f"expected at most {limit} steps, found {length}")
    findings += [_problem(STEP_DONE, message) for message in problems]
    if stored is None or problems:
        return ()
    marker = _Array(STEP_DONE, spec, stored)
    chunks = {index: _read_chunk(marker, index) for index in _indices(spec, tuple(range(spec.shape[0])))}
    findings += _chunk_findings({STEP_DONE: marker}, {STEP_DONE: chunks})
    return tuple(np.flatnonzero(_assembled(marker, chunks) == 1).tolist())


def _sound_arrays(
    root: zarr.Group, manifest: Manifest, steps: tuple[int, ...], findings: list[Finding]
) -> dict[str, _Array]:
    """Every array but the marker whose structure is right, by path; what is wrong with others goes to `findings`."""
    arrays = {}
    needed = steps[-1] + 1 if steps else 0
    for path, spec in _expected_arrays(root, manifest, needed):
        stored = _member(root, path)
        if stored is None:
            findings.append(_problem(path, "expected an array, found none"))
            continue
        if manifest.status == "recording":
            spec = _with_spare_steps(spec, stored)
        differences = list(_differences(stored, spec))
        findings += [_problem(path, message) for message in differences]
        if not differences:
            arrays[path] = _Array(path, spec, stored)
    return arrays


def _with_spare_steps(spec: ArraySpec, stored: zarr.Array[Any]) -> ArraySpec:
    """The specification with the room for later steps that arrays have until the trace is closed."""
    if spec.dims[0] != "time" or not stored.shape:
        return spec
    return replace(spec, shape=(max(spec.shape[0], stored.shape[0]), *spec.shape[1:]))


def _expected_arrays(root: zarr.Group, manifest: Manifest, steps: int) -> Iterator[tuple[str, ArraySpec]]:
    for spec in root_arrays(steps):
        if spec.name != STEP_DONE:
            yield spec.name, spec
    for site_class in manifest.classes:
        for spec in class_arrays(site_class, steps, data=manifest.has_scores):
            yield f"{site_class.group}/{spec.name}", spec
        if not manifest.has_scores or _covered_by_cache(root, site_class) is not None:
            for spec in derived_arrays(site_class, steps):
                yield f"{site_class.group}/{DERIVED}/{spec.name}", spec


def _covered_by_cache(root: zarr.Group, site_class: SiteClass) -> int | None:
    """Steps that the cache of marginals says it covers; None where there is none, or one that was never finished."""
    try:
        group = root.get(f"{site_class.group}/{DERIVED}")
    except Exception:  # of metadata that is none: a cache may always be ignored
        return None
    steps = group.attrs.get(DERIVED_STEPS) if isinstance(group, zarr.Group) else None
    return steps if isinstance(steps, int) else None


def _images(trace: StoredTrace, findings: list[Finding]) -> dict[str, _Array]:
    """The pictures, whatever their names: taken from the consolidated metadata, as not every store can list."""
    arrays: dict[str, _Array] = {}
    try:
        stored_images = {f"{IMAGES}/{name}": trace.array(f"{IMAGES}/{name}").array for name in trace.arrays_in(IMAGES)}
    except TraceFormatError as error:
        findings.append(_problem(IMAGES, str(error)))
        return arrays
    for path, stored in stored_images.items():
        spec = image_array(path, stored.shape)
        differences = list(_differences(stored, spec))
        findings += [_problem(path, message) for message in differences]
        if not differences:
            arrays[path] = _Array(path, spec, stored)
    return arrays


def _member(root: zarr.Group, path: str) -> zarr.Array[Any] | None:
    try:
        member = root.get(path)
    except Exception:  # zarr raises nearly anything on metadata that it cannot make sense of
        return None
    return member if isinstance(member, zarr.Array) else None


def _differences(stored: zarr.Array[Any], spec: ArraySpec) -> Iterator[str]:
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


def _text(value: Any) -> str:
    return "(" + ", ".join(map(str, value)) + ")" if isinstance(value, tuple) else str(value)


def _read(
    arrays: Mapping[str, _Array], steps: tuple[int, ...], progress: Progress | None
) -> dict[str, dict[_Index, _Chunk]]:
    """Read every chunk of the finished steps."""
    reads = [(array, index) for array in arrays.values() for index in _indices(array.spec, steps)]
    contents: dict[str, dict[_Index, _Chunk]] = {path: {} for path in arrays}
    with ThreadPoolExecutor(_READERS) as pool:
        chunks = pool.map(lambda read: _read_chunk(*read), reads)
        for number, ((array, index), chunk) in enumerate(zip(reads, chunks, strict=True), start=1):
            contents[array.path][index] = chunk
            if progress is not None:
                progress(number, len(reads))
    return contents


def _indices(spec: ArraySpec, steps: tuple[int, ...]) -> Iterator[_Index]:
    """Index of every chunk; along time, of those that hold a finished step."""
    counts = [-(-length // chunk) for length, chunk in zip(spec.shape, spec.chunks, strict=True)]
    along = [range(count) for count in counts]
    if spec.dims[0] == "time":
        return product(sorted({step // spec.chunks[0] for step in steps}), *along[1:])
    return product(*along)


def _read_chunk(array: _Array, index: _Index) -> _Chunk:
    try:
        values = np.asarray(array.stored[_place(array.spec, index)])
    except Exception as error:  # of a codec, a zip file, the system
        return _Chunk(fault=f"the chunk cannot be read: {error}")
    if values.ndim == 1 or values.dtype.kind == "i":
        return _Chunk(values=values)
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return _Chunk()
    if np.isnan(values).all():
        return _Chunk(empty=True)
    return _Chunk(fault=_not_finite(array, values))


def _place(spec: ArraySpec, index: _Index) -> tuple[slice, ...]:
    return tuple(slice(at * size, (at + 1) * size) for at, size in zip(index, spec.chunks, strict=True))


def _not_finite(array: _Array, values: NDArray[Any]) -> str | None:
    """What is wrong with values that are not finite; None where they may be."""
    bad = ~np.isfinite(values)
    if array.spec.name in _MASKED:
        bad &= values != -np.inf
    if array.path.endswith(f"{DERIVED}/{array.spec.name}"):
        bad &= ~np.isnan(values)  # one chunk holds many steps, and those of a gap are NaN
    if not bad.any():
        return None
    first = ", ".join(f"{dim} {at}" for dim, at in zip(array.spec.dims[2:], np.argwhere(bad)[0][2:], strict=True))
    return f"{bad.sum()} of {bad.size} values are not finite, the first at {first}"


def _assembled(array: _Array, chunks: Mapping[_Index, _Chunk]) -> NDArray[Any]:
    """The whole of a small array, with the fill value for chunks that were not or cannot be read."""
    whole = np.full(array.spec.shape, array.spec.fill, array.spec.dtype)
    for index, chunk in chunks.items():
        if chunk.values is not None:
            whole[_place(array.spec, index)] = chunk.values
    return whole


def _key(array: _Array, index: _Index) -> str:
    return array.stored.metadata.encode_chunk_key(index)


def _chunk_findings(arrays: Mapping[str, _Array], contents: _Contents) -> Iterator[Finding]:
    for path, chunks in contents.items():
        for index, chunk in chunks.items():
            if chunk.fault is not None:
                yield _problem(path, chunk.fault, _key(arrays[path], index))


def _step_findings(
    manifest: Manifest, arrays: Mapping[str, _Array], contents: _Contents, steps: tuple[int, ...]
) -> Iterator[Finding]:
    """The root arrays and the manifest against the marker."""
    if manifest.status == "recording":
        yield _note("", f"the recording was never closed: it still runs or was killed; {len(steps)} steps are finished")
    elif manifest.steps != len(steps):
        yield _problem(STEP_DONE, f"the manifest has {manifest.steps} finished steps, the marker {len(steps)}")
    missing = sorted(set(range(steps[-1])) - set(steps)) if steps else []
    if missing:
        yield _problem(STEP_DONE, f"expected finished steps without a hole, found {_steps_text(missing)} not finished")
    if _is_readable(TIME, contents):
        calls = _assembled(arrays[TIME], contents[TIME])[list(steps)]
        if (np.diff(calls) <= 0).any() or (calls < 0).any():
            yield _problem(TIME, f"expected call numbers that rise from 0 on, found {calls.tolist()}")
    if _is_readable(TIMESTEP, contents):
        without = np.flatnonzero(~np.isfinite(_assembled(arrays[TIMESTEP], contents[TIMESTEP])[list(steps)]))
        if without.size:
            yield _problem(TIMESTEP, f"expected a timestep for every finished step, none in {_steps_text(without)}")


def _is_readable(path: str, contents: _Contents) -> bool:
    return path in contents and all(chunk.fault is None for chunk in contents[path].values())


def _gap_findings(
    site_class: SiteClass, arrays: Mapping[str, _Array], contents: _Contents, steps: tuple[int, ...]
) -> Iterator[Finding]:
    """Of each (step, layer) either everything is stored, or nothing (a gap); a part of it is a problem."""
    there = _presence(site_class, contents, steps, arrays)
    if not there:
        return
    names, matrices = np.array(list(there)), np.stack(list(there.values()))[:, list(steps)]
    for layer, site in enumerate(site_class.sites):
        parts = matrices[:, :, layer].sum(axis=0)
        for at in np.flatnonzero((parts > 0) & (parts < len(names))):
            stored = matrices[:, at, layer]
            message = f"{' and '.join(names[stored])} stored without {' and '.join(names[~stored])}"
            yield _problem(site_class.group, f"{message} in step {steps[at]} of layer {site.path!r}")
        gaps = np.array(steps)[parts == 0]
        if gaps.size:
            yield _note(site_class.group, f"layer {site.path!r} was not recorded in {_steps_text(gaps)}")


def _presence(
    site_class: SiteClass, contents: _Contents, steps: tuple[int, ...], arrays: Mapping[str, _Array]
) -> dict[str, NDArray[np.bool_]]:
    """Whether each part of every (step, layer) is stored, by name; a chunk that cannot be read counts as stored."""
    shape = (steps[-1] + 1 if steps else 0, len(site_class.sites))
    there = {}
    bias = ("bias",) if site_class.encoding == "factors" else ()  # scores have it in them already
    for name in ("scores", "query", "key", *bias, "lse"):
        path = f"{site_class.group}/{name}"
        if path in contents:
            there[name] = np.zeros(shape, bool)
            for index, chunk in contents[path].items():
                there[name][index[:2]] = not chunk.empty
    key_step = f"{site_class.group}/{KEY_STEP}"
    if "key" not in there or not _is_readable(key_step, contents):
        there.pop("key", None)
        return there
    stored_in = _assembled(arrays[key_step], contents[key_step])[: shape[0]]
    known = (stored_in >= 0) & (stored_in < shape[0])
    there["key"] = known & np.take_along_axis(there["key"], np.where(known, stored_in, 0), axis=0)
    return there


def _steps_text(steps: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    listed = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
    return f"step {listed}" if len(steps) == 1 else f"{len(steps)} steps ({listed})"


def _coordinate_findings(site_class: SiteClass, contents: _Contents) -> Iterator[Finding]:
    """The coordinate arrays against the grids in the manifest."""
    for name, expected in _coordinates(site_class).items():
        path = f"{site_class.group}/{name}"
        for chunk in contents.get(path, {}).values():
            if chunk.values is not None and not np.array_equal(chunk.values, expected):
                at = int(np.flatnonzero(chunk.values != expected)[0])
                yield _problem(path, f"expected {expected[at]} at {at}, as in the manifest, found {chunk.values[at]}")


def _cache_findings(root: zarr.Group, site_class: SiteClass, steps: int) -> Iterator[Finding]:
    """A cache of marginals that does not count: maps are computed as if it were not there."""
    path = f"{site_class.group}/{DERIVED}"
    covered = _covered_by_cache(root, site_class)
    if covered != steps and _has_cache(root, path):
        found = "it was never finished" if covered is None else f"it covers {covered} of {steps} steps"
        yield _note(path, f"the kept marginals are not used: {found} (attrace precompute makes them anew)")


def _has_cache(root: zarr.Group, path: str) -> bool:
    try:
        return path in root
    except Exception:  # of metadata that is none
        return True


def _coordinates(site_class: SiteClass) -> dict[str, NDArray[Any]]:
    """What the coordinate arrays must hold; keys on no grid have row and column -1."""
    expected: dict[str, NDArray[Any]] = {"head": np.arange(site_class.heads)}
    if site_class.query_grid is not None:
        expected["query_row"], expected["query_column"] = np.indices(site_class.query_grid).reshape(2, -1)
    places = [
        np.full((2, segment.count), -1) if segment.grid is None else np.indices(segment.grid).reshape(2, -1)
        for segment in site_class.key_segments
    ]
    expected["key_row"], expected["key_column"] = np.concatenate(places, axis=1)
    return expected


def _consolidation_findings(trace: StoredTrace, arrays: Mapping[str, _Array]) -> Iterator[Finding]:
    """Consolidated metadata, which many readers trust alone, against the metadata of each array."""
    if trace.manifest.status == "recording":
        return
    consolidated = trace.root.metadata.consolidated_metadata
    if consolidated is None:
        yield _note("", "no consolidated metadata: readers over plain HTTP need it")
        return
    for array in arrays.values():
        copy = consolidated.flattened_metadata.get(array.path)
        if copy is None or copy.to_dict() != array.stored.metadata.to_dict():
            yield _problem(array.path, "the consolidated metadata differs from the array's own")
