"""The digest of a trace's metadata: one number for what the documents say, whatever their bytes."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st
from support.manifests import json_values, small_manifest

from attrace.schemas.digest import CONSOLIDATED, DIGEST, canonical_json, metadata_digest, sealed

ROOT: dict[str, Any] = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {"attrace": small_manifest(), "other": [1, 0.1]},
}
MEMBERS: dict[str, dict[str, Any]] = {
    "text": {"zarr_format": 3, "node_type": "group", "attributes": {}},
    "text/a": {"zarr_format": 3, "node_type": "array", "shape": [3], "fill_value": "NaN"},
}


def test_a_digest_worked_out_by_hand() -> None:
    documents: dict[str, dict[str, Any]] = {
        "": {"attributes": {"attrace": {"scale": 0.5, "seed": 2.0}, "digest": "?"}},
        "a": {"shape": [1]},
    }
    text = '{"":{"attributes":{"attrace":{"scale":"3fe0000000000000","seed":2}}},"a":{"shape":[1]}}'
    assert metadata_digest(documents) == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_sealed_holds_copies_and_the_digest_of_all() -> None:
    root = sealed(ROOT, MEMBERS, major=2)
    assert root[CONSOLIDATED]["metadata"] == MEMBERS
    assert root["attributes"][DIGEST] == metadata_digest({**MEMBERS, "": ROOT})
    assert sealed(root, MEMBERS, major=2) == root
    assert DIGEST not in sealed(ROOT, MEMBERS, major=1)["attributes"]
    assert DIGEST not in ROOT["attributes"]


def test_spelling_does_not_count() -> None:
    root = sealed(ROOT, MEMBERS, major=2)
    other = json.loads(json.dumps(root, indent=7).replace("[1, 0.1]", "[1.0, 1e-1]"))
    members = {path: dict(reversed(document.items())) for path, document in reversed(MEMBERS.items())}
    members["text"][CONSOLIDATED] = {"kind": "inline", "metadata": {}}
    assert sealed(other, members, major=2)["attributes"] == root["attributes"]


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [inner for key, member in members for inner in ((*place, key), *_places(member, (*place, key)))]


DOCUMENTS = {"": ROOT, **MEMBERS}


@given(st.sampled_from(_places(DOCUMENTS)), json_values)
def test_any_other_value_gives_another_digest(place: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(DOCUMENTS)
    within: Any = changed
    for key in place[:-1]:
        within = within[key]
    same = canonical_json(within[place[-1]]) == canonical_json(value)
    within[place[-1]] = value if len(place) > 1 else {"other": value}
    assert (metadata_digest(changed) == metadata_digest(DOCUMENTS)) == (same and len(place) > 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**63, b"9223372036854775808"),
        (-0.0, b"0"),
        (1e300, str(int(1e300)).encode()),
        (float("nan"), b'"7ff8000000000000"'),
        (True, b"true"),
        ("\u732b", b'"\\u732b"'),
        ({"b": (), "a": {}}, b'{"a":{},"b":[]}'),
    ],
)
def test_canonical_json(value: Any, text: bytes) -> None:
    assert canonical_json(value) == text
