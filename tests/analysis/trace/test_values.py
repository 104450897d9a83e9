"""Stored values and output projections: read, checked, compared, copied and repaired as all data are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from support.exact import Call, random_calls, with_values, write_calls
from support.traces import site_class

from attrace.analysis import open_trace, pack, unpack
from attrace.analysis.integrity.diff import diff
from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.schemas import TraceFormatError

CLASSES = (
    site_class(channels=12),
    site_class("reference/16x16h3d8", heads=3, query_grid=(4, 4), channels=20, layers=("mid.attn2",), first_order=2),
    site_class("text/64x16h2d8", encoding="scores", channels=12, layers=("down.0.text", "up.0.text"), first_order=3),
)
STEPS = 4


@pytest.fixture(params=[True, False], ids=["static", "changing"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[Any, Call], dict[str, Any]]:
    calls, outputs = with_values(CLASSES, random_calls(CLASSES, STEPS), static=request.param)
    path = write_calls(tmp_path / "run.zarr", CLASSES, calls, steps=STEPS, outputs=outputs)
    return path, calls, outputs


def test_the_tree_has_them_in_every_step(made: Any) -> None:
    path, calls, outputs = made
    trace = open_trace(path)
    for context in ("reference", "text"):
        tree = trace.sel(context=context).tree
        for one in (one for one in CLASSES if one.context == context):
            found = tree[one.group]
            assert found["value_vector"].dims == ("time", "layer", "head", "key", "feature")
            assert found["output"].dims == ("layer", "head", "feature", "channel")
            np.testing.assert_array_equal(found["output"], outputs[one.group])
            for step in range(STEPS):
                for layer in range(len(one.sites)):
                    value = found["value_vector"].isel(time=step, layer=layer)
                    np.testing.assert_array_equal(value, calls[one.group, step, layer].value)
    some = trace.sel(layer="up.0.attn2", head=1).tree[CLASSES[0].group]
    np.testing.assert_array_equal(some["output"], outputs[CLASSES[0].group][1:, 1:])


def test_xarray_opens_them_with_either_engine(made: Any) -> None:
    path, _, outputs = made
    group = CLASSES[0].group
    for tree in (xr.open_datatree(path, engine="zarr"), xr.open_datatree(path, engine="attrace")):
        found = tree[group]["output"]
        assert found.dims == ("layer", "head", "feature", "channel")
        np.testing.assert_array_equal(found, outputs[group])
        assert found.attrs["long_name"] == "weights of the output projection"


@pytest.mark.parametrize("layout", ["recorded", "read"])
def test_copies_have_them(made: Any, layout: Any, tmp_path: Path) -> None:
    path, calls, outputs = made
    packed = pack(path, tmp_path / "run.zip", layout=layout)
    assert verify(path if layout == "read" else packed).valid
    assert not list(diff(path, packed))
    part = pack(
        open_trace(path).sel(layer=["up.0.attn2", "mid.attn2"], time=slice(1, 2)), tmp_path / "part.zip", layout=layout
    )
    tree = open_trace(part).tree
    for group, layer in ((CLASSES[0].group, 1), (CLASSES[1].group, 0)):
        np.testing.assert_array_equal(np.asarray(tree[group]["output"])[0], outputs[group][layer])
        for step in (1, 2):
            np.testing.assert_array_equal(
                np.asarray(tree[group]["value_vector"])[step - 1, 0], calls[group, step, layer].value
            )


@pytest.mark.parametrize("name", ["value_vector", "output"])
def test_a_difference_is_found(made: Any, name: str, tmp_path: Path) -> None:
    path = made[0]
    packed = pack(path, tmp_path / "before.zip")
    array = zarr.open_group(path)[f"{CLASSES[0].group}/{name}"]
    assert isinstance(array, zarr.Array)
    array[(0,) * (array.ndim - 1)] = 7.5
    (found,) = diff(path, packed)
    assert (found.kind, found.place) == ("values", f"{CLASSES[0].group}/{name}")
    assert verify(path).content_id != verify(packed).content_id


@pytest.mark.parametrize("chunk", ["value_vector/c/0/1/0/0/0", "output/c/1/0/0/0"])
def test_a_lost_chunk_is_named(made: Any, chunk: str) -> None:
    path = made[0]
    (path / CLASSES[0].group / chunk).unlink()
    name = chunk.partition("/")[0]
    problems = [str(one) for one in verify(path).problems]
    assert any(name in one for one in problems), problems
    with pytest.raises(TraceFormatError, match=f"chunk c/.*{name}"):
        open_trace(path).tree[CLASSES[0].group][name].compute()


def test_one_that_was_cut_off_is_repaired(tmp_path: Path) -> None:
    calls, outputs = with_values(CLASSES, random_calls(CLASSES, STEPS), static=True)
    path = write_calls(tmp_path / "run.zarr", CLASSES, calls, steps=STEPS, outputs=outputs, status=None)
    assert repair(path) == STEPS
    assert verify(path).valid
    np.testing.assert_array_equal(open_trace(path).tree[CLASSES[0].group]["output"], outputs[CLASSES[0].group])


def test_maps_alone_have_none_of_them(made: Any, tmp_path: Path) -> None:
    trace = open_trace(made[0]).precompute()
    packed = pack(trace, tmp_path / "maps.zip", only_derived=True)
    assert verify(packed).valid
    names = {found.name for found in unpack(packed, tmp_path / "maps.zarr").rglob("*")}
    assert not {"value_vector", "output", "key_step"} & names
    assert {"derived", "r2g", "g2r"} <= names
