"""A WebDAV server as much of a file system as sending and listing traces takes; obstore speaks to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from attrace.analysis.storage.store import object_store

WEB_SCHEMES: Final = ("http", "https")
"""Addresses of web servers."""


class WebDAVFiles:
    """Files of a server by their path on it, with the methods of fsspec that sending files uses.

    Parameters
    ----------
    store
        The store of obstore at the root of the server.
    server
        Its address, for messages.
    """

    def __init__(self, store: Any, server: str) -> None:
        self._store, self._server = store, server

    def info(self, path: str) -> dict[str, Any]:
        """Metadata of a file: its `size`."""
        import obstore  # optional: only addresses need it

        with self._errors("read", path):
            return dict(obstore.head(self._store, path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` up to `end`."""
        import obstore

        with self._errors("read", path):
            if start is None or end is None:
                return bytes(obstore.get(self._store, path).bytes())
            return bytes(obstore.get_range(self._store, path, start=start, end=end))

    def children(self, path: str) -> tuple[list[str], list[str]]:
        """Paths of the folders and of the files directly in a folder."""
        import obstore

        with self._errors("listed", path, "only a WebDAV server lists folders; name each trace"):
            found = obstore.list_with_delimiter(self._store, path)
        return [str(one) for one in found["common_prefixes"]], [str(one["path"]) for one in found["objects"]]

    def find(self, path: str, *, detail: bool) -> dict[str, dict[str, Any]]:  # noqa: ARG002
        """Metadata of the files in a folder, at any depth, by path; none where there is no folder."""
        import obstore

        with self._errors("listed", path, "only a WebDAV server lists folders"):
            found = [one for some in obstore.list(self._store, path) for one in some]
        return {str(one["path"]): dict(one) for one in found}

    def makedirs(self, path: str, *, exist_ok: bool) -> None:
        """Do nothing: writing a file makes its folders."""

    def put_file(self, local: str, path: str) -> None:
        """Write a file."""
        import obstore

        with self._errors("written", path, "expected a WebDAV server that lets you write"):
            obstore.put(self._store, path, Path(local))

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        import obstore

        with self._errors("removed", path):
            obstore.delete(self._store, path)

    def invalidate_cache(self) -> None:
        """Do nothing: nothing is remembered."""

    @contextmanager
    def _errors(self, done: str, path: str, hint: str = "check the address") -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            raise OSError(
                f"{self._server}/{path} cannot be {done} ({str(error).partition(chr(10))[0]}): {hint}"
            ) from error


def webdav_files(url: str, storage_options: Mapping[str, Any] | None) -> tuple[WebDAVFiles, str]:
    """The server of an address, and the path on it."""
    server, path = split_web_address(url)
    return WebDAVFiles(object_store(server, storage_options), server), path


def split_web_address(url: str) -> tuple[str, str]:
    """The server of an address, and the path on it.

    >>> split_web_address("https://example.org:8443/a%20b/run.zarr/")
    ('https://example.org:8443', 'a b/run.zarr')
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", unquote(parts.path).strip("/")
