"""Opening the store of a trace, wherever it lies, and reading its arrays with errors that name the chunk."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray
from zarr.abc.store import Store

from attrace.analysis.storage.bounded_codecs import bounded, foreign_codecs
from attrace.analysis.storage.bounded_stores import BoundedFsspecStore, BoundedObjectStore
from attrace.analysis.storage.folder import TraceFolder
from attrace.analysis.storage.limits import Limits, variable
from attrace.analysis.storage.remote_zip import FsspecObject, ObstoreObject, RemoteObject, RemoteZipStore
from attrace.analysis.storage.zip_entries import check_entries
from attrace.schemas import (
    ArraySpec,
    AttraceError,
    Manifest,
    TraceFormatError,
    TraceNotFoundError,
    class_arrays,
    derived_arrays,
    image_array,
    parse_manifest,
    root_arrays,
)
from attrace.schemas.layout import DERIVED, IMAGE_NAMES, IMAGES, MANIFEST_ATTRIBUTE, STEP_DONE, chunk_key

OBSTORE_SCHEMES: Final = ("s3", "gs", "gcs", "az", "abfs", "http", "https")
"""Addresses that obstore reads, when it is installed; every other one is left to fsspec."""

_RETRIES: Final = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
"""How long a server that does not answer is asked again; obstore's own default is minutes."""


@dataclass(frozen=True)
class StoredTrace:
    """The root group of a trace and its manifest."""

    path: str
    """Where it lies, for messages."""
    root: zarr.Group
    manifest: Manifest

    @cached_property
    def finished_places(self) -> tuple[int, ...]:
        """Places of the finished steps along `time`: those that the marker names."""
        finished = tuple(np.flatnonzero(self.array(STEP_DONE)[:] == 1).tolist())
        self.limits.check_cells(len(finished), sum(len(one.sites) for one in self.manifest.classes), self.path)
        return finished

    @cached_property
    def limits(self) -> Limits:
        """What reading it may cost."""
        return Limits.from_environment()

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
            raise TraceFormatError(
                f"trace {self.path} lacks the array {name!r}, which its manifest promises: it was not copied whole, "
                "or something else wrote it (attrace verify lists what is wrong)"
            )
        problem = next(self._problems(name, array), None)
        if problem is not None:
            raise TraceFormatError(f"trace {self.path}: array {name!r}: {problem} (attrace verify lists what is wrong)")
        return StoredArray(self.path, name, bounded(array))

    @property
    def image_names(self) -> list[str]:
        """Names of the pictures; a store that cannot list is asked for the usual ones."""
        if self.root.metadata.consolidated_metadata is None and not self.root.store.supports_listing:
            return [name for name in IMAGE_NAMES if f"{IMAGES}/{name}" in self.root]
        return self.arrays_in(IMAGES)

    def knows(self, name: str) -> bool:
        """Whether the format says what the array at a path is."""
        group, _, rest = name.partition("/")
        return name in self._specs or (group == IMAGES and rest != "" and "/" not in rest)

    def required_paths(self) -> list[str]:
        """Paths of every array that the manifest requires; the cache of marginals is none of them."""
        return [path for path in self._specs if f"/{DERIVED}/" not in path]

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
            return list(self.root.members(max_depth=None))

    def arrays_in(self, group: str) -> list[str]:
        """Names of the arrays in a group; none where there is no such group.

        Raises
        ------
        TraceFormatError
            If metadata cannot be read.
        """
        found = self.group(group)
        with format_errors(f"trace {self.path}: group {group!r} cannot be listed"):
            return [] if found is None else sorted(found.array_keys())

    @cached_property
    def _specs(self) -> dict[str, ArraySpec]:
        """What the manifest requires of every array, by path; no pictures among them, and of length 0 along time."""
        specs = {spec.name: spec for spec in root_arrays(0)}
        for one in self.manifest.classes:
            specs |= {f"{one.group}/{spec.name}": spec for spec in class_arrays(one, 0)}
            specs |= {f"{one.group}/{DERIVED}/{spec.name}": spec for spec in derived_arrays(one, 0)}
        return specs

    def _problems(self, name: str, array: zarr.Array[Any]) -> Iterator[str]:
        """What makes an array another than the manifest requires, or too large to be read."""
        spec = self._specs.get(name)
        dims = getattr(array.metadata, "dimension_names", None) or ()
        if spec is None:
            if len(array.shape) not in (2, 3):
                yield f"expected a picture, (row, column) or (row, column, channel), found shape {array.shape}"
                return
            spec = image_array(name, array.shape)
        if dims != spec.dims:
            yield f"expected dims ({', '.join(spec.dims)}), found ({', '.join(map(str, dims))})"
            return
        if array.dtype.name != spec.dtype:
            yield f"expected data type {spec.dtype}, found {array.dtype.name}"
        foreign = foreign_codecs(array)
        if foreign:
            yield f"expected core codecs, found {', '.join(foreign)}"
        yield from self._shape_problems(name, array, spec)

    def _shape_problems(self, name: str, array: zarr.Array[Any], spec: ArraySpec) -> Iterator[str]:
        shape, timed = array.shape, spec.dims[0] == "time"
        if shape[timed:] != spec.shape[timed:]:
            yield f"expected shape {spec.shape[timed:]}{' after time' if timed else ''}, found {shape[timed:]}"
            return
        if timed and shape[0] > self.limits.steps:
            yield f"{shape[0]} steps, the limit is {self.limits.steps}: if you trust it, raise {variable('steps')}"
            return
        if timed and name != STEP_DONE and shape[0] <= max(self.finished_places, default=-1):
            yield f"expected {max(self.finished_places) + 1} steps or more, found {shape[0]}"
        whole = math.prod(shape) if not timed else 0
        size = max(whole, math.prod(array.chunks)) * array.dtype.itemsize
        if size > self.limits.chunk_bytes:
            yield (
                f"{size} bytes in one piece, the limit is {self.limits.chunk_bytes}: if you trust it, raise "
                f"{variable('chunk_bytes')}"
            )


@dataclass(frozen=True)
class StoredArray:
    """One array of a trace."""

    trace_path: str
    name: str
    array: zarr.Array[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Length along each dimension."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the stored values."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.array.ndim

    def __getitem__(self, selection: Any) -> NDArray[Any]:
        """Read a part, by basic indexing.

        Raises
        ------
        TraceFormatError
            If a chunk cannot be decoded: its bytes are not those that were written.
        """
        try:
            return np.asarray(self.array[selection])
        except (AttraceError, OSError, IndexError):
            raise
        except Exception as error:
            if _is_of_the_network(error):
                raise
            self._raise_for_broken_chunk(selection, error)
            raise TraceFormatError(
                f"trace {self.trace_path}: array {self.name!r} cannot be read ({_first_line(error)}): copy the trace "
                "again"
            ) from error

    def _raise_for_broken_chunk(self, selection: Any, error: Exception) -> None:
        for chunk in self._chunks_of(selection):
            region = tuple(slice(i * n, (i + 1) * n) for i, n in zip(chunk, self.array.chunks, strict=True))
            try:
                self.array[region]
            except OSError:
                raise
            except Exception:
                raise TraceFormatError(
                    f"trace {self.trace_path}: chunk {chunk_key(chunk)} of array {self.name!r} cannot be decoded "
                    f"({_first_line(error)}): its bytes are not those that were written; copy the trace "
                    "again, or select other steps or layers"
                ) from error

    def _chunks_of(self, selection: Any) -> Iterator[tuple[int, ...]]:
        """Grid positions of the chunks that a basic selection touches."""
        given = selection if isinstance(selection, tuple) else (selection,)
        parts = [part for part in given if part is not Ellipsis]
        parts += [slice(None)] * (self.ndim - len(parts))
        touched = [
            np.unique(np.atleast_1d(np.arange(length)[part]) // chunk).tolist()
            for length, part, chunk in zip(self.shape, parts, self.array.chunks, strict=True)
        ]
        return itertools.product(*touched)


def open_store(source: str | Path | Store, storage_options: Mapping[str, Any] | None = None) -> StoredTrace:
    """Open a trace for reading: its metadata only.

    Parameters
    ----------
    source
        A folder, a `.zip` file, an address of either (`s3://`, `https://`, `hf://`, ...), or a Zarr store.
    storage_options
        Options of the address's file system: keywords of `obstore.store.from_url`, or of fsspec where that is used.

    Raises
    ------
    TraceNotFoundError
        If there is nothing at `source`.
    TraceFormatError
        If what is there is not a trace.
    TraceVersionError
        If it is written in a newer major version of the format.
    """
    return _open(str(source), _as_store(source, storage_options))


def reopen(stored: StoredTrace) -> StoredTrace:
    """The same trace with its metadata read anew."""
    return _open(stored.path, stored.root.store)


def unconsolidated(stored: StoredTrace) -> zarr.Group:
    """The root group of a trace, whose members are read from the metadata of each, not from the copy of all.

    Raises
    ------
    TraceFormatError
        If its metadata cannot be read.
    """
    with format_errors(f"{stored.path}: the metadata of the root cannot be read"):
        return zarr.open_group(stored.root.store, mode="r", zarr_format=3, use_consolidated=False)


def _open(path: str, store: Store) -> StoredTrace:
    try:
        with format_errors(f"{path} is not an attrace trace: its zarr.json cannot be read"):
            root = zarr.open_group(store, mode="r", zarr_format=3)
            attribute = root.attrs.get(MANIFEST_ATTRIBUTE)
    except FileNotFoundError as error:
        kind = TraceNotFoundError if "://" in path else TraceFormatError
        raise kind(f"no trace at {path}: expected a Zarr v3 group (a file zarr.json), found none; check it") from error
    trace = StoredTrace(path, root, parse_manifest(attribute, where=path))
    sites = sum(len(one.sites) for one in trace.manifest.classes)
    if sites > trace.limits.sites:
        raise TraceFormatError(
            f"{path} has {sites} layers, the limit is {trace.limits.sites}: if you trust it, raise {variable('sites')}"
        )
    return trace


@contextmanager
def format_errors(problem: str) -> Iterator[None]:
    """Turn whatever a library raises on metadata that it cannot make sense of into a TraceFormatError."""
    try:
        yield
    except (AttraceError, OSError, ImportError):
        raise
    # zarr raises nearly anything: JSON, key, type, attribute and recursion errors among them
    except Exception as error:
        if _is_of_the_network(error):
            raise
        raise TraceFormatError(f"{problem} ({_first_line(error)})") from error


def _is_of_the_network(error: Exception) -> bool:
    """Whether an address cannot be read; obstore is not imported to be asked."""
    return type(error).__module__.startswith("obstore")


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0].partition(". ")[0][:200]
    return text or type(error).__name__


def _as_store(source: str | Path | Store, storage_options: Mapping[str, Any] | None) -> Store:
    if isinstance(source, Store):
        return source
    scheme, found, _ = str(source).partition("://")
    if found and scheme != "file":
        return _remote_store(str(source), scheme, dict(storage_options or {}))
    path = Path(str(source).removeprefix("file://")).expanduser()
    if not path.exists():
        raise TraceNotFoundError(f"no trace at {path}: there is no such file or folder; check the path")
    if path.is_dir():
        return TraceFolder(path, read_only=True)
    return _zip_store(path)


def _zip_store(path: Path) -> Store:
    if not zipfile.is_zipfile(path):
        raise TraceFormatError(f"{path} is not an attrace trace: expected a folder or a .zip file, found another file")
    try:
        with format_errors(f"{path} is not a packed trace"), zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            check_entries(entries, path, path.stat().st_size)
    except OSError as error:  # of a table of contents that points before the beginning of the file
        raise TraceFormatError(f"{path} is not a packed trace, or was cut off ({error})") from error
    return zarr.storage.ZipStore(path, mode="r", read_only=True)


def _remote_store(url: str, scheme: str, storage_options: dict[str, Any]) -> Store:
    packed = url.endswith(".zip")
    if scheme in OBSTORE_SCHEMES:
        try:
            import obstore.store  # noqa: F401 (optional: only addresses need it)
        except ImportError:
            pass
        else:
            if packed:
                folder, _, name = url.rpartition("/")
                return _remote_zip(ObstoreObject(url, object_store(folder, storage_options), name))
            return BoundedObjectStore(object_store(url, storage_options), read_only=True)
    try:
        if packed:
            from fsspec.core import url_to_fs  # optional, as obstore is

            return _remote_zip(FsspecObject(url, *url_to_fs(url, **storage_options)))
        return BoundedFsspecStore.from_url(url, storage_options=storage_options, read_only=True)
    except ImportError as error:
        wanted = "obstore or fsspec" if scheme in OBSTORE_SCHEMES else f"fsspec and its client for {scheme}://"
        raise ImportError(
            f"reading {url} needs {wanted} ({error}): pip install 'attrace[cluster]', and for hf:// huggingface_hub"
        ) from error


def object_store(url: str, storage_options: Mapping[str, Any] | None) -> Any:
    """The store of obstore at an address, which gives up soon where no server answers."""
    import obstore.store  # optional: only addresses need it

    defaults: dict[str, Any] = {"retry_config": _RETRIES}
    if url.startswith("http://"):
        defaults["client_options"] = {"allow_http": True}
    return obstore.store.from_url(url, **(defaults | dict(storage_options or {})))


def _remote_zip(remote: RemoteObject) -> Store:
    try:
        return RemoteZipStore(remote)
    except FileNotFoundError as error:
        raise TraceNotFoundError(f"no trace at {remote.url}: there is no such object; check the address") from error
