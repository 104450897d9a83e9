"""What a notebook shows of a trace."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
from support.traces import make_trace, site_class

from attrace.analysis import open_trace


def test_a_trace_shows_its_labels_escaped_and_its_small_picture(tmp_path: Path) -> None:
    path = tmp_path / "<script>alert(1)<.zarr"
    generated = np.full((400, 200, 3), 7, np.uint8)
    make_trace(path, (site_class(),), images={"generated": generated})
    shown = open_trace(path)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    data = shown.partition("base64,")[2].partition('"')[0]
    with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (80, 160)
        assert picture.getpixel((0, 0)) == (7, 7, 7)


def test_a_trace_without_pictures_shows_none(tmp_path: Path) -> None:
    make_trace(tmp_path / "run.zarr", (site_class(),))
    assert "<img" not in open_trace(tmp_path / "run.zarr")._repr_html_()
