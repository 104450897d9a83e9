from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import zarr
import zarr.storage
from numpy.typing import ArrayLike
from support.reading import read_array, read_manifest
from support.traces import make_trace, site_class

from attrace.recorder.writing.chunks import ChunkFiles
from attrace.recorder.writing.store import TraceStore, as_image, create_array, new_manifest_fields
from attrace.schemas import ArraySpec, InputError, Manifest, ModelIdentity, TraceExistsError, TraceNotFoundError
from attrace.schemas.codecs import Codec


def new_store(path: Path, **arguments: Any) -> TraceStore:
    manifest = Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made"))
    return TraceStore(path, manifest, **arguments)


@pytest.mark.parametrize(
    ("codec", "keys", "compressors"),
    [
        ("none", 50, []),
        ("zstd", 50, ["zstd"]),
        ("auto", 50, ["zstd"]),
        ("zstd", 150_000, ["zstd"]),
        ("auto", 150_000, ["blosc"]),  # a block of blosc and a part of one
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_chunks_have_the_bytes_that_zarr_writes(
    dtype: str, codec: Codec, keys: int, compressors: list[str], tmp_path: Path
) -> None:
    spec = ArraySpec("values", ("time", "layer", "key"), (3, 2, keys), (1, 1, keys), dtype, -1)
    values = (np.random.default_rng(0).normal(size=(3, 2, keys)) * 100).astype(dtype)
    group = zarr.create_group(tmp_path, zarr_format=3)
    array = create_array(group, spec, codec)
    array[...] = values
    files = [path for path in (tmp_path / "values" / "c").rglob("*") if path.is_file()]
    by_zarr = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    chunks = ChunkFiles(tmp_path / "values", spec, codec)
    for step in range(3):
        for layer in range(2):
            chunks.write((step, layer), values[step, layer])
    assert {path: path.read_bytes() for path in files} == by_zarr
    assert len(by_zarr) == 6
    assert [one["name"] for one in array.metadata.to_dict()["codecs"]] == ["bytes", *compressors, "crc32c"]  # type: ignore[index,union-attr,call-overload]
    np.testing.assert_array_equal(array[...], values)


def test_bfloat16_takes_less_than_its_two_bytes_and_loses_nothing(tmp_path: Path) -> None:
    one = site_class(query_grid=(64, 64), features=64)
    query = np.random.default_rng(0).normal(size=(2, 64 * 64, 64)).astype(np.float32)
    query = (query.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # cut to the bits of a bfloat16
    query.reshape(-1)[:4] = 0.0, -0.0, 2.0**-133, 2.0**127  # the last two are no float16
    sizes: dict[Codec, float] = {}
    codecs: tuple[Codec, ...] = ("auto", "zstd")
    for codec in codecs:
        path = tmp_path / codec
        store = new_store(path, codec=codec)
        store.add_classes((one,))
        store.write(one.group, "query_vector", step=0, layer=0, values=query)
        store.finish_step(0, call=0, timestep=0)
        store.close("complete")
        sizes[codec] = (path / one.group / "query_vector/c/0/0/0/0/0").stat().st_size / query.size
        stored = read_array(path, f"{one.group}/query_vector")[0, 0]
        np.testing.assert_array_equal(stored.view(np.uint32), query.view(np.uint32))
    assert sizes["auto"] < 1.4 < 1.9 < sizes["zstd"]


def test_steps_beyond_one_chunk_of_a_series(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run.zarr", steps=4)
    one = site_class(query_grid=(1, 1), key_grid=(1, 1), features=1)
    store.add_classes((one,))
    for step in range(1030):
        for layer in range(2):
            store.write(one.group, "key_step", step=step, layer=layer, values=np.int32(step + layer))
        if step in (0, 1022, 1023, 1024, 1029):
            store.finish_step(step, call=2 * step, timestep=step / 2)
    store.close("complete")
    done = read_array(tmp_path / "run.zarr", "step_done")
    assert done.shape == (1030,)
    assert np.flatnonzero(done).tolist() == [0, 1022, 1023, 1024, 1029]
    assert read_array(tmp_path / "run.zarr", "time")[[0, 1023, 1029]].tolist() == [0, 2046, 2058]
    assert read_array(tmp_path / "run.zarr", f"{one.group}/key_step")[1029].tolist() == [1029, 1030]


def test_closing_cuts_to_the_finished_steps(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run.zarr", steps=64)
    one = site_class()
    store.add_classes((one,))
    for step in range(3):
        store.write(one.group, "query_vector", step=step, layer=0, values=np.full((2, 64, 8), step, np.float32))
        if step < 2:
            store.finish_step(step, call=step, timestep=0)
    store.close("interrupted")
    manifest = read_manifest(tmp_path / "run.zarr")
    assert (manifest.steps, manifest.status) == (2, "interrupted")
    assert manifest.finished is not None
    query = read_array(tmp_path / "run.zarr", f"{one.group}/query_vector")
    assert query.shape == (2, 2, 2, 64, 8)
    assert query[1, 0].max() == 1
    assert np.isnan(query[:, 1]).all()
    chunks = tmp_path / "run.zarr" / one.group / "query_vector/c"
    assert sorted(path.name for path in chunks.iterdir()) == ["0", "1"]
    assert len([path for path in chunks.rglob("*") if path.is_file()]) == 2
    assert zarr.open_group(tmp_path / "run.zarr", mode="r").metadata.consolidated_metadata is not None


def test_closing_looks_for_no_chunk_that_was_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: zarr.storage.LocalStore, key: str) -> None:
        raise AssertionError(f"zarr was asked to delete {key}")

    monkeypatch.setattr(zarr.storage.LocalStore, "delete", refuse)
    store = new_store(tmp_path / "run.zarr", steps=10**7)
    store.add_classes((site_class(),))
    store.finish_step(0, call=0, timestep=0)
    store.require_capacity(2 * 10**7)
    store.close("complete")
    assert read_array(tmp_path / "run.zarr", "step_done").tolist() == [1]


def test_closing_removes_what_a_step_left_that_could_not_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "run.zarr", steps=2000)
    write = ChunkFiles.write

    def write_until_full(self: ChunkFiles, place: Sequence[int], values: ArrayLike) -> None:
        if self._folder.name == "step_done" and place[0] == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, place, values)

    monkeypatch.setattr(ChunkFiles, "write", write_until_full)
    store.finish_step(1023, call=1023, timestep=0)
    with pytest.raises(OSError, match="No space"):
        store.finish_step(1024, call=1024, timestep=0)
    assert (tmp_path / "run.zarr/time/c/1").exists()
    store.close("interrupted")
    for name in ("time", "timestep", "step_done"):
        assert [path.name for path in (tmp_path / "run.zarr" / name / "c").iterdir()] == ["0"]
        assert read_array(tmp_path / "run.zarr", name).shape == (1024,)


def test_a_trace_is_replaced_only_on_request_and_other_things_never(tmp_path: Path) -> None:
    make_trace(tmp_path / "run.zarr")
    first = read_manifest(tmp_path / "run.zarr").id
    with pytest.raises(TraceExistsError, match="--overwrite"):
        new_store(tmp_path / "run.zarr")
    new_store(tmp_path / "run.zarr", overwrite=True)
    assert read_manifest(tmp_path / "run.zarr").id != first
    zarr.create_group(tmp_path / "other.zarr")
    for name in ("other.zarr", "file"):
        (tmp_path / "file").write_text("kept")
        with pytest.raises(TraceExistsError, match="not a trace"):
            new_store(tmp_path / name, overwrite=True)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_store_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run.zarr")
    (tmp_path / "run.zarr").rename(tmp_path / "moved.zarr")
    writes: list[Callable[[], None]] = [
        lambda: store.finish_step(0, call=0, timestep=0),
        lambda: store.update(seed=1),
        lambda: store.write_image("mask", np.zeros((2, 2), np.uint8)),
        lambda: store.close("complete"),
    ]
    for write in writes:
        with pytest.raises(TraceNotFoundError, match="vanished"):
            write()
    assert not (tmp_path / "run.zarr").exists()


class TestImages:
    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
    def test_pictures_of_every_mode_show_the_same(self, mode: str) -> None:
        colours = np.zeros((4, 6, 3), np.uint8)
        colours[:2] = 255
        image = as_image(PIL.Image.fromarray(colours).convert(mode), "reference")
        assert image.shape[:2] == (4, 6)
        assert image.dtype == np.uint8
        shown = image if image.ndim == 2 else image[..., 0]
        np.testing.assert_array_equal(shown, colours[..., 0])

    def test_floats_and_bools(self) -> None:
        np.testing.assert_array_equal(as_image(np.array([[0.0, 0.5, 1.0]]), "mask"), [[0, 128, 255]])
        np.testing.assert_array_equal(as_image(np.array([[False, True]]), "mask"), [[0, 255]])

    @pytest.mark.parametrize(
        "picture",
        [
            np.zeros(3),
            np.zeros((2, 2, 2), np.uint8),
            np.full((2, 2), 1.5),
            np.full((2, 2), np.nan),
            np.ones((2, 2), int),
        ],
    )
    def test_what_is_no_picture_is_refused_by_name(self, picture: Any) -> None:
        with pytest.raises(InputError, match="image 'reference'"):
            as_image(picture, "reference")
