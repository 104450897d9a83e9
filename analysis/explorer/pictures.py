"""The pictures of a report, and the Bokeh figures that show them with their heat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from attrace.analysis.maps.plan import Size
    from attrace.analysis.trace.trace import Trace

LONGEST_SIDE: Final = 384
"""Pixels along the longer side of a picture, at most."""

TOKEN_HEIGHT: Final = 20
"""Pixels of the page for one key of a list."""

UNITS: Final = {"density": "x even", "weight": "of the attention"}
"""What the values of a map are counted in, by the choices of the control `value`."""


def picture_pixels(trace: Trace, name: str) -> NDArray[np.uint32] | None:
    """A picture of a trace as Bokeh takes it: uint32 (row, column), red in the lowest byte; None if there is none."""
    if name not in trace.images:
        return None
    pixels = trace.images[name].values
    picture = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    opaque = np.ascontiguousarray(np.asarray(picture.convert("RGBA")))
    packed: NDArray[np.uint32] = opaque.view("<u4")[..., 0]
    return packed


def picture_figure(
    name: str, grid: Size, mapper: Any, unit: Any, *, aspect: float, has_picture: bool, tokens: tuple[str, ...] | None
) -> Any:
    """A figure of one side: the picture, the heat over it, the outline of the chosen patches.

    Parameters
    ----------
    name
        `generated` or `reference`.
    grid
        Rows and columns of the heat.
    mapper
        Colours of the heat.
    unit
        The control that says what the values are counted in.
    aspect
        Width over height of the picture.
    has_picture
        Whether there is a picture below the heat.
    tokens
        Texts of the keys, where they are a list in place of a picture.
    """
    from bokeh.models import BoxSelectTool, ColumnDataSource, Range1d

    rows, columns = grid
    width = columns if tokens is None else 6 * columns
    figure = _bare_figure(name, Range1d(0, width), Range1d(rows, 0))
    if tokens is None:
        figure.aspect_ratio = aspect
        figure.background_fill_color = "#ececf0"
    else:
        figure.height = TOKEN_HEIGHT * rows
    whole: dict[str, Any] = {"x": 0, "y": 0, "dw": columns, "dh": rows}
    if has_picture:
        nothing = ColumnDataSource({"image": [np.zeros((1, 1), np.uint32)]})
        figure.image_rgba(image="image", source=nothing, name="picture", **whole)
    heat = ColumnDataSource({"image": [np.zeros(grid, np.float32)]}, name=f"heat-{name}")
    drawn = figure.image(image="image", source=heat, color_mapper=mapper, name="heat", **whole)
    outline = ColumnDataSource({side: [] for side in ("left", "right", "top", "bottom")}, name=f"chosen-{name}")
    edges = {side: side for side in outline.column_names}
    figure.quad(source=outline, fill_alpha=0, line_color="white", line_width=5, **edges)
    figure.quad(source=outline, fill_alpha=0, line_color="black", line_width=2, name="chosen", **edges)
    if tokens is not None:
        labels = ColumnDataSource({"y": [row + 0.5 for row in range(rows)], "text": list(tokens)})
        figure.text(x=1.15 * columns, y="y", text="text", source=labels, text_baseline="middle", text_font_size="13px")
    figure.add_tools(_hover(drawn, "image", unit), BoxSelectTool(name="box", renderers=[], continuous=False))
    figure.toolbar.active_drag = None
    return figure


def add_mask(figure: Any, mask: NDArray[np.bool_], grid: Size) -> None:
    """Draw a mask over a figure, hidden at first: what lies outside it is made paler."""
    pixels = np.where(mask, np.uint32(0), np.uint32(0xB0FFFFFF))
    figure.image_rgba(image=[pixels], x=0, y=0, dw=grid[1], dh=grid[0], name="mask", visible=False)


def gallery_figure(name: str, unit: Any) -> Any:
    """A figure of several small maps with their labels, which the page lays out for its width.

    `unit` is the control that says what the values are counted in.
    """
    from bokeh.models import ColumnDataSource, LinearColorMapper, Range1d

    figure = _bare_figure(name, Range1d(0, 1), Range1d(1, 0))
    figure.height = 200
    where = {place: place for place in ("image", "x", "y", "dw", "dh")}
    empty: dict[str, list[Any]] = {place: [] for place in where}
    figure.image_rgba(source=ColumnDataSource(empty), name="picture", **where)
    maps = ColumnDataSource(empty | {"value": [], "label": [], "short": []}, name=f"maps-{name}")
    mapper = LinearColorMapper(palette=["#000000"], low=0, high=1)
    drawn = figure.image(source=maps, color_mapper=mapper, name="heat", **where)
    figure.text(x="x", y="y", text="short", source=maps, text_font_size="12px", text_baseline="bottom", y_offset=-2)
    figure.add_tools(_hover(drawn, "value", unit, label=True))
    return figure


def _bare_figure(name: str, x_range: Any, y_range: Any) -> Any:
    from bokeh.plotting import figure as new_figure

    figure = new_figure(
        name=name,
        x_range=x_range,
        y_range=y_range,
        tools="",
        toolbar_location=None,
        sizing_mode="stretch_width",
        min_border=0,
        outline_line_color=None,
    )
    figure.axis.visible = False
    figure.grid.visible = False
    return figure


def _hover(drawn: Any, column: str, unit: Any, *, label: bool = False) -> Any:
    """Tells the value under the pointer with its unit, and its cell or the label of its map."""
    from bokeh.models import CustomJSHover, HoverTool

    value = CustomJSHover(
        args={"unit": unit, "units": UNITS}, code="return `${value.toPrecision(3)} ${units[unit.value]}`"
    )
    cell = CustomJSHover(code="return String(Math.floor(value))")
    place = [("map", "@label")] if label else [("row", "$y{custom}"), ("column", "$x{custom}")]
    return HoverTool(
        renderers=[drawn],
        tooltips=[*place, ("value", f"@{column}{{custom}}")],
        formatters={f"@{column}": value} | ({} if label else {"$x": cell, "$y": cell}),
    )
