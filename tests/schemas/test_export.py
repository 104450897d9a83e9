"""The published JSON Schema is what the code defines, and describes what the code writes."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from support.manifests import manifests, small_manifest

from attrace.schemas import VERSION, Manifest
from attrace.schemas.export import load_json_schema, make_json_schema

VALIDATOR = jsonschema.Draft202012Validator(load_json_schema())


def test_published_schema_is_up_to_date() -> None:
    command = f"python -m attrace.schemas.export > schemas/manifest-{VERSION}.schema.json"
    assert load_json_schema() == make_json_schema(), f"the manifest changed: run `{command}`"


def test_module_prints_the_published_file() -> None:
    printed = subprocess.run([sys.executable, "-m", "attrace.schemas.export"], check=True, capture_output=True)
    assert printed.stdout == files("attrace.schemas").joinpath(f"manifest-{VERSION}.schema.json").read_bytes()


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(load_json_schema())


@given(manifests)
def test_every_manifest_is_valid(manifest: Manifest) -> None:
    VALIDATOR.validate(manifest.to_json())


def test_every_member_is_described() -> None:
    definitions = load_json_schema()["$defs"] | {"Manifest": load_json_schema()}
    lacking = [
        f"{name}.{member}"
        for name, definition in definitions.items()
        for member, described in definition.get("properties", {}).items()
        if not described.get("description")
    ]
    assert lacking == []


def test_unknown_version_is_no_schema() -> None:
    with pytest.raises(FileNotFoundError):
        load_json_schema("0.1")


def test_small_manifest_is_valid() -> None:
    VALIDATOR.validate(small_manifest())
