"""Marginals kept in the store: the same maps, read instead of computed; ignored where they do not fit."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import dask.base
import numpy as np
import pytest
import zarr
from support.documents import edit_document, seal_again
from support.exact import counted_reads, random_calls, write_calls
from support.traces import make_trace, site_class

from attrace.analysis import Trace, hlam, llam, marginals, open_trace, precompute, sram, tlam, ulam
from attrace.analysis.integrity.verify import verify
from attrace.schemas import InputError, TraceFormatError
from attrace.schemas.layout import DERIVED

CLASSES = (
    site_class(cls=True, group="reference/64x17h2d8"),
    site_class("reference/12x6h3d8", query_grid=(4, 3), key_grid=(2, 3), heads=3, layers=("mid",), encoding="scores"),
    site_class("reference.unconditional/64x16h2d8", branch="unconditional", context="reference"),
)
STEPS = 12
GROUP = "reference/64x16h2d8"
"""Of a trace that `make_trace` makes."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    calls = random_calls(CLASSES, STEPS)
    del calls["reference/64x17h2d8", 3, 0]
    return write_calls(tmp_path / "run.zarr", CLASSES, calls, steps=STEPS)


def every_map(trace: Trace) -> list[Any]:
    makers: tuple[Any, ...] = (ulam, tlam, hlam, llam)
    maps = [make(trace, direction=direction) for make in makers for direction in ("r2g", "g2r")]
    return list(dask.base.compute(*maps))


def test_the_same_maps_without_reading_the_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_trace(path)
    expected = every_map(before)
    after = precompute(before)
    assert after.path == before.path
    with counted_reads(monkeypatch) as read:
        found = every_map(after)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)
        assert one.attrs == other.attrs
    assert read
    assert all("/derived/" in key for key in read)


def test_every_branch_and_selection(path: Path) -> None:
    before = open_trace(path)
    after = precompute(path)
    for selection in (
        {"branch": "unconditional"},
        {"time": [1, 3, 4, 11]},
        {"head": [1]},
        {"layer": "up*", "time": slice(5, None)},
    ):
        parts = [trace.sel(**selection) for trace in (before, after)]
        np.testing.assert_allclose(llam(parts[1]), llam(parts[0]), rtol=2e-6)
        group = parts[0].classes[0].group
        for name in ("r2g", "g2r"):
            computed, kept = (marginals(part)[group][name] for part in parts)
            np.testing.assert_allclose(kept, computed, rtol=2e-6)


def test_other_queries_and_keys_are_computed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = open_trace(path), precompute(path)
    mask = np.eye(4, dtype=bool)
    with counted_reads(monkeypatch) as read:
        np.testing.assert_allclose(ulam(after, keys=mask), ulam(before, keys=mask), rtol=2e-6)
        np.testing.assert_allclose(sram(after, (1, 1)), sram(before, (1, 1)), rtol=2e-6)
    assert not any("/derived/" in key for key in read)


def test_the_trace_stays_sound(path: Path) -> None:
    precompute(path)
    assert verify(path).valid
    assert open_trace(path).stored.root.metadata.consolidated_metadata is not None


def modified(path: Path) -> dict[str, int]:
    return {str(one): one.stat().st_mtime_ns for one in path.rglob("*") if one.is_file()}


def test_what_is_there_is_not_computed_again(path: Path) -> None:
    precompute(path)
    before = modified(path)
    precompute(path)
    assert modified(path) == before
    precompute(path, overwrite=True)
    after = modified(path)
    assert all(after[name] > before[name] for name in before if "/derived/" in name)


def test_what_covers_other_steps_does_not_count(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precompute(path)
    zarr.open_array(path / "step_done")[STEPS - 1] = 0
    edit_document(path / "zarr.json", lambda root: root["attributes"]["attrace"].update(steps=STEPS - 1))
    seal_again(path)
    shorter = open_trace(path)
    assert shorter.steps == STEPS - 1
    with counted_reads(monkeypatch) as read:
        stale = ulam(shorter).values
    assert not any("/derived/" in key for key in read)
    again = precompute(path)
    np.testing.assert_allclose(ulam(again), stale, rtol=2e-6)
    with counted_reads(monkeypatch) as read:
        ulam(again).compute()
    assert all("/derived/" in key for key in read)


def test_what_was_cut_off_does_not_count(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ulam(precompute(path)).values
    module = import_module("attrace.analysis.maps.precompute")  # the face has a function of this name

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_announce", fail)
        with pytest.raises(KeyboardInterrupt):
            precompute(path, overwrite=True)
    for group in ("reference/64x17h2d8", "reference/12x6h3d8"):
        zarr.open_array(path / group / "derived/r2g")[:] = 7  # what must not be read
    trace = open_trace(path)
    np.testing.assert_allclose(ulam(trace), expected, rtol=2e-6)
    np.testing.assert_allclose(ulam(precompute(path)), expected, rtol=2e-6)


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda cache: (cache / name).write_text(text)


def _replace_by_a_file(cache: Path) -> None:
    shutil.rmtree(cache)
    cache.write_text("")


def _lose_an_array(cache: Path) -> None:
    shutil.rmtree(cache / "r2g")


def _flip_a_bit(cache: Path) -> None:
    chunk = cache / "r2g/c/0/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        *(_write("zarr.json", text) for text in ("{", "[1]", "{}", "[" * 5000)),
        *(_write("r2g/zarr.json", text) for text in ("{", "{}")),
        lambda cache: (cache / "zarr.json").unlink(),
        _replace_by_a_file,
        _lose_an_array,
        _flip_a_bit,
    ],
)
def test_what_is_damaged_is_computed_again(tmp_path: Path, change: Callable[[Path], object], is_closed: bool) -> None:
    path = make_trace(tmp_path / "made.zarr", status="complete" if is_closed else None).path
    expected = ulam(precompute(path)).values
    change(path / GROUP / DERIVED)
    np.testing.assert_array_equal(ulam(precompute(path, overwrite=True)).values, expected)
    assert verify(path).problems == ()


def test_what_is_damaged_around_it_is_one_error(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr").path
    (path / GROUP / "zarr.json").write_bytes(b"{\x93")
    with pytest.raises(TraceFormatError, match=r"metadata around its marginals .*attrace verify"):
        precompute(path)


def test_a_damaged_chunk_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr").path
    precompute(path)
    _flip_a_bit(path / GROUP / DERIVED)
    with pytest.raises(TraceFormatError, match=r"c/0/0/0/0 of array .*/derived/r2g.*attrace precompute --overwrite"):
        ulam(open_trace(path)).compute()


def test_old_marginals_stop_counting_before_they_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precompute(path)
    module = import_module("attrace.analysis.maps.precompute")  # the face has a function of this name
    seen: list[bool] = []

    def look(*_: Any) -> None:
        fresh = open_trace(path)
        seen.append(any("/derived" in str(key) for key in ulam(fresh).data.__dask_graph__()))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_marginals", look)
    with pytest.raises(KeyboardInterrupt):
        precompute(path, overwrite=True)
    attributes = zarr.open_group(path, mode="r")["reference/64x17h2d8"].attrs
    assert seen == [False]
    assert "steps" not in attributes


@pytest.mark.parametrize("status", ["interrupted", None])
def test_interrupted_traces(tmp_path: Path, status: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_trace(tmp_path / "run.zarr", steps=3, status=status).path
    expected = ulam(open_trace(path)).values
    after = precompute(path)
    assert (after.stored.root.metadata.consolidated_metadata is None) == (status is None)
    with counted_reads(monkeypatch) as read:
        np.testing.assert_allclose(ulam(after), expected, rtol=2e-6)
    assert all("/derived/" in key for key in read)


def test_steps_that_are_not_done_are_left_out(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", steps=4, status=None).path
    zarr.open_array(path / "step_done")[:] = np.array([1, 0, 1, 0], np.uint8)
    expected = llam(open_trace(path)).values
    np.testing.assert_allclose(llam(precompute(path)), expected, rtol=2e-6)


def test_float64_is_left_out(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", (site_class(dtype="float64"),)).path
    before = ulam(open_trace(path)).values
    np.testing.assert_array_equal(ulam(precompute(path)), before)
    assert not (path / "reference/64x16h2d8/derived").exists()


def test_many_steps_are_kept_in_chunks(tmp_path: Path) -> None:
    one = site_class(query_grid=(2, 2), key_grid=(2, 2), features=2, group="reference/4x4h2d2", layers=("x",))
    calls = random_calls((one,), 70)
    path = write_calls(tmp_path / "run.zarr", (one,), calls, steps=70)
    expected = tlam(open_trace(path), groups=7).values
    after = precompute(path)
    np.testing.assert_allclose(tlam(after, groups=7), expected, rtol=2e-6)
    kept = after.stored.array("reference/4x4h2d2/derived/r2g")
    assert kept.array.chunks == (64, 1, 2, 4)


def test_a_zip_cannot_be_added_to(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "run.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for one in sorted(path.rglob("*")):
            if one.is_file():
                archive.write(one, one.relative_to(path))
    with pytest.raises(InputError, match=r"is a \.zip, which cannot be added to"):
        precompute(packed)


def test_a_trace_without_steps(tmp_path: Path) -> None:
    path = write_calls(tmp_path / "run.zarr", CLASSES, {}, steps=0)
    assert precompute(path).steps == 0
