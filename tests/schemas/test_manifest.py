"""What a manifest holds survives being written and read, also what this version does not know."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError
from support.manifests import json_values, manifests, small_manifest

from attrace.schemas import Manifest, parse_manifest


def _through_text(manifest: Manifest) -> Any:
    return json.loads(json.dumps(manifest.to_json(), allow_nan=False))


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    assert parse_manifest(_through_text(manifest), where="made") == manifest


@given(st.dictionaries(st.text(max_size=8).map("new {}".format), json_values, max_size=3))
def test_unknown_members_are_kept_at_every_level(extra: dict[str, Any]) -> None:
    stored = small_manifest()
    site_class = stored["classes"][0]
    places = [stored, stored["denoiser"], site_class, site_class["sites"][1], site_class["key_segments"][0]]
    for place in places:
        place |= extra
    written = _through_text(parse_manifest(stored, where="made").replace(status="interrupted"))
    site_class = written["classes"][0]
    for place in [written, written["denoiser"], site_class, site_class["sites"][1], site_class["key_segments"][0]]:
        assert extra.items() <= place.items()
    assert written["status"] == "interrupted"


@pytest.mark.parametrize("name", ["to_json", "replace", "model_dump", "__class__", "__dict__", "self"])
def test_unknown_members_never_replace_methods(name: str) -> None:
    manifest = parse_manifest(small_manifest() | {name: 1}, where="made")
    assert manifest.to_json()[name] == 1
    assert isinstance(manifest, Manifest)


def test_format_and_version_come_first() -> None:
    assert list(parse_manifest(small_manifest(), where="made").to_json())[:2] == ["format", "version"]


def test_replace_checks_the_new_members() -> None:
    manifest = parse_manifest(small_manifest(), where="made")
    with pytest.raises(ValidationError, match="two site classes share one group"):
        manifest.replace(classes=manifest.classes * 2)


def test_numbers_that_json_lacks_become_the_strings_of_zarr() -> None:
    manifest = parse_manifest(small_manifest(), where="made")
    arguments = {"low": -math.inf, "list": [math.nan, (math.inf, 1.5)]}
    written = _through_text(manifest.replace(call_arguments=arguments))
    assert written["call_arguments"] == {"low": "-Infinity", "list": ["NaN", ["Infinity", 1.5]]}
