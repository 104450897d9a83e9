"""What is built and installed is what is in the checkout: no subpackage and no data file is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest

import attrace

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]


def _checkout_files() -> Iterator[str]:
    """Every file of the package folders, named as it is once installed."""
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inside.parts):
                yield f"{package.replace('.', '/')}/{inside.as_posix()}"


def test_every_package_is_listed() -> None:
    found = {
        name.removesuffix("/__init__.py").replace("/", ".")
        for name in _checkout_files()
        if name.endswith("/__init__.py")
    }
    assert set(PACKAGES) == found


def test_type_checkers_find_every_package() -> None:
    links = {link.name: link.resolve() for link in (ROOT / ".typing" / "attrace").iterdir()}
    root = {name: ROOT / "api" / name for name in ("__init__.py", "__init__.pyi", "py.typed")}
    inside = {package.removeprefix("attrace."): ROOT / folder for package, folder in FOLDERS.items() if folder != "api"}
    assert links == root | inside


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an unpacked sdist, as an installer makes it that finds no wheel."""
    folder = tmp_path_factory.mktemp("build")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=_ignored)
    _build("sdist", tree, folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    _build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)
    (built,) = folder.glob("*.whl")
    return built


def _ignored(_folder: str, names: list[str]) -> list[str]:
    kept = {".typing"}
    return [name for name in names if (name.startswith(".") and name not in kept) or name in ("build", "__pycache__")]


def _build(kind: str, tree: Path, output: Path) -> None:
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(output)!r})"
    built = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def test_the_wheel_holds_the_checkout_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == set(_checkout_files())


def test_the_wheel_carries_its_licence_and_readme(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        information = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        metadata = archive.read(f"{information}/METADATA").decode()
        licence = archive.read(f"{information}/licenses/LICENSE").decode()
    assert licence == (ROOT / "LICENSE").read_text()
    assert "License-Expression: MIT" in metadata
    assert (ROOT / "README.md").read_text().splitlines()[2] in metadata


def test_every_package_says_that_it_is_typed() -> None:
    assert [folder for folder in FOLDERS.values() if not (ROOT / folder / "py.typed").is_file()] == []


def test_the_version_is_the_installed_one() -> None:
    assert attrace.__version__ == version("attrace")


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="attrace")
    assert callable(command.load())


def test_installing_alone_brings_no_torch() -> None:
    unconditional = [requirement for requirement in requires("attrace") or [] if "extra ==" not in requirement]
    assert unconditional
    assert [name for name in unconditional if name.startswith(("torch", "diffusers", "transformers"))] == []


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = {
        line.partition("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    extras = PROJECT["project"]["optional-dependencies"].values()
    listed = [*PROJECT["project"]["dependencies"], *(requirement for extra in extras for requirement in extra)]
    names = {re.split(r"[\[>]", requirement)[0] for requirement in listed}
    assert names - pinned == {"attrace"}
