"""Files in a repository of the Hugging Face hub: one commit for all that is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from attrace.analysis.storage.files import CheckSize, Files, asked

HUB: Final = "hf"
"""Scheme of its addresses, such as `hf://datasets/owner/name/run.zarr`."""

_Answer = TypeVar("_Answer")


class HubFiles(Files):
    """Files in a repository, read by `HfFileSystem` and written by `HfApi`.

    Parameters
    ----------
    address
        The folder, or the file, such as `hf://datasets/owner/name/run.zarr`.
    options
        Keywords of `HfFileSystem`: `token`, `endpoint`.
    """

    def __init__(self, address: str, options: tuple[tuple[str, Any], ...] = ()) -> None:
        super().__init__(address)
        self._options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return HubFiles, (self.address, self._options)

    def size(self, name: str = "", *, insist: bool = False) -> int | None:  # noqa: ARG002
        found = self._ask(lambda: self._system.info(self.where(name)))
        return None if found is None or found["type"] == "directory" else int(found["size"])

    def sizes(self) -> dict[str, int]:
        found = self._ask(lambda: self._system.find(self.address, detail=True)) or {}
        root = self._system._strip_protocol(self.address)
        return {path.removeprefix(root).strip("/"): int(one["size"]) for path, one in found.items()}

    def children(self, folder: str = "") -> list[str]:
        found = self._ask(lambda: self._system.ls(self.where(folder), detail=True)) or []
        return [one["name"].rpartition("/")[2] + ("/" if one["type"] == "directory" else "") for one in found]

    def read(
        self, name: str = "", start: int = 0, end: int | None = None, *, check: CheckSize | None = None
    ) -> bytes | None:
        if check is not None and start == 0 and end is None:
            check(self.size(name) or 0)
        return self._ask(lambda: bytes(self._system.cat_file(self.where(name), start=start, end=end)))

    def write(self, name: str, content: bytes | Path) -> None:
        self._commit({name: content})

    def delete(self, name: str) -> None:
        self._ask(lambda: self._system.rm_file(self.where(name)))
        self._system.invalidate_cache()

    def send(self, local: Mapping[str, Path], done: Callable[[], None]) -> list[str]:
        sent = [name for name, path in local.items() if not self.holds(name, path)]
        if sent:
            self._commit({name: local[name] for name in sent})
        for name, path in local.items():
            self.require(name, path)
            done()
        return sent

    def holds(self, name: str, local: Path) -> bool:
        """Whether the hub says that a file has the content of a local one: its SHA-256, or its SHA-1 in Git."""
        found = self._ask(lambda: self._system.info(self.where(name)))
        if found is None or found["type"] == "directory" or found["size"] != local.stat().st_size:
            return False
        content = local.read_bytes()
        if found.get("lfs"):
            return bool(found["lfs"]["sha256"] == hashlib.sha256(content).hexdigest())
        of_git = b"blob %d\0" % len(content) + content
        return bool(found["blob_id"] == hashlib.sha1(of_git, usedforsecurity=False).hexdigest())

    def _commit(self, contents: Mapping[str, bytes | Path]) -> None:
        from huggingface_hub import CommitOperationAdd, HfApi

        resolved = self._system.resolve_path(self.address)
        operations = [
            CommitOperationAdd("/".join(part for part in (resolved.path_in_repo, name) if part), content)
            for name, content in contents.items()
        ]
        HfApi(**self._api_options).create_commit(
            resolved.repo_id,
            operations,
            repo_type=resolved.repo_type,
            revision=resolved.revision,
            commit_message=f"Add {self.address.rpartition('/')[2]}",
        )
        self._system.invalidate_cache()

    @property
    def _api_options(self) -> dict[str, Any]:
        return {name: value for name, value in self._options if name in ("token", "endpoint")}

    @cached_property
    def _system(self) -> Any:
        try:
            from huggingface_hub import HfFileSystem
        except ImportError as error:
            raise ImportError(f"{self.address} needs huggingface_hub: pip install huggingface_hub") from error
        return HfFileSystem(skip_instance_cache=True, **dict(self._options))

    def _ask(self, ask: Callable[[], _Answer]) -> _Answer | None:
        """What the hub answers; None where nothing is there. Its errors are those of the system."""
        try:
            return asked(ask, _may_pass)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


def _may_pass(error: Exception) -> bool:
    answer = getattr(error, "response", None)
    return isinstance(error, OSError) and (answer is None or answer.status_code >= 500)
