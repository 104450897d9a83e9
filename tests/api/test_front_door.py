"""`import attrace`: every public name, at once, with nothing loaded before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import attrace
from attrace import analysis, recorder, schemas

HEAVY = ("torch", "diffusers", "xarray", "dask", "numpy", "zarr", "pydantic", "click", "matplotlib")

ERRORS = [name for name in schemas.__all__ if name.endswith("Error")]


def _printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("package", [analysis, recorder])
def test_every_public_name_is_at_the_front_door(package: object) -> None:
    names = dir(package)
    assert [name for name in names if getattr(attrace, name) is not getattr(package, name)] == []


def test_the_errors_can_be_caught_by_name() -> None:
    assert len(ERRORS) > 5
    assert [name for name in ERRORS if getattr(attrace, name) is not getattr(schemas, name)] == []


def test_it_offers_nothing_else() -> None:
    packages = {"analysis", "recorder", "schemas"}
    assert set(dir(attrace)) == packages | set(dir(analysis)) | set(dir(recorder)) | set(ERRORS)


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, attrace; print(*sorted({set(HEAVY)} & sys.modules.keys()))"
    assert _printed(code).split() == []


def test_reading_loads_no_torch() -> None:
    assert _printed("import sys, attrace; attrace.open_trace, attrace.ulam; print('torch' in sys.modules)") == "False\n"


def test_importing_takes_under_50_ms() -> None:
    code = "import time; began = time.perf_counter(); import attrace; print(time.perf_counter() - began)"
    assert min(float(_printed(code)) for _ in range(5)) < 0.05


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "nowhere"
    with pytest.raises(AttributeError, match=name):
        getattr(attrace, name)
