"""One figure of one trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrace.analysis.figures.save import draw_chosen, draw_over, pictures_of, strongest_place
from attrace.analysis.maps.attribution import attribution_map
from attrace.analysis.maps.sram import sram
from attrace.schemas.checks import require_choice
from attrace.schemas.words import LEVELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from attrace.analysis.figures.blend import Paint
    from attrace.analysis.maps.sram import At
    from attrace.analysis.trace.trace import Trace
    from attrace.schemas import Direction, Level


def plot(
    trace: Trace,
    level: Level | Literal["sram"] = "ulam",
    *,
    direction: Direction | None = None,
    at: At | None = None,
    paint: Paint | None = None,
    **options: Any,
) -> Figure:
    """Figure of one map over the picture of the trace.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    level
        `ulam`, `tlam`, `hlam` or `llam`; or `sram` for the map of chosen patches, which are marked.
    direction
        As for the map: by default `r2g`, and `g2r` for `sram`.
    at
        The chosen patches, as for `sram`; by default the patch with the most attention of the other direction.
    **options
        As for the map.
    paint
        Colours, opacity, and whether to interpolate between the cells.

    Returns
    -------
    matplotlib.figure.Figure
        A notebook shows it; `savefig` writes it.

    Raises
    ------
    InputError
        As the map.
    """
    require_choice(level, (*LEVELS, "sram"), "level")
    if level != "sram":
        heat = attribution_map(trace, level, direction=direction or "r2g", **options)
        return draw_over(heat, pictures_of(trace), paint=paint)
    direction = direction or "g2r"
    at = strongest_place(trace, direction) if at is None else at
    heat = sram(trace, at, direction=direction, **options)
    return draw_chosen(trace, heat, at, paint=paint)
