"""Opening the store of a trace, wherever it lies, and reading its arrays with errors that name the chunk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray
from zarr.abc.store import Store

from attrace.analysis.remote import FsspecObject, ObstoreObject, RemoteObject, RemoteZipStore
from attrace.schemas import Manifest, TraceFormatError, TraceNotFoundError, parse_manifest
from attrace.schemas.layout import MANIFEST_ATTRIBUTE

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

    def array(self, name: str) -> StoredArray:
        """An array of the trace, by its path in the store.

        Raises
        ------
        TraceFormatError
            If the trace has no such array.
        """
        array = self.root.get(name)
        if not isinstance(array, zarr.Array):
            raise TraceFormatError(
                f"trace {self.path} lacks the array {name!r}, which its manifest promises: it was not copied whole, "
                "or something else wrote it (attrace verify lists what is wrong)"
            )
        return StoredArray(self.path, name, array)


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
        except (ValueError, RuntimeError) as error:
            self._raise_for_broken_chunk(selection, error)
            raise

    def _raise_for_broken_chunk(self, selection: Any, error: Exception) -> None:
        for chunk in self._chunks_of(selection):
            region = tuple(slice(i * n, (i + 1) * n) for i, n in zip(chunk, self.array.chunks, strict=True))
            try:
                self.array[region]
            except (ValueError, RuntimeError):
                key = "/".join(("c", *map(str, chunk)))
                raise TraceFormatError(
                    f"trace {self.trace_path}: chunk {key} of array {self.name!r} cannot be decoded "
                    f"({str(error).partition('. ')[0]}): its bytes are not those that were written; copy the trace "
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


def _open(path: str, store: Store) -> StoredTrace:
    try:
        root = zarr.open_group(store, mode="r", zarr_format=3)
    except FileNotFoundError as error:
        kind = TraceNotFoundError if "://" in path else TraceFormatError
        raise kind(f"no trace at {path}: expected a Zarr v3 group (a file zarr.json), found none; check it") from error
    except (ValueError, TypeError, KeyError) as error:
        raise TraceFormatError(f"{path} is not an attrace trace: its zarr.json cannot be read ({error})") from error
    return StoredTrace(path, root, parse_manifest(root.attrs.get(MANIFEST_ATTRIBUTE), where=path))


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
        return zarr.storage.LocalStore(path, read_only=True)
    return _zip_store(path)


def _zip_store(path: Path) -> Store:
    import zipfile

    if not zipfile.is_zipfile(path):
        raise TraceFormatError(f"{path} is not an attrace trace: expected a folder or a .zip file, found another file")
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
            return zarr.storage.ObjectStore(object_store(url, storage_options), read_only=True)
    try:
        if packed:
            from fsspec.core import url_to_fs  # optional, as obstore is

            return _remote_zip(FsspecObject(url, *url_to_fs(url, **storage_options)))
        return zarr.storage.FsspecStore.from_url(url, storage_options=storage_options, read_only=True)
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
