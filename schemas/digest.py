"""The digest of a trace's metadata: no digit of it changes unseen."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any, Final

DOCUMENT: Final = "zarr.json"
"""Name of the file that describes a group or array."""

DIGEST: Final = "digest"
"""Attribute of the root group that holds the digest; not in version 1 of the format."""

CONSOLIDATED: Final = "consolidated_metadata"
"""Member of the root's document that holds a copy of every other."""

INLINE: Final = {"kind": "inline", "must_understand": False}
"""What that member says of itself, beside the copies."""

Documents = Mapping[str, Mapping[str, Any]]
"""What each `zarr.json` holds, by the path of its group or array; that of the root is empty."""


def metadata_digest(documents: Documents) -> str:
    """Digest of every `zarr.json` of a trace, the manifest among them: `sha256:` and 64 hexadecimal digits.

    It is computed from what the documents say, not from their bytes: indentation, the order of members and where the
    copies of consolidated metadata lie do not count, nor does the digest itself.
    """
    described = {path: without_copies(document) for path, document in documents.items()}
    described[""]["attributes"] = _without_digest(described[""])
    return f"sha256:{hashlib.sha256(canonical_json(described)).hexdigest()}"


def canonical_json(value: Any) -> bytes:
    """JSON in one spelling for each value: members sorted, ASCII only, no spaces.

    A whole number is written in decimal digits, any other as a text: the bits of its double in hexadecimal.

    >>> canonical_json({"b": [1.0, 0.1], "a": None})
    b'{"a":null,"b":[1,"3fb999999999999a"]}'
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sealed(root: Mapping[str, Any], members: Documents, *, major: int) -> dict[str, Any]:
    """The root's document with copies of all others and, but in version 1 of the format, the digest of all."""
    attributes = _without_digest(root)
    document = {**root, "attributes": attributes, CONSOLIDATED: {}}
    if major > 1:
        attributes[DIGEST] = metadata_digest({**members, "": document})
    copies = {path: without_copies(members[path]) for path in sorted(members)}
    document[CONSOLIDATED] = {**INLINE, "metadata": copies}
    return document


def without_copies(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document without the copies of others: what it says itself."""
    return {name: member for name, member in document.items() if name != CONSOLIDATED}


def _without_digest(root: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in root.get("attributes", {}).items() if name != DIGEST}


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else struct.pack(">d", value).hex()
    if isinstance(value, Mapping):
        return {name: _canonical(member) for name, member in value.items()}
    return [_canonical(item) for item in value] if isinstance(value, list | tuple) else value
