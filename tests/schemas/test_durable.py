"""What is flushed to the disk: every file, and every folder for the names in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attrace.schemas.durable import sync_file, sync_names, sync_tree


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Device and number of everything that is flushed."""
    found: list[tuple[int, int]] = []
    sync = os.fsync

    def note(handle: int) -> None:
        sync(handle)
        found.append((os.fstat(handle).st_dev, os.fstat(handle).st_ino))

    monkeypatch.setattr(os, "fsync", note)
    return found


def _place(path: Path) -> tuple[int, int]:
    return path.stat().st_dev, path.stat().st_ino


def test_a_tree(tmp_path: Path, synced: list[tuple[int, int]]) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("x")
    (tmp_path / "file").write_text("x")
    sync_tree(tmp_path)
    everything = [tmp_path, *tmp_path.rglob("*")]
    assert sorted(synced) == sorted(map(_place, everything))


def test_one_file_and_the_names_beside_it(tmp_path: Path, synced: list[tuple[int, int]]) -> None:
    (tmp_path / "file").write_text("x")
    sync_file(tmp_path / "file")
    sync_names(tmp_path)
    assert synced == [_place(tmp_path / "file"), _place(tmp_path)]
