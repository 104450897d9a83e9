"""Many traces: found by folder, glob or list, opened lazily, mapped along `trace`."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.base
import numpy as np
import pytest
from support.traces import make_trace, site_class

from attrace.analysis import Traces, hlam, llam, open_trace, open_traces, tlam, ulam
from attrace.schemas import InputError, TraceFormatError, TraceNotFoundError

MAKERS: list[Callable[..., Any]] = [ulam, tlam, hlam, llam]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three traces, of which `c` has another layer, one more head and fewer steps."""
    runs = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate("ab"):
        make_trace(runs / f"{name}.zarr", seed=seed, steps=6)
    other = site_class("reference/16x16h3d8", heads=3, query_grid=(4, 4), layers=("down.0.attn2", "mid.attn2"))
    (runs / "deeper").mkdir()
    make_trace(runs / "deeper" / "c.zarr", (other,), steps=2)
    return runs


@pytest.fixture(scope="module")
def traces(folder: Path) -> Traces:
    return open_traces([folder / "a.zarr", folder / "b.zarr", folder / "deeper/c.zarr"])


def names(traces: Traces) -> list[str]:
    return [Path(trace.path).name for trace in traces]


def test_sources_are_folders_globs_and_lists(folder: Path) -> None:
    assert names(open_traces(folder)) == ["a.zarr", "b.zarr", "c.zarr"]
    assert names(open_traces(f"{folder}/*.zarr")) == ["a.zarr", "b.zarr"]
    assert names(open_traces(f"{folder}/**/c.zarr")) == ["c.zarr"]
    assert names(open_traces([folder / "b.zarr", f"{folder}/?.zarr"])) == ["b.zarr", "a.zarr"]


def test_a_source_without_traces_is_refused(folder: Path, tmp_path: Path) -> None:
    for source in (tmp_path, folder / "none.zarr", f"{folder}/*.none"):
        with pytest.raises(TraceNotFoundError, match="no trace at"):
            open_traces(source)


def test_a_broken_trace_is_left_out_on_request(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr")
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "zarr.json").write_text("{")
    with pytest.raises(TraceFormatError, match=r"b\.zarr"):
        open_traces(tmp_path)
    opened = open_traces(tmp_path, broken="skip")
    assert names(opened) == ["a.zarr"]
    assert list(opened.broken) == [str(tmp_path / "b.zarr")]
    assert "1 broken" in repr(opened)
    with pytest.raises(TraceFormatError):
        open_traces(tmp_path / "b.zarr", broken="skip")


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_each_map_is_that_of_its_trace(traces: Traces, maker: Callable[..., Any], direction: str) -> None:
    many = maker(traces, direction=direction, size=(8, 8)).compute(scheduler="threads")
    assert many.sizes["trace"] == 3
    for place, trace in enumerate(traces):
        one = maker(trace, direction=direction, size=(8, 8)).compute()
        labels = {dim: one[dim] for dim in one.dims if dim in ("layer", "head")}
        mine = many.isel(trace=place).sel(labels)
        mine = mine.isel(time_group=slice(one.sizes["time_group"])) if "time_group" in one.dims else mine
        assert np.array_equal(mine.values, one.values)


def test_what_a_trace_lacks_is_nan(traces: Traces) -> None:
    layers = llam(traces).compute()
    assert layers["layer"].values.tolist() == ["down.0.attn2", "up.0.attn2", "mid.attn2"]
    lacking = layers.isnull().all(["row", "column"]).values
    assert lacking.tolist() == [[False, False, True], [False, False, True], [False, True, False]]
    assert hlam(traces)["head"].values.tolist() == [0, 1, 2]
    assert traces.shared_layers == ("down.0.attn2",)
    assert not llam(traces.sel(layer=traces.shared_layers)).isnull().any()


def test_the_default_size_is_the_finest_grid_of_all(traces: Traces) -> None:
    assert dict(ulam(traces).sizes) == {"trace": 3, "row": 8, "column": 8}


def test_metadata_are_coordinates(traces: Traces) -> None:
    heat = ulam(traces)
    assert heat["trace"].values.tolist() == [trace.path for trace in traces]
    assert heat["id"].values.tolist() == [trace.manifest.id for trace in traces]
    assert heat["steps"].values.tolist() == [6, 6, 2]
    assert set(heat.coords) >= {"seed", "model", "status", "scheduler", "guidance_scale", "prompt"}


def test_nothing_is_read_until_asked(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr/reference/64x16h2d8/query_vector/c")
    heat = llam(open_traces(tmp_path))
    shutil.rmtree(tmp_path / "a.zarr")
    shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr")
    assert np.array_equal(heat.compute()[0], llam(open_trace(folder / "a.zarr")).compute())


def test_the_graph_is_small(traces: Traces) -> None:
    graph = dict(dask.base.optimize(ulam(traces))[0].__dask_graph__())
    assert len(graph) <= 3 * len(traces)
    assert len(pickle.dumps(graph)) < 20_000 * len(traces)


def test_a_direction_without_a_map_names_the_trace(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr")
    words = site_class("reference/64x3h2d8", key_grid=None, keys=3, key_segments=({"kind": "other", "count": 3},))
    make_trace(tmp_path / "words.zarr", (words,))
    with pytest.raises(InputError, match=r"words\.zarr"):
        ulam(open_traces(tmp_path), direction="g2r")
