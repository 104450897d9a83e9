"""A value of the wrong type, or no choice, is one sentence that says what was expected and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.traces import make_trace

import attrace

A_TRACE = "trace: expected a trace, which attrace.open_trace opens, found the "
NUMBERS = ": expected a number, several of them, or a slice of them with both ends included, found the "


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return attrace.open_trace(make_trace(tmp_path_factory.mktemp("made") / "run.zarr").path)


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("ulam", ("run.zarr",), "str 'run.zarr'"),
        ("tlam", (Path("run.zarr"),), "PosixPath PosixPath('run.zarr')"),
        ("llam", ([1],), "list [1]"),
        (
            "sram",
            (
                "run.zarr",
                (1, 1),
            ),
            "str 'run.zarr'",
        ),
        (
            "token_map",
            (
                "run.zarr",
                "cat",
            ),
            "str 'run.zarr'",
        ),
        ("marginals", (None,), "NoneType None"),
        ("content_id", ("run.zarr",), "str 'run.zarr'"),
        ("correspondence", (5,), "int 5"),
        ("score_trace", ("run.zarr",), "str 'run.zarr'"),
        ("resampler_shares", ("run.zarr",), "str 'run.zarr'"),
        ("plot", ("run.zarr",), "str 'run.zarr'"),
        (
            "write_report",
            (
                "run.zarr",
                "report.html",
            ),
            "str 'run.zarr'",
        ),
    ],
)
def test_what_takes_a_trace_refuses_anything_else(name: str, arguments: tuple[Any, ...], found: str) -> None:
    with pytest.raises(attrace.InputTypeError) as raised:
        getattr(attrace, name)(*arguments)
    assert str(raised.value) == A_TRACE + found


@pytest.mark.parametrize(
    "name", ["entropy", "effective_tokens", "imacs", "mass", "agreement", "as_published", "bounding_box"]
)
def test_what_takes_a_map_refuses_a_trace(trace: Any, name: str) -> None:
    more = {"imacs": ([[1, 0]],), "mass": ([[1, 0]],), "agreement": ("head",)}
    with pytest.raises(attrace.InputTypeError, match=r"attribution: expected a map.*, found the Trace <attrace.Trace"):
        getattr(attrace, name)(trace, *more.get(name, ()))


def test_a_mask_that_is_a_text(trace: Any) -> None:
    with pytest.raises(
        attrace.InputTypeError, match=r"mask: expected an array \(row, column\), found the str 'mask.png'"
    ):
        attrace.score_trace(trace, masks={"r2g": "mask.png"})  # type: ignore[dict-item]


def test_boxes_and_paths() -> None:
    with pytest.raises(attrace.InputTypeError, match=r"box: expected .* found the int 1"):
        attrace.iou(1, 2)  # type: ignore[arg-type]
    calls: tuple[Any, ...] = (attrace.repair, attrace.verify)
    for call in calls:
        with pytest.raises(attrace.InputTypeError, match=r"(path|source): expected .*, found the int 5"):
            call(5)
    for paths in ((5, "run.zarr"), ("run.zip", 5)):
        with pytest.raises(attrace.InputTypeError, match=r"path: expected the path of .*, found the int 5"):
            attrace.unpack(*paths)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"layer": 0}, "layer: expected a module path, a glob, a label .* found the int 0"),
        ({"layer": [0]}, "layer: expected a module path, a glob, a label .* found the int 0"),
        ({"time": "3"}, "time" + NUMBERS + "str '3'"),
        ({"time": 1.5}, "time" + NUMBERS + "float 1.5"),
        ({"time": slice("a", "b")}, "time" + NUMBERS + "str 'a'"),
        ({"head": [np.float32(1)]}, "head" + NUMBERS + "float32"),
    ],
)
def test_selections(trace: Any, selection: dict[str, Any], message: str) -> None:
    with pytest.raises(attrace.InputTypeError, match=message):
        trace.sel(**selection)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "foo"}, "level: expected ulam, tlam, hlam or llam, found 'foo'"),
        ({"direction": "up"}, "direction: expected r2g or g2r, found 'up'"),
        ({"level": "tlam", "groups": "2"}, "groups: expected a whole number, found the str '2'"),
    ],
)
def test_choices(trace: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(attrace.InputError) as raised:
        trace.sram((1, 1), **options)
    assert str(raised.value) == message


@pytest.mark.parametrize("source", [5, None])
def test_sources(source: Any) -> None:
    with pytest.raises(attrace.InputTypeError, match="source: expected a path, an address or a Zarr store, found"):
        attrace.open_trace(source)
    with pytest.raises(attrace.InputTypeError, match="source: expected a path, an address or a Zarr store, found"):
        list(attrace.diff(source, source))
    with pytest.raises(attrace.InputTypeError, match=r"sources: expected a trace's path or address, .* found"):
        attrace.open_traces(source)
    with pytest.raises(attrace.InputTypeError, match=r"sources: expected a trace's path or address, .* found"):
        attrace.open_traces([source])


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(attrace.InputTypeError) as raised:
        attrace.ulam("x" * 1000)  # type: ignore[arg-type]
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run.zarr", None), "path: expected a folder to write to, .* found the NoneType None"),
        (("run.zarr", "pipe.zarr"), "expected a diffusers pipeline .* found str"),
    ],
)
def test_a_recording(arguments: tuple[Any, Any], message: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(attrace.InputError, match=message), attrace.record(*arguments):
        pass
