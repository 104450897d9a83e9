"""Figures of attribution maps: one map, a strip over time, a grid over heads or layers, chosen patches."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.figures.blend import Paint, as_rgb, reduced
from attrace.analysis.figures.draw import DOTS_PER_INCH, Panel, Words, draw, text_width
from attrace.analysis.figures.layout import columns_for, plan_layout
from attrace.analysis.figures.scale import colour_scale
from attrace.analysis.figures.text import grid_text, joined, labels_along, subtitle_of, title_of, wrapped
from attrace.schemas import InputError
from attrace.schemas.layers import shared_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID_DIMS: Final = ("row", "column")

GRIDS: Final = ("layer", "head")
"""Dims whose panels have no order in time: they fill a grid, the others a strip."""

ABOVE: Final = 0.5
"""Percent of the cells of a figure of several maps that may lie above the upper end of the colours."""

PANEL_WIDTHS: Final = ((2, 2.6), (4, 1.9), (6, 1.6), (24, 1.35))
"""Width of a panel in inches, for figures of up to so many panels."""
SMALLEST_PANEL: Final = 1.05

LABEL_CHARACTERS: Final = 17.5
"""Characters of a label to an inch."""

MEANING_OF: Final = {"r2g": "where the reference acts", "g2r": "what of the reference is used"}
"""What a map of each direction tells."""

PICTURE_OF: Final = {"r2g": "generated", "g2r": "reference"}
"""The picture that a map of each direction lies over."""


def draw_map(
    heat: xr.DataArray,
    picture: Any | None = None,
    *,
    mask: Any | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
    columns: int | None = None,
    paint: Paint | None = None,
) -> Figure:
    """Draw a map over its picture, or maps along one more dimension, all on one colour scale.

    Parameters
    ----------
    heat
        (row, column), or with one more dimension such as `time_group`, `head` or `layer`: a panel for each. Computed
        if it is lazy. Layers of different grids compare only with `density=True`: a plain weight is larger on a
        coarser grid.
    picture
        What the map lies over: the generated picture for R2G, the reference for G2R; (row, column[, channel]), uint8
        or in [0, 1], of any size: the map covers all of it. It is drawn in grey below the heat, and once in its own
        colours. Without it the map is drawn alone.
    mask
        Cells to draw a thin line around, such as the painted region: (row, column), of any size.
    limits
        Values at the ends of the colours. By default the smallest and the largest value; in figures of several maps
        0.5% of the cells may lie above the upper end, which the colour bar shows by an arrow.
    title
        In place of the one made from the attributes of the map.
    columns
        Panels in a row.
    paint
        Colours, opacity, and whether to interpolate between the cells.

    Returns
    -------
    matplotlib.figure.Figure
        To be saved with its `savefig`; no window is opened and nothing global is changed.

    Raises
    ------
    InputError
        If the dims are others, a picture is none, or there is nothing finite to draw.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> heat = xr.DataArray(np.random.default_rng(0).random((3, 8, 8)), dims=("head", "row", "column"))
    >>> len(draw_map(heat, np.zeros((64, 64, 3), np.uint8)).axes)  # the picture, three heads, the colour bar
    5
    """
    dim = _dim_of_panels(heat)
    rgb = None if picture is None else as_rgb(picture, "picture")
    outlined = None if mask is None else as_rgb(mask, "mask")[..., 0] > 0.5
    labels = [MEANING_OF.get(_direction(heat), "")] if dim is None else labels_along(heat, str(dim))
    panels = [Panel(label, one, rgb, outlined=outlined) for label, one in zip(labels, _maps(heat, dim), strict=True)]
    if rgb is not None:
        panels.insert(0, Panel(_picture_name(heat), rgb=rgb))
    return _figure(
        heat,
        tuple(panels),
        limits=limits,
        title=title,
        columns=columns,
        paint=paint or Paint(),
        above=0 if dim is None else ABOVE,
    )


def draw_sram(
    heat: xr.DataArray,
    chosen: Any,
    *,
    marked_picture: Any | None = None,
    picture: Any | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
    paint: Paint | None = None,
) -> Figure:
    """Draw where chosen patches look: the patches marked on one picture, the heat over the other.

    Parameters
    ----------
    heat
        The map of the chosen patches (row, column): over the reference, or with direction `r2g` over the generated
        picture.
    chosen
        Mask of the chosen patches: bool (row, column) over the marked picture, of any size.
    marked_picture
        Picture to mark them on: the generated one, or with direction `r2g` the reference.
    picture
        Picture below the heat.
    limits, title, paint
        As for `draw_map`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if heat.ndim != 2:
        raise InputError(f"expected a map (row, column), found dims {heat.dims}: select one first")
    rgb = None if picture is None else as_rgb(picture, "picture")
    marked_rgb = None if marked_picture is None else as_rgb(marked_picture, "marked picture")
    chosen = np.asarray(chosen, dtype=bool)
    if marked_rgb is None:
        marked_rgb = np.full((*chosen.shape, 3), 0.8)
    marked_name, meaning = (
        ("reference", "where they act") if _direction(heat) == "r2g" else ("generated", "what they use")
    )
    count = f"{np.count_nonzero(chosen)} of {grid_text(chosen.shape)} patches"
    panels = (
        Panel(f"{marked_name}: {count} chosen", rgb=marked_rgb, marked=chosen),
        Panel(f"{_picture_name(heat)}: {meaning}", _maps(heat, None)[0], rgb),
    )
    return _figure(heat, panels, limits=limits, title=title, columns=2, paint=paint or Paint(), above=0)


def _dim_of_panels(heat: xr.DataArray) -> Hashable | None:
    others = [dim for dim in heat.dims if dim not in GRID_DIMS]
    if len(others) > 1 or set(heat.dims) != {*others, *GRID_DIMS}:
        raise InputError(
            f"expected a map (row, column), or one with a single further dimension, found dims {heat.dims}: "
            "select or average the others first"
        )
    return others[0] if others else None


def _maps(heat: xr.DataArray, dim: Hashable | None) -> NDArray[np.float64]:
    """The maps, computed: (panel, row, column)."""
    ordered = heat.transpose(*([] if dim is None else [dim]), *GRID_DIMS)
    return np.asarray(ordered.values, np.float64).reshape(-1, *ordered.shape[-2:])


def _picture_name(heat: xr.DataArray) -> str:
    return PICTURE_OF.get(_direction(heat), "picture")


def _direction(heat: xr.DataArray) -> str:
    return str(heat.attrs.get("direction", ""))


def _figure(
    heat: xr.DataArray,
    panels: tuple[Panel, ...],
    *,
    limits: tuple[float, float] | None,
    title: str | None,
    columns: int | None,
    paint: Paint,
    above: float,
) -> Figure:
    drawn = np.stack([panel.values for panel in panels if panel.values is not None])
    scale = colour_scale(drawn, limits=limits, above=above)
    width = next((width for most, width in PANEL_WIDTHS if len(panels) <= most), SMALLEST_PANEL)
    panels = tuple(
        replace(
            panel,
            label=wrapped(panel.label, int(width * LABEL_CHARACTERS)),
            rgb=None if panel.rgb is None else reduced(panel.rgb, int(width * DOTS_PER_INCH)),
        )
        for panel in panels
    )
    rows, across = next((panel.rgb.shape[:2] for panel in panels if panel.rgb is not None), drawn.shape[1:])
    aspect = rows / across
    subtitle = subtitle_of(heat)
    words = Words(title or title_of(heat), subtitle, _unit(heat), _note(heat, panels, paint))
    strip = heat.dims[0] not in GRIDS
    layout = plan_layout(
        len(panels),
        aspect=aspect,
        columns=columns or columns_for(len(panels), aspect=aspect, strip=strip),
        panel_width=width,
        text_width=text_width(words),
        label_lines=max(panel.label.count("\n") + 1 if panel.label else 0 for panel in panels),
        subtitle_lines=subtitle.count("\n") + 1 if subtitle else 0,
    )
    return draw(panels, scale, layout, words, paint)


def _unit(heat: xr.DataArray) -> str:
    quantity = heat.attrs.get("quantity", "attention")
    return f"{quantity} (1 = even)" if heat.attrs.get("normalisation") == "density" else f"{quantity} weight"


def _note(heat: xr.DataArray, panels: tuple[Panel, ...], paint: Paint) -> str:
    grid = grid_text([heat.sizes[dim] for dim in GRID_DIMS])
    left_out = shared_words(heat["layer"].values.tolist()) if "layer" in heat.dims else ()
    return joined(
        [
            f"heat on a {grid} grid, " + ("interpolated between cells" if paint.smooth else "each cell one block"),
            "picture in grey below the heat" if any(panel.rgb is not None for panel in panels) else "",
            f"layers without {', '.join(left_out)} in their paths" if left_out else "",
        ]
    )
