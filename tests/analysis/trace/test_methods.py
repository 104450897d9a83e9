"""The methods of a trace are the public functions, and looking at a trace imports none of them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from support.traces import make_trace

import attrace
from attrace.analysis import Trace, open_trace

METHODS = {
    **{name: name for name in ("ulam", "tlam", "hlam", "llam", "sram", "token_map", "marginals", "correspondence")},
    "plot": "plot",
    "score": "score_trace",
    "precompute": "precompute",
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    path = tmp_path_factory.mktemp("made") / "run.zarr"
    return open_trace(make_trace(path, steps=2, images={"generated": mask, "mask": mask}).path)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_function(trace: Trace, name: str) -> None:
    function = getattr(attrace, METHODS[name])
    method = getattr(trace, name)
    assert method.__func__ is function
    assert method.__self__ is trace
    assert name in dir(trace)
    assert list(inspect.signature(method).parameters) == list(inspect.signature(function).parameters)[1:]


def test_they_take_the_selection(trace: Trace) -> None:
    part = trace.sel(layer="up.0", time=1)
    xr.testing.assert_identical(part.ulam(direction="g2r"), attrace.ulam(part, direction="g2r"))
    assert part.llam()["layer"].values.tolist() == ["up.0.attn2"]


@pytest.mark.parametrize(("level", "panels"), [("ulam", 1), ("llam", 2), ("sram", 1)])
def test_plot_draws_a_figure(trace: Trace, level: Any, panels: int) -> None:
    figure = trace.plot(level, direction="r2g")
    assert isinstance(figure, Figure)
    assert len(figure.axes) > panels


def test_plot_refuses_an_unknown_level(trace: Any) -> None:
    with pytest.raises(attrace.InputError, match="level: expected ulam, tlam, hlam, llam or sram, found 'foo'"):
        trace.plot("foo")


def test_score_takes_the_mask_of_the_trace(trace: Trace) -> None:
    scores = trace.score()
    assert scores["imacs"].notnull().values.tolist() == [True, False]
    assert scores["direction"].values.tolist() == ["r2g", "g2r"]
    assert "imacs" not in trace.score({})


def test_selecting_imports_no_maps(trace: Trace) -> None:
    code = """
import sys, attrace
trace = attrace.open_trace(sys.argv[1]).sel(layer="up.0")
dir(trace)
print({"attrace.analysis.maps", "attrace.analysis.figures", "xarray", "matplotlib"} & sys.modules.keys())
"""
    arguments = [sys.executable, "-c", code, str(Path(trace.path))]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "set()\n"
