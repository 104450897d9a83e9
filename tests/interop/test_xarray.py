"""Plain xarray opens a trace as labelled, lazy variables, without attrace's engine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr.storage
from support.traces import MadeTrace, make_trace, site_class

from attrace.analysis import open_trace, pack, precompute, repair
from attrace.analysis.integrity.verify import verify
from attrace.schemas import KeySegment

FACTORS = site_class(cls=True)
WORDS: dict[str, Any] = {"keys": 2, "key_segments": (KeySegment(kind="text", count=2),)}
SCORES = site_class("text/64x2h2d8", encoding="scores", key_grid=None, first_order=2, **WORDS)
PICTURES = {"generated": np.zeros((16, 16, 3), np.uint8), "reference": np.ones((8, 4, 3), np.uint8)}
PICTURES["mask"] = PICTURES["generated"][..., 0]
DIMS = {
    "scores": ("time", "layer", "head", "query", "key"),
    "query_vector": ("time", "layer", "head", "query", "feature"),
    "key_vector": ("time", "layer", "head", "key", "feature"),
    "called": ("time", "layer"),
    "key_step": ("time", "layer"),
    "r2g": ("time", "layer", "head", "query"),
}


@pytest.fixture
def made(tmp_path: Path) -> MadeTrace:
    made = make_trace(tmp_path / "run.zarr", (FACTORS, SCORES), steps=4, images=PICTURES)
    precompute(made.path)
    return made


def _open(path: Path, **options: Any) -> xr.DataTree:
    store: Any = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else path
    return xr.open_datatree(store, engine="zarr", chunks={}, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_every_class_is_labelled(made: MadeTrace, tmp_path: Path, packed: bool) -> None:
    tree = _open(pack(made.path, tmp_path / "run.zip") if packed else made.path)
    factors = tree[FACTORS.group].to_dataset()
    scores = tree[SCORES.group].to_dataset()
    assert set(factors.data_vars) == {"query_vector", "key_vector", "key_step", "called"}
    assert set(scores.data_vars) == {"scores", "called"}
    for dataset in (factors, scores, tree[f"{FACTORS.group}/derived"].to_dataset()):
        for name, variable in dataset.data_vars.items():
            assert variable.dims == DIMS.get(str(name), variable.dims)
    positions = {"query_row", "query_column"}
    assert set(factors.coords) == {"time", "timestep", "layer", "head", "key_row", "key_column"} | positions
    assert set(scores.coords) == {"time", "timestep", "layer", "head"} | positions
    assert {values.dtype.name for values in factors.coords.values()} == {"int32", "float32"}
    assert scores["layer"].values.tolist() == [2, 3]
    assert scores.attrs["layers"] == ["down.0.attn2", "up.0.attn2"]
    assert factors["timestep"].values.tolist() == [1000, 900, 800, 700]
    found = scores["scores"].sel(time=2, layer=3, head=1)
    np.testing.assert_array_equal(found, made.scores[SCORES.group][2, 1, 1].astype(np.float32))
    assert found.attrs["long_name"]


def test_pictures_of_several_sizes_share_a_tree(made: MadeTrace) -> None:
    images = _open(made.path)["images"].to_dataset()
    assert {str(name): images[name].shape for name in images} == {
        name: picture.shape for name, picture in PICTURES.items()
    }


def test_a_trace_that_was_cut_off_and_repaired(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", (FACTORS,), status=None).path
    assert _open(path, consolidated=False)[FACTORS.group].sizes["time"] == 3
    repair(path)
    dataset = _open(path)[FACTORS.group].to_dataset()
    assert dataset["timestep"].values.tolist() == [1000, 900, 800]
    assert dataset["time"].values.tolist() == [0, 1, 2]


@pytest.mark.skipif(not find_spec("zarrs"), reason="zarrs is not installed")
def test_a_pipeline_of_codecs_that_drops_empty_chunks_loses_nothing(tmp_path: Path) -> None:
    import zarrs  # noqa: F401 (registers the pipeline)

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        path = make_trace(tmp_path / "run.zarr", (FACTORS, SCORES), steps=1, images=PICTURES).path
        assert verify(path).valid
    assert not open_trace(path).images["generated"].values.any()
