"""Where things lie in a figure: a plan in inches, made before anything is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MARGIN: Final = 0.14
"""Around the figure."""
GAP: Final = 0.1
"""Between panels."""
TITLE_LINE: Final = 0.22
"""Height of the figure's title."""
TEXT_LINE: Final = 0.155
"""Height of a line of small text."""
BAR_WIDTH: Final = 0.13
"""Of the colour bar."""
BAR_LABELS: Final = 0.62
"""Room right of the colour bar, for its numbers and its label."""
TALLEST_BAR: Final = 3.0
"""Height of the colour bar at most."""
LONGEST_STRIP: Final = 7
"""Panels in a single row at most."""
WIDEST_GRID: Final = 9
"""Panels in a row of a grid at most."""

Box = tuple[float, float, float, float]
"""Left, bottom, width and height, as a share of the figure."""


@dataclass(frozen=True)
class Layout:
    """Size of a figure and place of its parts."""

    width: float
    """In inches."""
    height: float
    panels: tuple[Box, ...]
    """In reading order."""
    bar: Box
    """The colour bar."""
    title_top: float
    """Height of the top edge of the title, as a share of the figure."""
    subtitle_top: float
    note_bottom: float
    """Height of the bottom edge of the note."""
    left: float
    """Left edge of the text."""


def plan_layout(
    count: int,
    *,
    aspect: float,
    columns: int,
    panel_width: float,
    text_width: float,
    label_lines: int,
    subtitle_lines: int,
) -> Layout:
    """Place panels of one size in rows, with text above and below and the colour bar at the right.

    Parameters
    ----------
    count
        Number of panels.
    aspect
        Height of a panel over its width.
    columns
        Panels in a row.
    panel_width
        In inches.
    text_width
        Of the longest line of text, in inches.
    label_lines
        Lines of text above each panel.
    subtitle_lines
        Lines of text below the figure's title.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    panel_height = panel_width * aspect
    row_height = label_lines * TEXT_LINE + panel_height
    head = MARGIN + TITLE_LINE + subtitle_lines * TEXT_LINE + GAP
    body = rows * row_height + (rows - 1) * GAP
    body_width = columns * panel_width + (columns - 1) * GAP + 2 * GAP + BAR_WIDTH + BAR_LABELS
    width = 2 * MARGIN + max(body_width, text_width)
    height = head + body + GAP + TEXT_LINE + MARGIN

    def box(left: float, top: float, across: float, down: float) -> Box:
        return left / width, 1 - (top + down) / height, across / width, down / height

    panels = tuple(
        box(
            MARGIN + column * (panel_width + GAP),
            head + row * (row_height + GAP) + label_lines * TEXT_LINE,
            panel_width,
            panel_height,
        )
        for row, column in (divmod(number, columns) for number in range(count))
    )
    bar_left = MARGIN + columns * (panel_width + GAP) + GAP
    bar_top = head + label_lines * TEXT_LINE
    bar = box(bar_left, bar_top, BAR_WIDTH, min(TALLEST_BAR, body - label_lines * TEXT_LINE))
    return Layout(
        width=width,
        height=height,
        panels=panels,
        bar=bar,
        title_top=1 - MARGIN / height,
        subtitle_top=1 - (MARGIN + TITLE_LINE) / height,
        note_bottom=MARGIN / height,
        left=MARGIN / width,
    )


def columns_for(count: int, *, aspect: float, strip: bool) -> int:
    """Panels in a row: all of a short strip, else a grid a little wider than high with few empty places.

    Examples
    --------
    >>> [columns_for(count, aspect=1.0, strip=False) for count in (2, 5, 9, 14, 17)]
    [2, 3, 3, 5, 6]
    """
    if strip and count <= LONGEST_STRIP:
        return count
    widest = min(count, WIDEST_GRID)
    wanted = min(widest, math.sqrt(1.6 * count * aspect))
    candidates = range(max(1, math.floor(0.7 * wanted)), min(widest, math.ceil(1.6 * wanted)) + 1)
    return min(candidates, key=lambda columns: -count % columns + abs(columns - wanted))
