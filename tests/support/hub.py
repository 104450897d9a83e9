"""A stand-in for the Hugging Face hub: what its client offers of a repository, kept in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LARGE = 2000
"""Bytes from which on a file is one of LFS, with the SHA-256 of its content."""


@dataclass
class Hub:
    """Files by their path, and the commits that wrote them: the paths of each."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    reads: int = 0

    def file_system(self, **_: Any) -> Any:
        """What stands for `HfFileSystem`."""
        return _FileSystem(self)

    def api(self, **_: Any) -> Any:
        """What stands for `HfApi`."""
        return SimpleNamespace(create_commit=self._commit)

    def _commit(self, repo_id: str, operations: Iterable[Any], *, repo_type: str, **_: Any) -> None:
        added = {f"{repo_type}s/{repo_id}/{one.path_in_repo}": one.path_or_fileobj for one in operations}
        self.files |= {
            path: content if isinstance(content, bytes) else Path(content).read_bytes()
            for path, content in added.items()
        }
        self.commits.append(list(added))


@dataclass
class _FileSystem:
    hub: Hub

    def _strip_protocol(self, path: str) -> str:
        return path.removeprefix("hf://").rstrip("/")

    def resolve_path(self, path: str) -> Any:
        kind, owner, name, *inside = self._strip_protocol(path).split("/")
        return SimpleNamespace(
            repo_type=kind.removesuffix("s"), repo_id=f"{owner}/{name}", revision="main", path_in_repo="/".join(inside)
        )

    def info(self, path: str) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if any(name.startswith(f"{path}/") for name in self.hub.files):
            return {"name": path, "type": "directory", "size": 0}
        content = self._content(path)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        lfs = {"sha256": hashlib.sha256(content).hexdigest()} if len(content) >= LARGE else None
        return {"name": path, "type": "file", "size": len(content), "blob_id": blob, "lfs": lfs}

    def find(self, path: str, *, detail: bool) -> dict[str, Any]:
        assert detail
        below = [name for name in self.hub.files if name.startswith(f"{self._strip_protocol(path)}/")]
        return {name: self.info(name) for name in below}

    def ls(self, path: str, *, detail: bool) -> list[dict[str, Any]]:
        assert detail
        folder = f"{self._strip_protocol(path)}/"
        below = {name.removeprefix(folder).split("/")[0] for name in self.hub.files if name.startswith(folder)}
        return [self.info(folder + name) for name in below]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.hub.reads += 1
        return self._content(self._strip_protocol(path))[start:end]

    def rm_file(self, path: str) -> None:
        del self.hub.files[self._strip_protocol(path)]

    def invalidate_cache(self) -> None:
        pass

    def _content(self, path: str) -> bytes:
        if path not in self.hub.files:
            raise FileNotFoundError(path)
        return self.hub.files[path]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Put a hub in the place of the real one."""
    import huggingface_hub

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", hub.file_system)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.api)
    return hub
