"""Traces that published versions of the format wrote are read for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from support.published import FACTORS, MANIFEST, SCORES, STEPS, expected_arrays, write_published

from attrace.schemas import VERSION, Manifest, manifest_arrays, parse_manifest
from attrace.schemas.layout import class_attributes

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = sorted(DATA.glob("trace-*.zip"))


def _open(path: Path) -> zarr.Group:
    return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")


@pytest.fixture(params=[*PUBLISHED, None], ids=[*(path.stem for path in PUBLISHED), "now"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A trace that is kept, or the same as this code writes it."""
    if request.param is not None:
        return Path(request.param)
    write_published(tmp_path / "now.zip")
    return tmp_path / "now.zip"


def test_this_version_is_kept() -> None:
    assert DATA / f"trace-{VERSION}.zip" in PUBLISHED


def _manifest(path: Path) -> Manifest:
    return parse_manifest(_open(path).attrs["attrace"], where=str(path))


def test_the_manifest_is_what_was_written(published: Path) -> None:
    manifest = _manifest(published)
    own = {"version": manifest.version, "finished": manifest.finished}
    assert manifest == MANIFEST.replace(status="complete", steps=STEPS, classes=(FACTORS, SCORES), **own)


def test_every_array_is_what_was_written(published: Path) -> None:
    root = _open(published)
    for name, expected in expected_arrays(_manifest(published).major).items():
        array = root[name]
        assert isinstance(array, zarr.Array)
        np.testing.assert_array_equal(np.asarray(array[...], np.float64), expected, err_msg=name)


def test_every_array_is_as_the_layout_says(published: Path) -> None:
    root = _open(published)
    for path, spec in manifest_arrays(_manifest(published), STEPS).items():
        array = root[path]
        assert isinstance(array, zarr.Array)
        assert (array.shape, array.chunks, array.dtype.name) == (spec.shape, spec.chunks, spec.dtype), path
        assert array.metadata.to_dict()["dimension_names"] == spec.dims, path
        np.testing.assert_equal(array.fill_value, spec.fill, err_msg=path)
        codecs = [codec["name"] for codec in array.metadata.to_dict()["codecs"]]  # type: ignore[index,union-attr,call-overload]
        assert codecs == ["bytes", "zstd", "crc32c"], path


def test_coordinates_repeat_the_grids(published: Path) -> None:
    group = _open(published)[FACTORS.group]
    assert isinstance(group, zarr.Group)
    stored = {name: np.asarray(group[name][...]).tolist() for name in ("query_row", "key_row", "key_column")}  # type: ignore[index]
    assert stored == {
        "query_row": [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
        "key_row": [-1, 0, 0, 1, 1],
        "key_column": [-1, 0, 1, 0, 1],
    }


def test_groups_name_their_layers(published: Path) -> None:
    if _manifest(published).major == 1:
        pytest.skip("version 1 has the names in the manifest alone")
    for one in (FACTORS, SCORES):
        assert dict(_open(published)[one.group].attrs) == class_attributes(one)
