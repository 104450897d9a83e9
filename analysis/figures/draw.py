"""Drawing: panels with one colour scale, its colour bar, and words that say what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from attrace.analysis.figures.blend import Paint, as_grey, blend, canvas_size
from attrace.analysis.figures.layout import Box, Layout
from attrace.analysis.figures.scale import ColourScale

DOTS_PER_INCH: Final = 200
"""Of saved PNG files."""

TITLE_SIZE: Final = 10.0
TEXT_SIZE: Final = 7.5
NOTE_SIZE: Final = 6.5
CHARACTER_WIDTH: Final = 0.51
"""Mean width of a letter of the default font over its size."""
QUIET: Final = "0.35"
"""Grey of the text beside the title."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a figure."""

    label: str
    """Text above it."""
    values: NDArray[np.float64] | None = None
    """Heat (row, column); None for the picture alone, in its own colours."""
    rgb: NDArray[np.float64] | None = None
    """Picture (row, column, 3) in [0, 1]."""
    marked: NDArray[np.bool_] | None = None
    """Cells (row, column) to draw a strong line around."""
    outlined: NDArray[np.bool_] | None = None
    """Cells to draw a thin line around."""


@dataclass(frozen=True, eq=False)
class Words:
    """The text of a figure."""

    title: str
    subtitle: str
    """May have several lines."""
    unit: str
    """Of the colour bar."""
    note: str
    """How the figure was drawn."""


def draw(panels: tuple[Panel, ...], scale: ColourScale, layout: Layout, words: Words, paint: Paint) -> Figure:
    """Draw a planned figure. No global state of matplotlib is touched."""
    figure = Figure(figsize=(layout.width, layout.height), facecolor="white")
    for panel, box in zip(panels, layout.panels, strict=True):
        _draw_panel(figure.add_axes(box), panel, scale, paint)
    _draw_bar(figure, layout.bar, panels, scale, words.unit, paint)
    # labels come from the trace: never read as mathematical text
    text: dict[str, Any] = {"ha": "left", "linespacing": 1.35, "parse_math": False}
    figure.text(layout.left, layout.title_top, words.title, va="top", size=TITLE_SIZE, weight="bold", **text)
    figure.text(layout.left, layout.subtitle_top, words.subtitle, va="top", size=TEXT_SIZE, color=QUIET, **text)
    figure.text(layout.left, layout.note_bottom, words.note, va="bottom", size=NOTE_SIZE, color=QUIET, **text)
    return figure


def text_width(words: Words) -> float:
    """Width of the longest line in inches, estimated; the title is bold and so wider."""
    lines = [(words.title, TITLE_SIZE * 1.18), *((line, TEXT_SIZE) for line in words.subtitle.split("\n"))]
    return max(len(text) * size * CHARACTER_WIDTH / 72 for text, size in [*lines, (words.note, NOTE_SIZE)])


def _draw_panel(axes: Axes, panel: Panel, scale: ColourScale, paint: Paint) -> None:
    axes.imshow(_pixels(panel, scale, paint), extent=(0, 1, 1, 0), aspect="auto", interpolation="auto")
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color=QUIET)
    axes.set_title(panel.label, size=TEXT_SIZE, loc="left", pad=3, linespacing=1.15, parse_math=False)
    if panel.outlined is not None:
        _draw_outline(axes, panel.outlined, width=0.7)
    if panel.marked is not None:
        _draw_outline(axes, panel.marked, width=1.2)


def _pixels(panel: Panel, scale: ColourScale, paint: Paint) -> NDArray[np.float64]:
    if panel.values is None:
        return np.ones((1, 1, 3)) if panel.rgb is None else panel.rgb
    size = canvas_size(panel.rgb, panel.values.shape)
    return blend(scale.share(panel.values), panel.rgb, paint, size)


def _draw_outline(axes: Axes, cells: NDArray[np.bool_], *, width: float) -> None:
    """A white line with a dark edge, which shows on every picture."""
    lines = outline(cells)
    for colour, wide in (("black", 2 * width), ("white", width)):
        axes.add_collection(
            LineCollection(list(lines), colors=colour, linewidths=wide, capstyle="projecting", clip_on=False)
        )


def outline(cells: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Edges between chosen and other cells, as (line, end, xy) in shares of the picture's width and height."""
    padded = np.pad(cells, 1)
    rows, columns = cells.shape
    row, column = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([np.stack([column, row], -1), np.stack([column + 1, row], -1)], axis=1)
    row, column = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([column, row], -1), np.stack([column, row + 1], -1)], axis=1)
    return np.concatenate([level, upright]).astype(np.float64) / (columns, rows)


def _draw_bar(figure: Figure, box: Box, panels: tuple[Panel, ...], scale: ColourScale, unit: str, paint: Paint) -> None:
    greys = [as_grey(panel.rgb).mean() for panel in panels if panel.values is not None and panel.rgb is not None]
    colours = paint.over_grey(float(np.mean(greys))) if greys else paint.map
    axes = figure.add_axes(box)
    bar = figure.colorbar(
        ScalarMappable(Normalize(scale.low, scale.high), colours), cax=axes, extend=scale.extend, extendfrac=0.04
    )
    power = scale.exponent
    bar.formatter = FuncFormatter(lambda value, _: f"{value / 10.0**power:.3g}")
    bar.update_ticks()
    axes.tick_params(labelsize=TEXT_SIZE - 0.5, width=0.5, length=2.5)
    bar.outline.set(linewidth=0.5, edgecolor=QUIET)
    factor = f" (\N{MULTIPLICATION SIGN} 10$^{{{power}}}$)" if power else ""
    axes.set_ylabel(unit + factor, size=TEXT_SIZE)
