"""The explorer in a notebook: the widget answers what its page asks, and a trace shows itself by it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.traces import make_trace

from attrace.analysis import Trace, explore, open_trace, sram

pytest.importorskip("anywidget")

QUESTION = {"relation": 0, "from": "generated", "region": [5, 2, 6, 3], "layer": -1, "head": -1, "group": -1}


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return open_trace(make_trace(tmp_path / "run.zarr", spread=1.5).path)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What widgets send to their pages."""
    found: list[tuple[Any, Any]] = []
    monkeypatch.setattr("ipywidgets.Widget.send", lambda _, content, buffers=None: found.append((content, buffers)))
    return found


def test_the_widget_answers_exactly(trace: Trace, sent: list[tuple[Any, Any]]) -> None:
    widget = trace.explore()
    assert widget.facts["relations"][0]["grids"] == {"generated": [8, 8], "keys": [4, 4]}
    widget._handle_custom_msg(QUESTION | {"id": 3, "unit": "even", "parts": ["map"]}, [])
    ((content, (buffer,)),) = sent
    assert content["id"] == 3
    found = np.frombuffer(buffer, "<f4")
    np.testing.assert_allclose(found, sram(trace, (5, 2)).values.ravel(), rtol=1e-6)


def test_a_question_that_is_none_fails_in_the_page(trace: Trace, sent: list[tuple[Any, Any]]) -> None:
    explore(trace)._handle_custom_msg({"id": 4}, [])
    assert sent[0][0]["id"] == 4
    assert "expected a question" in sent[0][0]["failed"]


def test_a_trace_shows_itself_in_a_notebook_alone(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert trace._repr_mimebundle_() is None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    shown = trace._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in (shown[0] if isinstance(shown, tuple) else shown)
    empty = open_trace(make_trace(tmp_path / "empty.zarr", steps=0).path)
    assert empty._repr_mimebundle_() is None


def test_without_anywidget_it_says_what_to_install(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r"attrace\[notebook\]"):
        explore(trace)
