"""Pages that hold everything they need: scripts, styles, data, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any


def render_page(template: str, modules: Sequence[str], start: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """A page from a template of this package with its scripts and styles inside, and a policy that allows no other."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    script = "\n".join([*map(resource, modules), start, ""])
    style = resource("explorer.css") + resource("page.css")
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data: blob:"
    page: str = environment.get_template(template).render(values, script=script, style=style, policy=policy)
    return page, policy


def for_script(value: Any) -> str:
    """JSON that may stand in an element `script`: no text in it can end that."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def resource(name: str) -> str:
    """A file of this package, as text."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    """What a policy of content knows an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
