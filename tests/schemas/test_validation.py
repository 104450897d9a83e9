"""Manifests that somebody else wrote, also in bad faith: each is refused by name, and with no other error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given, strategies as st
from support.manifests import json_values, small_manifest

from attrace.schemas import TraceFormatError, TraceVersionError, parse_manifest
from attrace.schemas.export import load_json_schema
from attrace.schemas.manifest import Manifest

Member = str | int
VALIDATOR = jsonschema.Draft202012Validator(load_json_schema())


def _with(place: tuple[Member, ...], value: Any) -> dict[str, Any]:
    """The small manifest with one member, at any depth, set to something else."""
    manifest = small_manifest()
    holder: Any = manifest
    for member in place[:-1]:
        holder = holder[member]
    holder[place[-1]] = value
    return manifest


CLASS = ("classes", 0)
SITE = (*CLASS, "sites", 0)

HOSTILE: dict[str, tuple[tuple[Member, ...], Any]] = {
    "status of another kind": (("status",), 1),
    "unknown status": (("status",), "paused"),
    "number in quotes": ((*CLASS, "heads"), "2"),
    "bool for a number": ((*CLASS, "heads"), True),
    "float for a number": ((*CLASS, "heads"), 2.0),
    "zero": ((*CLASS, "heads"), 0),
    "negative": ((*CLASS, "queries"), -16),
    "absurd": ((*CLASS, "features"), 10**12),
    "more digits than Python converts": ((*CLASS, "features"), 10**5000),
    "negative grid": ((*CLASS, "query_grid"), [-4, -4]),
    "grid with one side": ((*CLASS, "query_grid"), [16]),
    "grid that does not hold the queries": ((*CLASS, "query_grid"), [4, 5]),
    "segment grid that does not hold its keys": ((*CLASS, "key_segments", 0, "grid"), [1, 1]),
    "segments that do not hold the keys": ((*CLASS, "key_segments"), [{"kind": "text", "count": 2}]),
    "no segments": ((*CLASS, "key_segments"), []),
    "too few tokens": ((*CLASS, "tokens"), ["a"]),
    "token that is no text": ((*CLASS, "tokens"), ["a", 1, ""]),
    "unknown context": ((*CLASS, "context"), "sound"),
    "unknown encoding": ((*CLASS, "encoding"), "weights"),
    "unknown data type": ((*CLASS, "dtype"), "object"),
    "bias with scores": (CLASS, small_manifest()["classes"][0] | {"encoding": "scores", "has_bias": True}),
    "chunk beyond the limit": (CLASS, small_manifest()["classes"][0] | {"heads": 2**24, "features": 2**24}),
    "scale that is no number": ((*CLASS, "scale"), "0.35"),
    "group above": ((*CLASS, "group"), "text/../../etc"),
    "group of dots": ((*CLASS, "group"), "text/.."),
    "absolute group": ((*CLASS, "group"), "/text/16x3h2d8"),
    "group with an empty part": ((*CLASS, "group"), "text//16x3h2d8"),
    "group with no class": ((*CLASS, "group"), "text"),
    "group that ends in a slash": ((*CLASS, "group"), "text/a/"),
    "group in a group": ((*CLASS, "group"), "text/a/b"),
    "group of another kind of thing": ((*CLASS, "group"), "images/generated"),
    "group with a backslash": ((*CLASS, "group"), "text/..\\a"),
    "group with a line break": ((*CLASS, "group"), "text/a\n"),
    "reserved group": ((*CLASS, "group"), "text/__a"),
    "empty group": ((*CLASS, "group"), ""),
    "branch with a slash": ((*CLASS, "branch"), "../a"),
    "two classes in one group": (("classes",), small_manifest()["classes"] * 2),
    "site path that is no text": ((*SITE, "path"), 7),
    "empty site path": ((*SITE, "path"), ""),
    "site path that steers a terminal": ((*SITE, "path"), "\x1b[2Jattn"),
    "site path twice": ((*SITE, "path"), "up.0.attn2"),
    "negative order": ((*SITE, "order"), -1),
    "no sites": ((*CLASS, "sites"), []),
    "classes as an object": (("classes",), {"0": small_manifest()["classes"][0]}),
    "null class": (("classes",), [None]),
    "identifier that is a path": (("id",), "../../../../../../../../etc/pass"),
    "date of another kind": (("created",), "yesterday"),
    "sample beyond the batch": (("sample",), 1),
    "seed beyond 64 bits": (("seed",), 2**64),
    "software that is no text": (("software",), {"torch": 2}),
    "denoiser that is no object": (("denoiser",), "UNet"),
    "not a number": ((*CLASS, "scale"), float("nan")),
    "infinite argument": (("call_arguments",), {"a": float("inf")}),
    "half a character": ((*SITE, "path"), "\ud800"),
    "version as a number": (("version",), 1.0),
    "version with no minor": (("version",), "1"),
    "version of many digits": (("version",), "9" * 5000),
    "version in other digits": (("version",), "\u0661.\u0660"),
    "version before the first": (("version",), "0.9"),
    "version as a list": (("version",), ["1.0"]),
}


@pytest.mark.parametrize(("place", "value"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_manifest_is_refused(place: tuple[Member, ...], value: Any) -> None:
    with pytest.raises(TraceFormatError, match=r"made\.zarr") as refusal:
        parse_manifest(_with(place, value), where="made.zarr")
    assert type(refusal.value) is TraceFormatError
    assert len(str(refusal.value)) < 3000


@pytest.mark.parametrize("name", sorted(small_manifest()["classes"][0].keys() - {"query_grid", "tokens"}))
def test_missing_member_of_a_class_is_named(name: str) -> None:
    manifest = small_manifest()
    del manifest["classes"][0][name]
    with pytest.raises(TraceFormatError, match=rf"classes\.0\.{name}: Field required"):
        parse_manifest(manifest, where="made")


@pytest.mark.parametrize("value", [None, [], "attrace-trace", 1, {}, {"format": "zip"}, {"format": ["x" * 10**6]}])
def test_something_else_is_no_trace(value: Any) -> None:
    with pytest.raises(TraceFormatError, match="made is not an attrace trace: expected a Zarr group") as refusal:
        parse_manifest(value, where="made")
    assert len(str(refusal.value)) < 400


def _nested(levels: int) -> list[Any]:
    innermost: list[Any] = []
    value = innermost
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [300, 100_000])
@pytest.mark.parametrize("where", [("format",), ("version",), ("call_arguments",), (*CLASS, "tokens"), ("unknown",)])
def test_deep_nesting_is_refused(where: tuple[Member, ...], levels: int) -> None:
    with pytest.raises(TraceFormatError):
        parse_manifest(_with(where, _nested(levels)), where="made")


def test_nesting_as_deep_as_the_specification_allows_is_read() -> None:
    manifest = parse_manifest(small_manifest() | {"call_arguments": {"a": _nested(60)}}, where="made")
    assert manifest.call_arguments["a"] == _nested(60)


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(TraceFormatError, match="expected plain JSON"):
        parse_manifest(small_manifest() | {"call_arguments": {"a": value}}, where="made")


@pytest.mark.parametrize("version", ["3.0", "10.3", "9999.0"])
def test_newer_major_version_is_refused_by_name(version: str) -> None:
    # whatever else that version changed: nothing but the format and the version is looked at
    stored = {"format": "attrace-trace", "version": version, "classes": "changed"}
    with pytest.raises(
        TraceVersionError, match=rf"run\.zarr is written in version {version}.*reads up to 2\.0: upgrade"
    ):
        parse_manifest(stored, where="run.zarr")


def test_newer_minor_version_is_read_and_kept() -> None:
    manifest = parse_manifest(small_manifest() | {"version": "2.7", "weather": "fine"}, where="made")
    assert manifest.to_json()["version"] == "2.7"
    assert manifest.to_json()["weather"] == "fine"


def _places(value: Any, place: tuple[Member, ...] = ()) -> list[tuple[Member, ...]]:
    """Every member of a manifest, at any depth."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [inner for key, member in members for inner in ((*place, key), *_places(member, (*place, key)))]


@given(st.sampled_from(_places(small_manifest())), json_values)
def test_any_value_anywhere_is_read_or_refused(place: tuple[Member, ...], value: Any) -> None:
    """No other exception escapes; and what the published JSON Schema refuses is refused."""
    manifest = _with(place, value)
    try:
        parsed: Manifest | None = parse_manifest(manifest, where="made")
    except TraceFormatError:
        parsed = None
    if not VALIDATOR.is_valid(manifest):
        assert parsed is None


@given(json_values)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with pytest.raises(TraceFormatError):
        parse_manifest(value, where="made")


@pytest.mark.parametrize(
    "change",
    [lambda manifest: manifest.pop("format"), lambda manifest: manifest.pop("version")],
    ids=["format", "version"],
)
def test_format_and_version_are_required(change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = small_manifest()
    change(manifest)
    assert not VALIDATOR.is_valid(manifest)
    with pytest.raises(TraceFormatError):
        parse_manifest(manifest, where="made")
