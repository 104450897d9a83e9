"""The rooms of each package: few, small, in one order, without circles, each with a face that says what it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = {
    "analysis": (
        "storage",
        "kernels",
        "trace",
        "maps",
        "scores",
        "studies",
        "integrity",
        "sharing",
        "figures",
        "explorer",
    ),
    "recorder": ("capture", "labels", "writing", "session", "jobs"),
    "cli": ("shared", "commands"),
}
"""From bottom to top: a module imports from its own room and from those before it."""

MOST_MODULES = 12
MOST_ROOMS = 10
COMMANDS = ("cli", "commands")
"""Holds one module for each command, however many there are."""


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted name, less `attrace.`, and file of every module of a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


LOOKS_UPWARDS = "analysis/trace/trace.py"
"""The methods of `Trace` are functions of the rooms above, imported when a method is called; nothing else may do so."""


def _imported(path: Path) -> set[str]:
    """Dotted names, less `attrace.`, of what a module imports of ours, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if path == ROOT / LOOKS_UPWARDS else ast.walk(tree)
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.removeprefix("attrace.") for name in names if name.startswith("attrace.")}


@pytest.mark.parametrize("package", ROOMS)
def test_every_folder_is_a_listed_room(package: str) -> None:
    folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS[package])
    assert len(folders) <= MOST_ROOMS


@pytest.mark.parametrize("package", ROOMS)
def test_imports_between_rooms_point_down(package: str) -> None:
    order = ROOMS[package]
    upward = [
        f"{module} -> {name}"
        for module, path in _modules(package)
        for name in _imported(path)
        if name.split(".")[0] == package
        and (here := module.split(".")[1]) in order
        and (there := (*name.split("."), "")[1]) in order
        and order.index(there) > order.index(here)
    ]
    assert upward == []


def test_no_modules_import_each_other() -> None:
    modules = {module: _imported(path) for package in (*ROOMS, "schemas") for module, path in _modules(package)}
    TopologicalSorter(modules).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("room", [(package, room) for package, rooms in ROOMS.items() for room in rooms])
def test_a_room_is_small_and_says_what_it_is_for(room: tuple[str, str]) -> None:
    folder = ROOT.joinpath(*room)
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert room == COMMANDS or len(modules) <= MOST_MODULES, sorted(path.name for path in modules)
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
