"""Traces as xarray finds them by itself: labelled, lazy, from a folder, a zip file or an address."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.exact import no_computing
from support.traces import MadeTrace, make_trace, site_class

from attrace.analysis import marginals, open_trace, pack, precompute
from attrace.analysis.sharing.xarray_engine import TraceBackendEntrypoint
from attrace.schemas import InputError, KeySegment

REFERENCE = site_class(cls=True)
UNCONDITIONAL = site_class("reference.unconditional/64x16h2d8", branch="unconditional", context="reference")
TEXT = site_class(
    "text/64x2h2d8", key_grid=None, keys=2, key_segments=(KeySegment(kind="text", count=2),), tokens=("red", "cat")
)
GROUPS = {one.group for one in (REFERENCE, UNCONDITIONAL, TEXT)}
PICTURES = {"generated": np.zeros((8, 8, 3), np.uint8), "mask": np.ones((4, 4), np.uint8)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeTrace:
    path = tmp_path_factory.mktemp("traces") / "run.zarr"
    return make_trace(path, (REFERENCE, UNCONDITIONAL, TEXT), steps=4, images=PICTURES)


@pytest.fixture(params=["folder", "zip", "address"])
def place(made: MadeTrace, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if request.param == "folder":
        return str(made.path)
    packed = pack(made.path, tmp_path / "run.zip")
    if request.param == "zip":
        return str(packed)
    memory = request.getfixturevalue("memory")
    return str(memory.put(packed, "memory://backend.zip"))


@pytest.mark.parametrize("chunks", [None, {}])
def test_the_tree_is_labelled_and_lazy(place: str, made: MadeTrace, chunks: dict[str, int] | None) -> None:
    with no_computing():
        tree = xr.open_datatree(place, engine="attrace", chunks=chunks)
        assert set(tree.groups) >= {f"/{group}" for group in GROUPS} | {"/images/generated", "/images/mask"}
        node = tree[REFERENCE.group].to_dataset()
        assert set(node.data_vars) == {"scores", "query_vector", "key_vector", "r2g", "g2r"}
        part = node["scores"].sel(layer="up.0.attn2", time=2)
        if chunks is not None:
            assert node["scores"].variable.chunksizes["time"] == (1,) * 4
    np.testing.assert_allclose(part, made.scores[REFERENCE.group][2, 1], rtol=1e-4, atol=1e-5)
    expected = marginals(open_trace(made.path))[REFERENCE.group]["g2r"]
    np.testing.assert_array_equal(node["g2r"], expected)
    assert tree[TEXT.group].to_dataset()["token"].values.tolist() == ["red", "cat"]
    assert node["scores"].attrs["units"] == "1"
    assert node.attrs["encoding"] == "factors"
    np.testing.assert_array_equal(tree["images/mask/mask"], PICTURES["mask"])


def test_one_group_as_a_dataset(place: str, made: MadeTrace) -> None:
    with no_computing():
        dataset = xr.open_dataset(place, engine="attrace", group=TEXT.group, drop_variables=["query_vector"])
        assert set(dataset.data_vars) == {"scores", "key_vector", "r2g", "g2r"}
    np.testing.assert_allclose(dataset["scores"], made.scores[TEXT.group], rtol=1e-4, atol=1e-5)


def test_a_group_must_be_chosen_among_several(made: MadeTrace, tmp_path: Path) -> None:
    for group in (None, "reference/none"):
        with pytest.raises(InputError, match=f"one of .*{TEXT.group}"):
            xr.open_dataset(made.path, engine="attrace", group=group)
    alone = make_trace(tmp_path / "run.zarr").path
    assert "scores" in xr.open_dataset(alone, engine="attrace")


def test_xarray_finds_a_trace_by_itself(made: MadeTrace, tmp_path: Path) -> None:
    packed = pack(made.path, tmp_path / "run.zip")
    for path in (made.path, packed):
        assert "scores" in xr.open_datatree(path)[REFERENCE.group]
    xr.Dataset({"x": ("a", [1.0])}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    (tmp_path / "text.zip").write_text("?")
    guess = TraceBackendEntrypoint().guess_can_open
    others = (tmp_path / "other.zarr", tmp_path / "text.zip", tmp_path / "none.zarr", tmp_path, "s3://a/run.zarr", b"?")
    assert [path for path in others if guess(path)] == []
    assert xr.open_dataset(tmp_path / "other.zarr", consolidated=False)["x"].values.tolist() == [1.0]


def test_a_copy_without_scores_has_the_marginals(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr").path
    precompute(path)
    tree = xr.open_datatree(pack(path, tmp_path / "run.zip", only_derived=True), engine="attrace")
    node = tree[REFERENCE.group].to_dataset()
    assert set(node.data_vars) == {"r2g", "g2r"}
    assert float(node["r2g"].sum("query").mean()) == pytest.approx(1, rel=1e-5)
