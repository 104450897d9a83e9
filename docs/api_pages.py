"""The API reference of the site: a page for each room, and one that lists what `import attrace` gives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOMS = {
    "analysis": "storage kernels trace maps scores studies integrity sharing figures explorer",
    "recorder": "capture labels writing session jobs",
}
"""Rooms of each package from bottom to top; the schemas are one room."""

PAGES = ["schemas", *(f"{package}.{room}" for package, rooms in ROOMS.items() for room in rooms.split())]

ROOM_LINK = re.compile(r"\]\(\.\./([\w/]+)\)")

FRONT_DOOR = """\
# attrace

`import attrace` gives these names, each loaded when it is first used. The maps, `plot` and the scores are also methods
of a [`Trace`][attrace.analysis.trace.trace.Trace]. The pages after this one are the rooms of the house.
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages where the navigation says `API`."""
    for section in config.nav or []:
        if "API" in section:
            section["API"] = ["api/attrace.md", *(f"api/{page}.md" for page in PAGES)]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages, of the packages that lie beside docs/."""
    root = Path(config.config_file_path).parent
    if (root / "api").is_dir():
        files.append(File.generated(config, "api/attrace.md", content=FRONT_DOOR + "\n".join(_front_door(root))))
        for page in PAGES:
            content = f"# {page.replace('.', ': ')}\n\n::: attrace.{page}\n"
            files.append(File.generated(config, f"api/{page}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to the folder of a room leads to its page."""
    pages = {page.replace(".", "/"): page for page in PAGES} | {"api": "attrace"}
    return ROOM_LINK.sub(lambda link: f"](api/{pages[link[1]]}.md)" if link[1] in pages else link[0], markdown)


def _front_door(root: Path) -> Iterator[str]:
    """A list for each room: its public names, each with the first line of its docstring."""
    room = ""
    for package in ("recorder", "analysis"):
        for module, name in sorted(_public_names(root / package / "__init__.pyi")):
            if module.split(".")[0] != room:
                room = module.split(".")[0]
                yield f"\n## {package}: {room}\n"
            summary = _summary(root / package / f"{module.replace('.', '/')}.py", name)
            yield f"- [`{name}`][attrace.{package}.{module}.{name}]: {summary}"
    yield "\n## errors\n"
    for name in _defined(root / "schemas/errors.py"):
        yield f"- [`{name}`][attrace.schemas.errors.{name}]: {_summary(root / 'schemas/errors.py', name)}"


def _public_names(stub: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a stub imports."""
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def _defined(module: Path) -> dict[str, str]:
    """First line of the docstring of everything that a module defines."""
    body = ast.parse(module.read_text(encoding="utf-8")).body
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(after.value, ast.Constant):
                found[target.id] = str(after.value.value)
    return found


def _summary(module: Path, name: str) -> str:
    return _defined(module)[name].partition("\n")[0]
