"""Opening the store of a trace, wherever it lies, and reading its arrays with errors that name the chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.storage import StorePath

from attrace.analysis.storage.address import files_at
from attrace.analysis.storage.array_check import array_problems
from attrace.analysis.storage.checked_store import CheckedStore
from attrace.analysis.storage.chunk_codecs import bounded
from attrace.analysis.storage.files import Files, LocalFiles
from attrace.analysis.storage.limits import Limits
from attrace.analysis.storage.metadata import check_digest, members_of, read_document
from attrace.analysis.storage.stored_array import ExpectedChunks, StoredArray, first_line
from attrace.analysis.storage.zip_files import ZipFiles
from attrace.schemas import (
    ArraySpec,
    AttraceError,
    Manifest,
    TraceFormatError,
    TraceNotFoundError,
    derived_arrays,
    effect_array,
    image_array,
    manifest_arrays,
    parse_manifest,
)
from attrace.schemas.address import is_address
from attrace.schemas.checks import require_type
from attrace.schemas.folders import asides_text
from attrace.schemas.layout import (
    CALLED,
    DERIVED,
    EFFECT,
    IMAGE_NAMES,
    IMAGES,
    KEY_STEP,
    MANIFEST_ATTRIBUTE,
    STEP_DONE,
    is_of_keys,
)


@dataclass(frozen=True)
class StoredTrace:
    """The root group of a trace and its manifest."""

    path: str
    """Where it lies, for messages."""
    root: zarr.Group
    manifest: Manifest
    steps: tuple[int, ...] | None = None
    """The finished steps, where they were read before."""

    @cached_property
    def finished_steps(self) -> tuple[int, ...]:
        """Places of the finished steps along `time`: those that the marker names."""
        if self.steps is not None:
            return self.steps
        finished = tuple(np.flatnonzero(self.array(STEP_DONE)[:] == 1).tolist())
        sites = sum(len(one.sites) for one in self.manifest.classes)
        what = f"{self.path} says that {len(finished)} steps of {sites} layers are finished"
        self.limits.check("files", len(finished) * sites, what)
        return finished

    @cached_property
    def limits(self) -> Limits:
        """What reading it may cost: as of the store, so that the environment is read once."""
        store = self.root.store
        return store.limits if isinstance(store, CheckedStore) else Limits.from_environment()

    @property
    def files(self) -> Files | None:
        """Its files; None of a store that the caller opened."""
        return self.root.store.files if isinstance(self.root.store, CheckedStore) else None

    def array(self, name: str) -> StoredArray:
        """An array of the trace, by its path in the store, if it is what the manifest says.

        Raises
        ------
        TraceFormatError
            If the trace has no such array, or one of other dims, data type, shape or codecs.
        """
        with format_errors(f"trace {self.path}: the metadata of array {name!r} cannot be read"):
            array = self.root.get(name)
        if not isinstance(array, zarr.Array):
            if name == STEP_DONE and self.manifest.status == "recording":
                raise TraceFormatError(
                    f"trace {self.path} has nothing to read: its recording was interrupted before its first step, or "
                    f"has only just begun{asides_text(self.path)}"
                )
            raise TraceFormatError(
                f"trace {self.path} lacks the array {name!r}, which its manifest promises: it was not copied whole, "
                "or something else wrote it (attrace verify lists what is wrong)"
            )
        problem = next(array_problems(array, self._spec(name, array), self.limits), None)
        if problem is not None:
            raise TraceFormatError(f"trace {self.path}: array {name!r}: {problem} (attrace verify lists what is wrong)")
        return StoredArray(self.path, name, bounded(array), self.expected(name))

    def check_steps(self) -> None:
        """Refuse a closed trace whose marker names other steps than the manifest counts: it is damaged or out of date.

        Raises
        ------
        TraceFormatError
            If it does.
        """
        found, expected = len(self.finished_steps), self.manifest.steps
        if self.manifest.status != "recording" and found != expected:
            raise TraceFormatError(
                f"trace {self.path}: the manifest says that {expected} steps are finished, the array {STEP_DONE!r} "
                f"{found}: its chunk c/0 was lost, or is older (attrace verify lists what is wrong)"
            )

    @property
    def image_names(self) -> list[str]:
        """Names of the pictures; a store that cannot list is asked for the usual ones."""
        if self.root.metadata.consolidated_metadata is None and not self.root.store.supports_listing:
            return [name for name in IMAGE_NAMES if f"{IMAGES}/{name}" in self.root]
        return self.pictures()

    def knows(self, name: str) -> bool:
        """Whether the format says what the array at a path is."""
        group, _, rest = name.partition("/")
        return name in self._specs or (group == IMAGES and rest != "" and "/" not in rest)

    def required_paths(self) -> list[str]:
        """Paths of every array that the manifest requires; the cache of marginals and effects are none of them."""
        return [path for path in self._specs if f"/{DERIVED}/" not in path and not path.endswith(f"/{EFFECT}")]

    def group(self, name: str) -> zarr.Group | None:
        """A group of the trace, by its path in the store; None where there is none.

        Raises
        ------
        TraceFormatError
            If its metadata cannot be read.
        """
        with format_errors(f"trace {self.path}: the metadata of group {name!r} cannot be read"):
            group = self.root.get(name)
        return group if isinstance(group, zarr.Group) else None

    def members(self) -> list[tuple[str, zarr.Array[Any] | zarr.Group]]:
        """Every group and array below the root, also those that we do not know, by path.

        Raises
        ------
        TraceFormatError
            If metadata of one cannot be read.
        """
        with format_errors(f"trace {self.path}: metadata of a group or array cannot be read"):
            return members_of(self.root)

    def pictures(self) -> list[str]:
        """Names of the pictures.

        Raises
        ------
        TraceFormatError
            If metadata cannot be read.
        """
        found = self.group(IMAGES)
        with format_errors(f"trace {self.path}: group {IMAGES!r} cannot be listed"):
            names = [] if found is None else sorted(found.array_keys())
        self.limits.check("pictures", len(names), f"trace {self.path}: {len(names)} pictures")
        return names

    def expected(self, name: str) -> ExpectedChunks | None:
        """Which chunks of an array must be there; None where the format does not say so."""
        spec, (group, _, last) = self._specs.get(name), name.rpartition("/")
        if name == STEP_DONE or not self.knows(name):
            return None
        if spec is None or spec.dims[0] != "time":
            return ExpectedChunks()
        if "layer" not in spec.dims or last in (KEY_STEP, CALLED) or group.endswith(f"/{DERIVED}"):
            return ExpectedChunks(self.finished_steps)
        is_key = is_of_keys(last, self.manifest.major)
        said_by = CALLED if f"{group}/{CALLED}" in self._specs and not is_key else KEY_STEP
        if f"{group}/{said_by}" not in self._specs:
            return None  # scores in version 1 of the format
        return ExpectedChunks(self.finished_steps, self.array(f"{group}/{said_by}"), is_key)

    @cached_property
    def _specs(self) -> dict[str, ArraySpec]:
        """What the manifest requires of every array, by path; no pictures among them, and of length 0 along time."""
        specs = manifest_arrays(self.manifest, 0)
        for one in self.manifest.classes:
            specs |= {f"{one.group}/{DERIVED}/{spec.name}": spec for spec in derived_arrays(one, 0)}
            specs[f"{one.group}/{EFFECT}"] = effect_array(one, by_head=False)
        return specs

    def _spec(self, name: str, array: zarr.Array[Any]) -> ArraySpec:
        """What an array is to be; of a picture, which may have any size, that of its own."""
        spec = self._specs.get(name)
        if spec is None:
            return image_array(name, array.shape if array.ndim in (2, 3) else (0, 0), self.manifest.major)
        if spec.name == EFFECT and array.ndim == 2:
            of_class = next(one for one in self.manifest.classes if name == f"{one.group}/{EFFECT}")
            return effect_array(of_class, by_head=True)
        if spec.dims[0] != "time" or name == STEP_DONE:
            return spec
        return replace(spec, shape=(max(self.finished_steps, default=-1) + 1, *spec.shape[1:]))


def open_store(
    source: str | Path | Store, storage_options: Mapping[str, Any] | None = None, *, check: bool = True
) -> StoredTrace:
    """Open a trace for reading: its metadata only.

    Parameters
    ----------
    source
        A folder, a `.zip` file, an address of either (`s3://`, `https://`, `hf://`, ...), or a Zarr store.
    storage_options
        Options of the address's client: keywords of `obstore.store.from_url`, or of `HfFileSystem`.

    check
        Whether to compare the metadata with its digest.

    Raises
    ------
    TraceNotFoundError
        If there is nothing at `source`.
    TraceFormatError
        If what is there is not a trace, or its metadata is not what was written.
    TraceVersionError
        If it is written in a newer major version of the format.
    InputTypeError
        If `source` is none of these.
    """
    require_type(source, (str, PathLike, Store), "source", "a path, an address or a Zarr store")
    return _open(str(source), _as_store(source, storage_options), check=check)


def reopen(stored: StoredTrace) -> StoredTrace:
    """The same trace with its metadata read anew."""
    return _open(stored.path, stored.root.store, check=True)


def unconsolidated(stored: StoredTrace) -> zarr.Group:
    """The root group of a trace, whose members are read from the metadata of each, not from the copy of all.

    Raises
    ------
    TraceFormatError
        If its metadata cannot be read.
    """
    with format_errors(f"{stored.path}: the metadata of the root cannot be read"):
        return zarr.open_group(stored.root.store, mode="r", zarr_format=3, use_consolidated=False)


def _open(path: str, store: Store, *, check: bool) -> StoredTrace:
    try:
        with format_errors(f"{path} is not an attrace trace: its zarr.json cannot be read"):
            document = read_document(store)
            root = zarr.Group(zarr.AsyncGroup.from_dict(StorePath(store), dict(document)))
            attribute = root.attrs.get(MANIFEST_ATTRIBUTE)
    except FileNotFoundError as error:
        kind = TraceNotFoundError if is_address(path) else TraceFormatError
        advice = _advice(path)
        raise kind(f"no trace at {path}: expected a Zarr v3 group (a file zarr.json), found none; {advice}") from error
    trace = StoredTrace(path, root, parse_manifest(attribute, where=path))
    if check and trace.manifest.major > 1:
        check_digest(document, where=f"trace {path}", closed=trace.manifest.status != "recording")
    sites = sum(len(one.sites) for one in trace.manifest.classes)
    trace.limits.check("sites", sites, f"{path}: {sites} layers")
    return trace


def _advice(path: str) -> str:
    """What to do about a path that is no trace; where it is a folder of one trace, its name."""
    folder = Path(path)
    traces = (
        [] if is_address(path) else [*folder.glob("*.zip"), *(one.parent for one in folder.glob("[!.]*/zarr.json"))]
    )
    return f"did you mean {traces[0]}?" if len(traces) == 1 else f"check it{asides_text(path)}"


@contextmanager
def format_errors(problem: str) -> Iterator[None]:
    """Turn whatever a library raises on metadata that it cannot make sense of into a TraceFormatError."""
    try:
        yield
    except (AttraceError, OSError, ImportError):
        raise
    except Exception as error:  # zarr and zipfile raise key, value, type, attribute and recursion errors, and others
        raise TraceFormatError(f"{problem} ({first_line(error)})") from error


def _as_store(source: str | Path | Store, storage_options: Mapping[str, Any] | None) -> Store:
    if isinstance(source, Store):
        return source
    limits, files = Limits.from_environment(), files_at(source, storage_options)
    if isinstance(files, LocalFiles) and not files.path.exists():
        what = f"no trace at {files.path}: there is no such file or folder; check the path"
        raise TraceNotFoundError(what + asides_text(files.path))
    if files.path.is_file() if isinstance(files, LocalFiles) else files.address.endswith(".zip"):
        files = ZipFiles(files, limits)
    return CheckedStore(files, limits)
