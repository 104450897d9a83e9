"""The arrays of a trace: names, dims, shapes, chunks, data types, fill values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.manifests import small_manifest

from attrace.schemas import (
    ArraySpec,
    SiteClass,
    class_arrays,
    class_group,
    derived_arrays,
    image_array,
    manifest_arrays,
    parse_manifest,
    root_arrays,
)
from attrace.schemas.layout import DATA_ARRAYS, chunk_key, class_attributes, coordinate_values, stored_name


def _site_class(**members: object) -> SiteClass:
    stored = small_manifest()
    stored["classes"][0] |= members
    return parse_manifest(stored, where="made").classes[0]


def _shapes(arrays: tuple[ArraySpec, ...]) -> dict[str, dict[str, int]]:
    return {array.name: dict(zip(array.dims, array.shape, strict=True)) for array in arrays}


def test_root_arrays() -> None:
    assert [(array.name, array.dtype) for array in root_arrays(5)] == [
        ("time", "int32"),
        ("timestep", "float32"),
        ("step_done", "uint8"),
    ]
    assert all((array.dims, array.shape, array.chunks) == (("time",), (5,), (1024,)) for array in root_arrays(5))


def test_factors_hold_queries_keys_and_where_the_keys_are() -> None:
    assert _shapes(class_arrays(_site_class(has_bias=True, has_lse=True), steps=5)) == {
        "query_vector": {"time": 5, "layer": 2, "head": 2, "query": 16, "feature": 8},
        "key_vector": {"time": 5, "layer": 2, "head": 2, "key": 3, "feature": 8},
        "key_step": {"time": 5, "layer": 2},
        "called": {"time": 5, "layer": 2},
        "bias": {"time": 5, "layer": 2, "key": 3},
        "lse": {"time": 5, "layer": 2, "head": 2, "query": 16},
        "head": {"head": 2},
        "layer": {"layer": 2},
        "query_row": {"query": 16},
        "query_column": {"query": 16},
        "time": {"time": 5},
        "timestep": {"time": 5},
    }


def test_scores_hold_scores_alone() -> None:
    arrays = class_arrays(_site_class(encoding="scores", query_grid=None), steps=5)
    assert _shapes(arrays) == {
        "scores": {"time": 5, "layer": 2, "head": 2, "query": 16, "key": 3},
        "called": {"time": 5, "layer": 2},
        "head": {"head": 2},
        "layer": {"layer": 2},
        "time": {"time": 5},
        "timestep": {"time": 5},
    }


def test_keys_on_a_grid_have_rows_and_columns() -> None:
    segments = [{"kind": "cls", "count": 1}, {"kind": "patch", "count": 2, "grid": [1, 2]}]
    shapes = _shapes(class_arrays(_site_class(key_segments=segments), steps=5))
    assert shapes["key_row"] == shapes["key_column"] == {"key": 3}


@pytest.mark.parametrize("encoding", ["scores", "factors"])
def test_a_chunk_of_data_is_one_step_of_one_layer(encoding: str) -> None:
    site_class = _site_class(encoding=encoding, has_lse=True, has_bias=encoding == "factors")
    data = [array for array in class_arrays(site_class, steps=5, closed=False) if array.dims[0] == "time"]
    for array in data:
        expected = (1024, 2) if array.name in ("key_step", "called") else (1, 1, *array.shape[2:])
        assert array.chunks == expected, array.name


def test_stored_values_have_the_type_of_the_class_and_helpers_their_own() -> None:
    arrays = class_arrays(_site_class(has_bias=True, has_lse=True), steps=1)
    by_type = {dtype: {array.name for array in arrays if array.dtype == dtype} for dtype in ("float16", "float32")}
    assert by_type == {"float16": {"query_vector", "key_vector"}, "float32": {"bias", "lse", "timestep"}}


def test_what_was_never_written_is_told_from_any_value() -> None:
    for array in (*root_arrays(1), *class_arrays(_site_class(has_bias=True, has_lse=True), steps=1)):
        expected = {"float16": math.nan, "float32": math.nan, "int32": -1, "uint8": 0}[array.dtype]
        assert array.fill == expected or (math.isnan(array.fill) and math.isnan(expected)), array.name


def test_marginals_keep_both_directions_in_bounded_chunks() -> None:
    arrays = derived_arrays(_site_class(), steps=1000)
    assert _shapes(arrays) == {
        "r2g": {"time": 1000, "layer": 2, "head": 2, "query": 16},
        "g2r": {"time": 1000, "layer": 2, "head": 2, "key": 3},
    }
    assert [array.chunks for array in arrays] == [(64, 1, 2, 16), (64, 1, 2, 3)]


@pytest.mark.parametrize(("shape", "dims"), [((4, 5), ("row", "column")), ((4, 5, 3), ("row", "column", "channel"))])
def test_a_picture_is_one_chunk(shape: tuple[int, ...], dims: tuple[str, ...]) -> None:
    own = tuple(f"mask_{dim}" for dim in dims)
    assert image_array("images/mask", shape) == ArraySpec("images/mask", own, shape, shape, "uint8", 0)
    assert image_array("mask", shape, major=1) == ArraySpec("mask", dims, shape, shape, "uint8", 0)


@pytest.mark.parametrize(
    ("members", "group"),
    [
        ({}, "text/16x3h2d8"),
        ({"branch": "unconditional"}, "text.unconditional/16x3h2d8"),
        ({"context": "image-prompt"}, "image-prompt/16x3h2d8"),
    ],
)
def test_usual_group(members: dict[str, str], group: str) -> None:
    assert class_group(_site_class(**members)) == group


def test_where_a_chunk_lies() -> None:
    assert chunk_key((3, 0, 12)) == "c/3/0/12"
    assert chunk_key(()) == "c"


def test_what_the_coordinate_arrays_hold() -> None:
    segments = [{"kind": "cls", "count": 1}, {"kind": "patch", "count": 4, "grid": [2, 2]}]
    one = _site_class(queries=6, query_grid=[2, 3], keys=5, key_segments=segments, tokens=None)
    values = coordinate_values(one)
    specs = {spec.name: spec for spec in class_arrays(one, 0, data=False, closed=False)}
    assert values.keys() == specs.keys()
    assert {name: array.shape for name, array in values.items()} == {name: spec.shape for name, spec in specs.items()}
    assert {array.dtype for array in values.values()} == {np.dtype(np.int32)}
    assert values["layer"].tolist() == [0, 1]
    assert values["query_column"].tolist() == [0, 1, 2, 0, 1, 2]
    assert values["key_row"].tolist() == [-1, 0, 0, 1, 1]
    assert values["key_column"].tolist() == [-1, 0, 1, 0, 1]


def test_arrays_of_version_1() -> None:
    one = _site_class(has_bias=True)
    assert [spec.name for spec in class_arrays(one, 5, major=1)] == [
        "query", "key", "key_step", "bias", "head", "query_row", "query_column"
    ]  # fmt: skip
    assert (stored_name("scores", 1), stored_name("key_vector", 1)) == ("scores", "key")


@pytest.mark.parametrize("status", ["recording", "complete"])
def test_a_class_repeats_the_times_once_the_trace_is_closed(status: str) -> None:
    manifest = parse_manifest(small_manifest() | {"status": status}, where="made")
    times = {path for path in manifest_arrays(manifest, 5) if path.rpartition("/")[2] in ("time", "timestep")}
    group = {f"text/16x3h2d8/{name}" for name in ("time", "timestep")}
    assert times == {"time", "timestep"} | (group if status == "complete" else set())


def test_a_copy_of_the_marginals_alone_promises_no_data() -> None:
    stored = small_manifest() | {"omitted": {"source": "0" * 32, "parts": ["scores"]}}
    names = {path.rpartition("/")[2] for path in manifest_arrays(parse_manifest(stored, where="made"), 5)}
    assert names.isdisjoint(DATA_ARRAYS)


def test_what_labels_a_class() -> None:
    one = _site_class()
    assert class_attributes(one) == {
        "layers": ["down.0.attn2", "up.0.attn2"],
        "coordinates": "timestep query_row query_column",
    }
