"""JSON Schema of the manifest. `python -m attrace.schemas.export > schemas/manifest-2.0.schema.json` makes it anew."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from typing import Any

from attrace.schemas import manifest
from attrace.schemas.manifest import VERSION, Manifest


def make_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the manifest as this code defines it.

    It holds what a schema can say of one member. What must hold between members (a grid holds its keys, two classes
    never share a group) is in docs/format.md, and checked by `parse_manifest`.
    """
    schema = Manifest.model_json_schema()
    texts = _texts_of_members()
    for name, described in {**schema["$defs"], "Manifest": schema}.items():
        for member, text in texts.get(name, {}).items():
            said = described["properties"][member]
            described["properties"][member] = dict(sorted({**said, "description": text}.items()))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:attrace:manifest:{VERSION}",
        **schema,
        # defaults serve those who make a manifest in Python; in a store they say what it is
        "required": ["format", "version", *schema["required"]],
    }


def _texts_of_members() -> dict[str, dict[str, str]]:
    """The text under each member of the models, by class and member.

    pydantic finds them too (`use_attribute_docstrings`), but whenever the manifest is imported, which it makes take
    twice as long.
    """
    classes = (one for one in ast.parse(inspect.getsource(manifest)).body if isinstance(one, ast.ClassDef))
    return {one.name: dict(_members_with_text(one)) for one in classes}


def _members_with_text(one: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for member, below in pairwise(one.body):
        match member, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)


def load_json_schema(version: str = VERSION) -> dict[str, Any]:
    """JSON Schema of the manifest as it was published with a version of the format."""
    text = files("attrace.schemas").joinpath(f"manifest-{version}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


if __name__ == "__main__":
    sys.stdout.write(json.dumps(make_json_schema(), indent=2) + "\n")
