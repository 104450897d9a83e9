"""Checks a whole trace against the format: structure, checksums, finite values, steps against their marker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attrace.analysis.integrity.findings import Finding, note, problem
from attrace.analysis.integrity.sound_arrays import SoundArray, covered_by_cache, sound_arrays, sound_images
from attrace.analysis.integrity.sound_chunks import (
    Contents,
    Progress,
    assembled,
    chunk_findings,
    finished_steps,
    read_chunks,
)
from attrace.analysis.storage.store import StoredTrace, open_store, unconsolidated
from attrace.schemas import Manifest, SiteClass, Status
from attrace.schemas.layout import DERIVED, KEY_STEP, STEP_DONE, TIME, TIMESTEP, coordinate_values


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
    steps = finished_steps(root, findings)
    trace.limits.check_cells(len(steps), sum(len(one.sites) for one in manifest.classes), path)
    arrays = sound_arrays(root, manifest, steps, findings) | sound_images(trace, findings)
    contents, content = read_chunks(trace, arrays, steps, progress)
    findings += chunk_findings(arrays, contents)
    findings += _step_findings(manifest, arrays, contents, steps)
    for site_class in manifest.classes:
        findings += _gap_findings(site_class, arrays, contents, steps)
        findings += _coordinate_findings(site_class, contents)
        findings += _cache_findings(root, site_class, len(steps))
    findings += _consolidation_findings(trace, arrays)
    chunks = sum(len(chunks) for chunks in contents.values())
    sound = not any(finding.severity == "problem" for finding in findings)
    of_content = content if sound else None
    return Report(str(path), manifest.status, len(steps), len(arrays), chunks, tuple(findings), of_content)


def _step_findings(
    manifest: Manifest, arrays: Mapping[str, SoundArray], contents: Contents, steps: tuple[int, ...]
) -> Iterator[Finding]:
    """The root arrays and the manifest against the marker."""
    if manifest.status == "recording":
        yield note("", f"the recording was never closed: it still runs or was killed; {len(steps)} steps are finished")
    elif manifest.steps != len(steps):
        yield problem(STEP_DONE, f"the manifest has {manifest.steps} finished steps, the marker {len(steps)}")
    missing = sorted(set(range(steps[-1])) - set(steps)) if steps else []
    if missing:
        yield problem(STEP_DONE, f"expected finished steps without a hole, found {_steps_text(missing)} not finished")
    if _is_readable(TIME, contents):
        calls = assembled(arrays[TIME], contents[TIME])[list(steps)]
        if (np.diff(calls) <= 0).any() or (calls < 0).any():
            yield problem(TIME, f"expected call numbers that rise from 0 on, found {calls.tolist()}")
    if _is_readable(TIMESTEP, contents):
        without = np.flatnonzero(~np.isfinite(assembled(arrays[TIMESTEP], contents[TIMESTEP])[list(steps)]))
        if without.size:
            yield problem(TIMESTEP, f"expected a timestep for every finished step, none in {_steps_text(without)}")


def _is_readable(path: str, contents: Contents) -> bool:
    return path in contents and all(chunk.fault is None for chunk in contents[path].values())


def _gap_findings(
    site_class: SiteClass, arrays: Mapping[str, SoundArray], contents: Contents, steps: tuple[int, ...]
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
            yield problem(site_class.group, f"{message} in step {steps[at]} of layer {site.path!r}")
        gaps = np.array(steps)[parts == 0]
        if gaps.size:
            yield note(site_class.group, f"layer {site.path!r} was not recorded in {_steps_text(gaps)}")


def _presence(
    site_class: SiteClass, contents: Contents, steps: tuple[int, ...], arrays: Mapping[str, SoundArray]
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
    stored_in = assembled(arrays[key_step], contents[key_step])[: shape[0]]
    known = (stored_in >= 0) & (stored_in < shape[0])
    there["key"] = known & np.take_along_axis(there["key"], np.where(known, stored_in, 0), axis=0)
    return there


def _steps_text(steps: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    listed = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
    return f"step {listed}" if len(steps) == 1 else f"{len(steps)} steps ({listed})"


def _coordinate_findings(site_class: SiteClass, contents: Contents) -> Iterator[Finding]:
    """The coordinate arrays against the grids in the manifest."""
    for name, expected in coordinate_values(site_class).items():
        path = f"{site_class.group}/{name}"
        for chunk in contents.get(path, {}).values():
            if chunk.values is not None and not np.array_equal(chunk.values, expected):
                at = int(np.flatnonzero(chunk.values != expected)[0])
                yield problem(path, f"expected {expected[at]} at {at}, as in the manifest, found {chunk.values[at]}")


def _cache_findings(root: zarr.Group, site_class: SiteClass, steps: int) -> Iterator[Finding]:
    """A cache of marginals that does not count: maps are computed as if it were not there."""
    path = f"{site_class.group}/{DERIVED}"
    covered = covered_by_cache(root, site_class)
    if covered != steps and _has_cache(root, path):
        found = "it was never finished" if covered is None else f"it covers {covered} of {steps} steps"
        yield note(path, f"the kept marginals are not used: {found} (attrace precompute makes them anew)")


def _has_cache(root: zarr.Group, path: str) -> bool:
    try:
        return path in root
    except Exception:  # of metadata that is none
        return True


def _consolidation_findings(trace: StoredTrace, arrays: Mapping[str, SoundArray]) -> Iterator[Finding]:
    """Consolidated metadata, which many readers trust alone, against the metadata of each array."""
    if trace.manifest.status == "recording":
        return
    consolidated = trace.root.metadata.consolidated_metadata
    if consolidated is None:
        yield note("", "no consolidated metadata: readers over plain HTTP need it")
        return
    for array in arrays.values():
        copy = consolidated.flattened_metadata.get(array.path)
        if copy is None or copy.to_dict() != array.stored.metadata.to_dict():
            yield problem(array.path, "the consolidated metadata differs from the array's own")
