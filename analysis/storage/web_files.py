"""The files of a trace on a plain web server, which lists nothing: consolidated metadata says what there may be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import zarr

from attrace.analysis.storage.limits import Limits, variable
from attrace.analysis.storage.remote_zip import ObstoreObject, answers_ranges, obstore_errors
from attrace.analysis.storage.store import StoredTrace, object_store, open_store
from attrace.analysis.storage.zip_entries import checked_name
from attrace.schemas import TraceFormatError, TraceNotFoundError

_REQUESTS: Final = 8
"""Requests for the length of a file that run at a time."""


@dataclass(frozen=True)
class WebFiles:
    """A packed trace, or the files of a folder, at `http://` or `https://`."""

    url: str
    storage_options: Mapping[str, Any]
    block_bytes: int
    """What is read of a file at a time."""

    def sizes(self) -> dict[str, int]:
        """Length of every file by its name below the address; of a packed trace under the empty name.

        Raises
        ------
        TraceNotFoundError
            If there is nothing.
        TraceFormatError
            If the trace says that it holds more files than the limits allow, or has no consolidated metadata.
        """
        if self.url.endswith(".zip"):
            size = self._size("")
            if size is None:
                raise TraceNotFoundError(f"no trace at {self.url}: there is nothing; check the address")
            return {"": size}
        names = _names(open_store(self.url, self.storage_options))
        with ThreadPoolExecutor(_REQUESTS) as pool:
            sizes = dict(zip(names, pool.map(self._size, names), strict=True))
        return {name: size for name, size in sizes.items() if size is not None}

    def blocks(self, name: str, begin: int) -> Iterator[bytes]:
        """The bytes of a file from a place on."""
        remote = self._object(name)
        if begin == 0:
            import obstore

            with obstore_errors(remote.url):
                yield from map(bytes, obstore.get(self._store, remote.name).stream(min_chunk_size=self.block_bytes))
            return
        for start in range(begin, remote.size, self.block_bytes):
            yield remote.read(start, min(remote.size, start + self.block_bytes))

    def can_go_on(self, name: str) -> bool:
        """Whether a part of a file can be asked for."""
        return answers_ranges(self._object(name))

    @cached_property
    def _store(self) -> Any:
        return object_store(self._folder, self.storage_options)

    @property
    def _folder(self) -> str:
        return self.url.rpartition("/")[0] if self.url.endswith(".zip") else self.url

    def _object(self, name: str) -> ObstoreObject:
        place = name or self.url.rpartition("/")[2]
        return ObstoreObject(f"{self._folder}/{place}", self._store, place)

    def _size(self, name: str) -> int | None:
        try:
            return self._object(name).size
        except FileNotFoundError:
            return None


def _names(stored: StoredTrace) -> list[str]:
    """Names of every file that a trace may consist of: metadata of each group and array, and each chunk."""
    if stored.root.metadata.consolidated_metadata is None:
        raise TraceFormatError(
            f"{stored.path} has no consolidated metadata, and a web server lists no files: it was not closed (attrace "
            "repair closes it), or ask for it packed"
        )
    members = stored.members()
    limit = Limits.from_environment().entries
    if len(members) + sum(member.nchunks for _, member in members if isinstance(member, zarr.Array)) > limit:
        raise TraceFormatError(
            f"{stored.path} says that it has over {limit} files: if you trust it, raise {variable('entries')}"
        )
    names = ["zarr.json"]
    for path, member in members:
        names.append(f"{path}/zarr.json")
        if isinstance(member, zarr.Array):
            grid = (range(count) for count in member.cdata_shape)
            names += [f"{path}/{member.metadata.encode_chunk_key(index)}" for index in itertools.product(*grid)]
    return [checked_name(name, stored.path) for name in names]
