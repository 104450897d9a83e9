"""Imports point one way, heavy libraries stay where they belong, and everything imported is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]

MAY_IMPORT = {
    "attrace": set[str](),
    "attrace.schemas": {"attrace.schemas"},
    "attrace.analysis": {"attrace.analysis", "attrace.schemas"},
    "attrace.recorder": {"attrace.recorder", "attrace.schemas"},
    "attrace.demo": {"attrace.demo", "attrace.recorder", "attrace.analysis", "attrace.schemas"},
    "attrace.cli": {"attrace.cli", "attrace.demo", "attrace.recorder", "attrace.analysis", "attrace.schemas"},
}

ONLY_IN = {
    "torch": {"attrace.recorder", "attrace.demo"},
    "diffusers": {"attrace.recorder", "attrace.demo"},
    "transformers": {"attrace.recorder", "attrace.demo"},
    "click": {"attrace.cli", "attrace.demo"},
}

WHERE_ASKED_FOR = {("analysis/kernels/torch_kernel.py", "torch")}
"""Imported only when a caller asks for a device: nothing else may import these modules but inside a function."""

INSIDE_FUNCTIONS = {("analysis/scores/perceptual.py", "torch")}
"""Imported by functions that a caller asks for scores of other networks."""

DISTRIBUTIONS = {
    "google_crc32c": "google-crc32c",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "lazy_loader": "lazy-loader",
    "pydantic_core": "pydantic",
}
"""What installs a module, where the names differ."""


def _imports(folder: str) -> Iterator[tuple[str, str]]:
    """File and dotted name of every import below a folder, wherever in the file it stands."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # `from attrace import demo` names the package in its alias
                names = ["." * node.level + (node.module or "")]
                names = [f"attrace.{alias.name}" for alias in node.names] if names == ["attrace"] else names
            else:
                continue
            yield from ((str(path.relative_to(ROOT)), name) for name in names)


def _package(name: str) -> str:
    return ".".join(name.split(".")[:2])


def test_every_package_has_its_rule() -> None:
    assert FOLDERS.keys() == MAY_IMPORT.keys()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    ours = [(file, name) for file, name in _imports(FOLDERS[package]) if name.partition(".")[0] == "attrace"]
    assert [found for found in ours if _package(found[1]) not in MAY_IMPORT[package]] == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_heavy_libraries_stay_where_they_belong(package: str) -> None:
    astray = [
        (file, name)
        for file, name in _imports(FOLDERS[package])
        if package not in ONLY_IN.get(name.partition(".")[0], {package})
        and (file, name.partition(".")[0]) not in WHERE_ASKED_FOR | INSIDE_FUNCTIONS
    ]
    assert astray == []


def test_what_is_imported_where_asked_for_is_imported_in_functions_alone() -> None:
    modules = {f"attrace.{file.removesuffix('.py').replace('/', '.')}" for file, _ in WHERE_ASKED_FOR}
    at_once = [
        path
        for folder in FOLDERS.values()
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module in modules
    ]
    assert at_once == []


@pytest.mark.parametrize(("file", "root"), INSIDE_FUNCTIONS)
def test_what_a_function_asks_for_is_imported_in_it(file: str, root: str) -> None:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    at_once = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
    at_once += [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    assert root not in {name.partition(".")[0] for name in at_once}


def test_the_store_writer_needs_no_torch() -> None:
    by_module: dict[str, set[str]] = {}
    for file, name in _imports("recorder"):
        by_module.setdefault(f"attrace.{file.removesuffix('.py').replace('/', '.')}", set()).add(name)
    needed, reached = ["attrace.recorder.writing.store"], set[str]()
    while needed:
        module = needed.pop()
        assert {name.partition(".")[0] for name in by_module[module]} & ONLY_IN.keys() == set(), module
        reached.add(module)
        needed += {name for name in by_module[module] if name.startswith("attrace.recorder.")} - reached


def _requirements(*extras: str) -> set[str]:
    """Names of the distributions that installing with some extras brings, as far as we ask for them ourselves."""
    listed: list[str] = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        listed += PROJECT["project"]["optional-dependencies"][extra]
    return {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in listed}


@pytest.mark.parametrize(
    ("package", "declared"),
    [
        ("attrace", {"lazy-loader"}),
        ("attrace.schemas", {"numpy", "pydantic"}),
        ("attrace.analysis", _requirements("cluster", "notebook", "perceptual", "quality")),
        ("attrace.cli", _requirements("cluster")),
        ("attrace.recorder", _requirements("cluster", "record")),
        ("attrace.demo", _requirements("quality", "record")),
    ],
)
def test_everything_imported_is_declared(package: str, declared: set[str]) -> None:
    roots = {(file, name.partition(".")[0]) for file, name in _imports(FOLDERS[package])}
    undeclared = [
        (file, root)
        for file, root in sorted(roots)
        if root not in sys.stdlib_module_names
        and root not in ("attrace", "")
        and DISTRIBUTIONS.get(root, root) not in declared
        and (file, root) not in WHERE_ASKED_FOR | INSIDE_FUNCTIONS
    ]
    assert undeclared == []
