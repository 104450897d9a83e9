"""A trace as a notebook shows it."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Final

from attrace.analysis.trace.summary import describe

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis.trace.trace import Trace

SHOWN: Final = ("generated", "reference")
"""The pictures that are shown, where the trace has them."""

LONGEST_SIDE: Final = 160
"""Pixels along the longer side of a picture, at most."""


def describe_as_html(trace: Trace) -> str:
    """The trace in a few lines and its small pictures: every text escaped, no map computed."""
    pictures = "".join(_figure(name, trace.images[name]) for name in SHOWN if name in trace.images)
    return f'<pre>{html.escape(describe(trace))}</pre><div style="display:flex;gap:1em">{pictures}</div>'


def _figure(name: str, image: xr.DataArray) -> str:
    from PIL import Image

    pixels = image.values
    picture = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure style="margin:0"><img alt="{name}" src="data:image/png;base64,{data}">'
        f"<figcaption>{name}</figcaption></figure>"
    )
