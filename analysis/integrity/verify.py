"""Checks a whole trace against the format: structure, checksums, finite values, steps against their marker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attrace.analysis.integrity.chunks import Progress, ReadArray, read_chunks
from attrace.analysis.integrity.report import Issue, Report, note, problem
from attrace.analysis.storage.array_check import array_problems
from attrace.analysis.storage.chunk_codecs import bounded
from attrace.analysis.storage.metadata import check_digest, copies_in, read_document
from attrace.analysis.storage.store import StoredTrace, open_store, unconsolidated
from attrace.analysis.storage.stored_array import ExpectedChunks, StoredArray
from attrace.analysis.trace.source import GAP_OR_LOSS
from attrace.schemas import (
    ArraySpec,
    Manifest,
    SiteClass,
    TraceFormatError,
    derived_arrays,
    effect_array,
    image_array,
    manifest_arrays,
    root_arrays,
)
from attrace.schemas.digest import CONSOLIDATED, INLINE, canonical_json, without_copies
from attrace.schemas.folders import asides_text
from attrace.schemas.layout import (
    CALLED,
    DERIVED,
    DERIVED_STEPS,
    EFFECT,
    IMAGES,
    KEY,
    KEY_STEP,
    LAYERS,
    QUERY,
    SCORES,
    STEP_DONE,
    TIME,
    TIMESTEP,
    VALUE,
    coordinate_values,
    stored_name,
)

Arrays = Mapping[str, ReadArray]
"""Arrays that meet their specification, by path."""


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
    opened = open_store(path, check=False)
    trace = replace(opened, root=unconsolidated(opened))
    manifest = trace.manifest
    issues: list[Issue] = []
    steps = _finished_steps(trace, issues)
    trace = replace(trace, steps=steps)
    sites = sum(len(one.sites) for one in manifest.classes)
    trace.limits.check(
        "files", len(steps) * sites, f"{path} says that {len(steps)} steps of {sites} layers are finished"
    )
    arrays = dict(_arrays(trace, steps, issues)) | dict(_images(opened, issues))
    content = read_chunks(opened, arrays, steps, progress)
    for array in arrays.values():
        issues += _chunk_problems(array)
    issues += _step_issues(manifest, arrays, steps, path)
    for site_class in manifest.classes:
        issues += _gap_issues(site_class, arrays, steps, manifest.major)
        issues += _label_problems(trace, site_class, arrays)
        issues += _cache_notes(trace.root, site_class, len(steps))
    issues += _metadata_issues(opened)
    chunks = sum(len(array.chunks) for array in arrays.values())
    report = Report(str(path), manifest.status, len(steps), len(arrays), chunks, tuple(issues))
    return replace(report, content_id=content) if report.valid else report


def _finished_steps(trace: StoredTrace, issues: list[Issue]) -> tuple[int, ...]:
    """Steps whose marker is set; what is wrong with the marker goes to `issues`."""
    stored = _member(trace.root, STEP_DONE)
    length = stored.shape[0] if isinstance(stored, zarr.Array) and stored.shape else 0
    spec = next(spec for spec in root_arrays(length) if spec.name == STEP_DONE)
    marker = _array(trace, STEP_DONE, spec, issues)
    if marker is None:
        return ()
    for index in product(*marker.grid(range(length))):
        marker.chunks[index], _ = marker.read(index)
    issues += _chunk_problems(marker)
    return tuple(np.flatnonzero(marker.values == 1).tolist())


def _arrays(trace: StoredTrace, steps: tuple[int, ...], issues: list[Issue]) -> Iterator[tuple[str, ReadArray]]:
    """Every array but the marker that meets its specification; what is wrong with others goes to `issues`."""
    for path, spec in _expected_arrays(trace, steps[-1] + 1 if steps else 0):
        array = _array(trace, path, spec, issues)
        if array is not None:
            yield path, array


def _array(trace: StoredTrace, path: str, spec: ArraySpec, issues: list[Issue]) -> ReadArray | None:
    stored = _member(trace.root, path)
    if not isinstance(stored, zarr.Array):
        issues.append(problem(path, "expected an array, found none"))
        return None
    if trace.manifest.status == "recording" and spec.dims[0] == "time" and stored.shape[:1] > spec.shape[:1]:
        spec = replace(spec, shape=(*stored.shape[:1], *spec.shape[1:]))  # there is room for later steps
    found = [problem(path, message) for message in array_problems(stored, spec, trace.limits, exactly=True)]
    issues += found
    return (
        None if found else ReadArray(path, spec, StoredArray(trace.path, path, bounded(stored), _expected(trace, path)))
    )


def _expected(trace: StoredTrace, path: str) -> ExpectedChunks | None:
    """Which chunks must be there; None where the array that says so is an issue itself."""
    try:
        return trace.expected(path)
    except TraceFormatError:
        return None


def _images(trace: StoredTrace, issues: list[Issue]) -> Iterator[tuple[str, ReadArray]]:
    """The pictures, whatever their names: taken from the consolidated metadata, as not every store can list."""
    try:
        for name in trace.pictures():
            path = f"{IMAGES}/{name}"
            stored = trace.array(path).array
            array = _array(trace, path, image_array(path, stored.shape, trace.manifest.major), issues)
            if array is not None:
                yield path, array
    except TraceFormatError as error:
        issues.append(problem(IMAGES, str(error)))


def _expected_arrays(trace: StoredTrace, steps: int) -> Iterator[tuple[str, ArraySpec]]:
    yield from (promised for promised in manifest_arrays(trace.manifest, steps).items() if promised[0] != STEP_DONE)
    for site_class in trace.manifest.classes:
        if not trace.manifest.has_scores or _covered_by_cache(trace.root, site_class) is not None:
            for spec in derived_arrays(site_class, steps):
                yield f"{site_class.group}/{DERIVED}/{spec.name}", spec
        effect = _member(trace.root, path := f"{site_class.group}/{EFFECT}")
        if effect is not None:
            yield path, effect_array(site_class, by_head=getattr(effect, "ndim", 1) == 2)


def _member(root: zarr.Group, path: str) -> Any:
    """A group or array of the trace; None where there is none whose metadata can be read."""
    try:
        return root.get(path)
    except Exception:  # zarr raises nearly anything on metadata that it cannot make sense of
        return None


def _chunk_problems(array: ReadArray) -> Iterator[Issue]:
    """The chunks that cannot be used."""
    # of the read layout several steps are in one chunk, which is told once
    faults = {(array.key_of(index), chunk.fault): None for index, chunk in array.chunks.items()}
    for key, fault in faults:
        if fault is not None:
            yield problem(array.path, fault, key)


def _step_issues(manifest: Manifest, arrays: Arrays, steps: tuple[int, ...], path: str | Path) -> Iterator[Issue]:
    """The root arrays and the manifest against the marker."""
    if manifest.status == "recording":
        what = f"the recording was never closed: it still runs or was killed; {len(steps)} steps are finished"
        yield note("", what + asides_text(path))
    elif manifest.steps != len(steps):
        yield problem(STEP_DONE, f"the manifest has {manifest.steps} finished steps, the marker {len(steps)}")
    missing = sorted(set(range(steps[-1])) - set(steps)) if steps else []
    if missing:
        yield problem(STEP_DONE, f"expected finished steps without a hole, found {_steps_text(missing)} not finished")
    if TIME in arrays and arrays[TIME].is_readable:
        calls = arrays[TIME].values[list(steps)]
        if (np.diff(calls) <= 0).any() or (calls < 0).any():
            yield problem(TIME, f"expected call numbers that rise from 0 on, found {calls.tolist()}")
    if TIMESTEP in arrays and arrays[TIMESTEP].is_readable:
        without = np.flatnonzero(~np.isfinite(arrays[TIMESTEP].values[list(steps)]))
        if without.size:
            yield problem(TIMESTEP, f"expected a timestep for every finished step, none in {_steps_text(without)}")


def _gap_issues(site_class: SiteClass, arrays: Arrays, steps: tuple[int, ...], major: int) -> Iterator[Issue]:
    """Of each (step, layer) either everything is stored, or nothing (a gap); a part of it is a problem."""
    there = _presence(site_class, arrays, steps, major)
    if not there:
        return
    names, matrices = np.array(list(there)), np.stack(list(there.values()))[:, list(steps)]
    for layer, site in enumerate(site_class.sites):
        parts = matrices[:, :, layer].sum(axis=0)
        for at in np.flatnonzero((parts > 0) & (parts < len(names))):
            stored = matrices[:, at, layer]
            message = f"{' and '.join(names[stored])} stored without {' and '.join(names[~stored])}"
            yield problem(site_class.group, f"{message} in step {steps[at]} of layer {site.path!r}")
        gaps = np.array(steps)[parts == 0]
        if gaps.size:
            doubt = f": {GAP_OR_LOSS}" if major == 1 and SCORES in there else ""
            yield note(site_class.group, f"layer {site.path!r} was not recorded in {_steps_text(gaps)}{doubt}")


def _presence(
    site_class: SiteClass, arrays: Arrays, steps: tuple[int, ...], major: int
) -> dict[str, NDArray[np.bool_]]:
    """Whether each part of every (step, layer) is stored, by name; a chunk that cannot be read counts as stored."""
    shape = (steps[-1] + 1 if steps else 0, len(site_class.sites))
    there = {}
    bias = ("bias",) if site_class.encoding == "factors" else ()  # scores have it in them already
    for name in (SCORES, QUERY, KEY, VALUE, *bias, "lse"):
        array = arrays.get(f"{site_class.group}/{stored_name(name, major)}")
        if array is not None:
            there[name] = np.zeros(shape, bool)
            for index, chunk in array.chunks.items():
                there[name][index[:2]] = not chunk.empty
    called = arrays.get(f"{site_class.group}/{CALLED}")
    if there and called is not None and called.is_readable:
        there[CALLED] = called.values[: shape[0]] != 0
    key_step = arrays.get(f"{site_class.group}/{KEY_STEP}")
    if key_step is None or not key_step.is_readable:
        return {name: stored for name, stored in there.items() if name not in (KEY, VALUE)}
    stored_in = key_step.values[: shape[0]]
    known = (stored_in >= 0) & (stored_in < shape[0])
    for name in there.keys() & {KEY, VALUE}:
        there[name] = known & np.take_along_axis(there[name], np.where(known, stored_in, 0), axis=0)
    return there


def _steps_text(steps: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    listed = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
    return f"step {listed}" if len(steps) == 1 else f"{len(steps)} steps ({listed})"


def _label_problems(trace: StoredTrace, site_class: SiteClass, arrays: Arrays) -> Iterator[Issue]:
    """What labels a class against the manifest, and its times against those of the root."""
    major = trace.manifest.major
    expected: dict[str, tuple[NDArray[Any], str]] = {
        name: (values, "manifest") for name, values in coordinate_values(site_class, major).items()
    }
    of_root = (arrays[name] for name in (TIME, TIMESTEP) if name in arrays)
    expected |= {array.path: (array.values, "root") for array in of_root if array.is_readable}
    for name, (values, source) in expected.items():
        array = arrays.get(f"{site_class.group}/{name}")
        if array is None or not array.is_readable:
            continue
        for at in np.flatnonzero(array.values != values)[:1]:
            found = array.values[at]
            yield problem(array.path, f"expected {values[at]} at {at}, as in the {source}, found {found}")
    group = _member(trace.root, site_class.group)
    paths = [site.path for site in site_class.sites]
    if major > 1 and (not isinstance(group, zarr.Group) or group.attrs.get(LAYERS) != paths):
        yield problem(site_class.group, f"expected the attribute {LAYERS!r} to list the module paths in the manifest")


def _covered_by_cache(root: zarr.Group, site_class: SiteClass) -> int | None:
    """Steps that the cache of marginals says it covers; None where there is none, or one that was never finished."""
    group = _member(root, f"{site_class.group}/{DERIVED}")
    steps = group.attrs.get(DERIVED_STEPS) if isinstance(group, zarr.Group) else None
    return steps if isinstance(steps, int) else None


def _cache_notes(root: zarr.Group, site_class: SiteClass, steps: int) -> Iterator[Issue]:
    """A cache of marginals that does not count: maps are computed as if it were not there."""
    path = f"{site_class.group}/{DERIVED}"
    covered = _covered_by_cache(root, site_class)
    if covered != steps and _has_cache(root, path):
        found = "it was never finished" if covered is None else f"it covers {covered} of {steps} steps"
        yield note(path, f"the kept marginals are not used: {found} (attrace precompute makes them anew)")


def _has_cache(root: zarr.Group, path: str) -> bool:
    try:
        return path in root
    except Exception:  # of metadata that is none
        return True


def _metadata_issues(trace: StoredTrace) -> Iterator[Issue]:
    """Each `zarr.json` against its copy in the root's, which many readers trust alone, and all against the digest."""
    if trace.manifest.status == "recording":
        return
    store = trace.root.store
    root = read_document(store)
    copies = copies_in(root)
    if copies is None:
        yield note("", "no consolidated metadata: readers over plain HTTP need it")
        copies = {}
    else:
        described = {name: one for name, one in root[CONSOLIDATED].items() if name != "metadata"}
        if canonical_json(described) != canonical_json(INLINE):
            yield problem("", f"expected {INLINE} beside the copies in its consolidated metadata, found {described}")
    for path, copy in copies.items():
        try:
            own = read_document(store, path)
        except (FileNotFoundError, ValueError, TraceFormatError) as error:
            yield problem(path, f"its zarr.json, which is in the consolidated metadata, cannot be read: {error}")
            continue
        if canonical_json(without_copies(own)) != canonical_json(without_copies(copy)):
            yield problem(path, "the consolidated metadata differs from its own zarr.json")
    if trace.manifest.major > 1:
        try:
            check_digest(root, where=f"trace {trace.path}", closed=True)
        except TraceFormatError as error:
            yield problem("", str(error))
