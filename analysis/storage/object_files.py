"""Files in an object store, on a web server or on a WebDAV server, read and written by obstore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from attrace.analysis.storage.files import BLOCK_BYTES, CheckSize, Files, RangesError, asked
from attrace.schemas.address import scheme_of

WEB_SCHEMES: Final = ("http", "https")
"""Addresses of web servers, of which only WebDAV servers list and write."""

SCHEMES: Final = ("s3", "s3a", "gs", "gcs", "az", "adl", "azure", "abfs", "abfss", "memory", *WEB_SCHEMES)
"""Addresses that obstore knows; `memory://` is one store for the whole process."""

_ABSENT: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

_HINTS: Final = {
    "read": "check the address",
    "listed": "check the address; of web servers only WebDAV servers list folders: name each trace",
    "written": "check the address; of web servers expected a WebDAV server that lets you write",
    "removed": "check the address",
}

_Answer = TypeVar("_Answer")


def _is_of_obstore(error: Exception) -> bool:
    return type(error).__module__.startswith("obstore")


def _may_pass(error: Exception) -> bool:
    """Whether the same request may be answered later: not where it is refused or makes no sense."""
    from obstore.exceptions import GenericError

    if isinstance(error, _ShortAnswerError):
        return True
    return isinstance(error, GenericError) and not _says_no_ranges(error) and not _is_refused(error)


def _is_refused(error: Exception) -> bool:
    return any(f"status code {code}" in str(error) for code in (400, 401, 403, 405, 409, 501))


def _says_no_ranges(error: Exception) -> bool:
    from obstore.exceptions import NotSupportedError

    return isinstance(error, NotSupportedError) or "non-partial response" in str(error)


class _ShortAnswerError(OSError):
    """A server sent less, or more, than it announced."""


def _of_length(content: bytes, length: int) -> bytes:
    if len(content) != length:
        raise _ShortAnswerError(f"expected {length} bytes, {len(content)} came")
    return content


def _may_pass_or_appear(error: Exception) -> bool:
    """As `_may_pass`, of what is read because it should be there: a server may say by mistake that it is not."""
    return _may_pass(error) or isinstance(error, FileNotFoundError)


class ObjectFiles(Files):
    """Files at an address that obstore reads.

    Parameters
    ----------
    address
        The folder, or the file.
    options
        Keywords of `obstore.store.from_url`.
    """

    def __init__(self, address: str, options: tuple[tuple[str, Any], ...] = ()) -> None:
        super().__init__(address)
        self._options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectFiles, (self.address, self._options)

    def size(self, name: str = "", *, insist: bool = False) -> int | None:
        obstore = _client()
        may_pass = _may_pass_or_appear if insist else _may_pass
        found = self._ask("read", name, lambda store, path: obstore.head(store, path), may_pass=may_pass)
        return None if found is None else int(found["size"])

    def sizes(self) -> dict[str, int]:
        obstore = _client()
        root, store = self._prefix(""), self._folder
        listed = self._ask("listed", "", lambda *_: [one for some in obstore.list(store, root) for one in some])
        return {str(one["path"]).removeprefix(root or "").strip("/"): int(one["size"]) for one in listed or ()}

    def children(self, folder: str = "") -> list[str]:
        obstore = _client()
        root, store = self._prefix(folder), self._folder
        listed = self._ask("listed", folder, lambda *_: obstore.list_with_delimiter(store, root))
        if listed is None:
            return []
        folders = [f"{path}/" for path in listed["common_prefixes"] if path != root]  # WebDAV lists the folder itself
        return [
            path.removeprefix(f"{root}/" if root else "")
            for path in [*folders, *(one["path"] for one in listed["objects"])]
        ]

    def read(
        self, name: str = "", start: int = 0, end: int | None = None, *, check: CheckSize | None = None
    ) -> bytes | None:
        obstore = _client()

        def whole(store: Any, path: str) -> bytes:
            answer = obstore.get(store, path)
            if check is not None:
                check(answer.meta["size"])
            return _of_length(bytes(answer.bytes()), answer.meta["size"])

        def part(store: Any, path: str) -> bytes:
            if end is not None:
                return _of_length(bytes(obstore.get_range(store, path, start=start, end=end)), end - start)
            return bytes(obstore.get(store, path, options={"range": {"offset": start}}).bytes())

        return self._ask("read", name, whole if start == 0 and end is None else part, may_pass=_may_pass_or_appear)

    def blocks(self, name: str = "", start: int = 0) -> Iterator[bytes]:
        obstore = _client()
        options: Any = {"range": {"offset": start}} if start else None
        answer = self._ask("read", name, lambda store, path: obstore.get(store, path, options=options))
        if answer is None:
            return
        try:
            yield from map(bytes, answer.stream(min_chunk_size=BLOCK_BYTES))
        except Exception as error:
            raise self._as_system_error("read", name, error) from error

    def write(self, name: str, content: bytes | Path) -> None:
        obstore = _client()
        self._ask("written", name, lambda store, path: obstore.put(store, path, content))

    def delete(self, name: str) -> None:
        obstore = _client()
        self._ask("removed", name, lambda store, path: obstore.delete(store, path))

    @cached_property
    def _folder(self) -> Any:
        """The store at the address; of a web server and in memory, that at the root."""
        return _store(self.address if self._path is None else self._server, self._options)

    @property
    def _server(self) -> str:
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def _path(self) -> str | None:
        """The path from the root of a web server on; None where the store begins at the address."""
        scheme = scheme_of(self.address)
        if scheme == "memory":
            return self.address.partition("://")[2]
        return unquote(urlsplit(self.address).path).strip("/") if scheme in WEB_SCHEMES else None

    def _prefix(self, folder: str) -> str | None:
        return "/".join(part for part in (self._path, folder) if part) or None

    def _at(self, name: str) -> tuple[Any, str]:
        """The store of a file, and its path there."""
        if self._path is not None or name:
            return self._folder, self._prefix(name) or ""
        folder, _, last = self.address.rpartition("/")
        if folder.endswith("/"):  # of a bucket
            return self._folder, ""
        return _store(folder, self._options), last

    def _ask(
        self,
        doing: str,
        name: str,
        ask: Callable[[Any, str], _Answer],
        *,
        may_pass: Callable[[Exception], bool] = _may_pass,
    ) -> _Answer | None:
        """What the server answers; None where nothing is there."""
        try:
            store, path = self._at(name)
            return asked(lambda: ask(store, path), may_pass)
        except _ABSENT:
            return None
        except Exception as error:
            if not _is_of_obstore(error):
                raise
            raise self._as_system_error(doing, name, error) from error

    def _as_system_error(self, doing: str, name: str, error: Exception) -> Exception:
        if not _is_of_obstore(error):
            return error
        where, text = self.where(name), str(error)
        if _says_no_ranges(error):
            return RangesError(
                f"{where}: the server does not answer range requests, by which a packed trace is read: download the "
                "file, or put the trace there unpacked"
            )
        return OSError(f"{where} cannot be {doing} ({text.partition(chr(10))[0]}): {_HINTS[doing]}")


def _store(url: str, options: tuple[tuple[str, Any], ...]) -> Any:
    if scheme_of(url) == "memory":
        return _memory()
    defaults: dict[str, Any] = {"retry_config": {"max_retries": 0}}  # `asked` asks again
    if scheme_of(url) == "http":
        defaults["client_options"] = {"allow_http": True}
    return _client().store.from_url(url, **(defaults | dict(options)))


def _client() -> Any:
    try:
        import obstore.store  # optional: only addresses need it
    except ImportError as error:
        raise ImportError(f"an address needs obstore ({error}): pip install 'attrace[cluster]'") from error
    return obstore


@cache
def _memory() -> Any:
    return _client().store.MemoryStore()
