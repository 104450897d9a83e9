"""A server that answers some requests with 404, 500, half a body or an older version: asked again, or an error."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.server import Fault, Served, serving
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.sharing.transfer import pull
from attrace.schemas import AttraceError

pytest.importorskip("obstore")

OPENS = 12
"""How often each kind of trace is opened; 200 by hand."""

RATE = 0.05
"""Of the requests whose answer is wrong."""

FAULTS: tuple[Fault, ...] = ("404", "500", "cut", "stale")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a packed trace, and below `old` what was there when the run had finished its first steps."""
    folder = tmp_path_factory.mktemp("served")
    classes = (site_class(), site_class("text/64x16h2d8", encoding="scores", context="text"))
    made = make_trace(folder / "run.zarr", classes, steps=5)
    pack(made.path, folder / "run.zip")
    old = Path(shutil.copytree(made.path, folder / "old/run.zarr"))
    _undo(old, steps=2)
    pack(old, folder / "old/run.zip")
    return folder


def _undo(trace: Path, *, steps: int) -> None:
    """Make a trace what it was after some steps: the chunks of those are the same bytes."""
    document = json.loads((trace / "zarr.json").read_text())
    del document["consolidated_metadata"], document["attributes"]["digest"]
    document["attributes"]["attrace"] |= {"status": "recording", "steps": 0, "finished": None}
    (trace / "zarr.json").write_text(json.dumps(document))
    for name in ("time", "timestep"):  # closing a trace adds them to its classes
        for copy in trace.glob(f"*/*/{name}"):
            shutil.rmtree(copy)
    for path, array in zarr.open_group(trace).members(max_depth=None):
        if isinstance(array, zarr.Array) and array.metadata.dimension_names[0] == "time":  # type: ignore[union-attr, index]
            if array.chunks[0] > 1:
                array[steps:] = array.fill_value
            else:
                for step in range(steps, array.shape[0]):
                    shutil.rmtree(trace / path / f"c/{step}", ignore_errors=True)


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as served:
        served.old = folder / "old"
        yield served


@pytest.mark.parametrize("fault", FAULTS[:3])
def test_one_fault_is_mended_by_asking_again(served: Served, folder: Path, fault: Fault) -> None:
    expected = ulam(open_trace(folder / "run.zarr"))
    faults = iter([*[None, fault] * 20])
    served.fault = lambda: next(faults, None)
    for name in ("run.zarr", "run.zip"):
        np.testing.assert_array_equal(ulam(open_trace(f"{served.address}/{name}")), expected)


@pytest.mark.parametrize("fault", FAULTS[:3])
def test_a_server_that_always_fails_is_given_up(served: Served, fault: Fault) -> None:
    served.fault = lambda: fault
    for name in ("run.zarr", "run.zip"):
        with pytest.raises((AttraceError, OSError), match="run"):
            open_trace(f"{served.address}/{name}")


@pytest.mark.parametrize("name", ["run.zarr", "run.zip"])
def test_never_a_wrong_number(served: Served, folder: Path, tmp_path: Path, name: str) -> None:
    expected = ulam(open_trace(folder / "run.zarr")).compute()
    chance, right = random.Random(0), 0
    served.fault = lambda: chance.choice(FAULTS) if chance.random() < RATE else None
    for number in range(OPENS):
        try:
            found = ulam(open_trace(f"{served.address}/{name}")).compute()
        except (AttraceError, OSError):
            continue
        np.testing.assert_array_equal(found, expected)
        right += 1
        target = tmp_path / f"{number}{Path(name).suffix}"
        try:
            pull(f"{served.address}/{name}", target)
        except (AttraceError, OSError):
            continue
        assert verify(target).content_id == verify(folder / name).content_id
    assert right > OPENS / 2
