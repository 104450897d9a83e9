"""Changing the metadata of a trace in place, with or without the copies and the digest that belong to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrace.schemas.digest import DIGEST, sealed


def edit_document(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a `zarr.json`, or another file of JSON."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def seal_again(trace: Path) -> None:
    """Bring the copies of all metadata and the digest in line, so that only the change under test is found."""
    files = {file.parent.relative_to(trace).as_posix(): file for file in trace.rglob("zarr.json")}
    documents = {path if path != "." else "": json.loads(file.read_text()) for path, file in files.items()}
    root = documents.pop("")
    major = int(root["attributes"]["attrace"]["version"].partition(".")[0])
    (trace / "zarr.json").write_text(json.dumps(sealed(root, documents, major=major)))


def digest_of(trace: Path) -> str:
    """The digest that a trace, a folder, holds."""
    return str(json.loads((trace / "zarr.json").read_text())["attributes"][DIGEST])
