"""Scoring the unified maps of a trace against its mask, and printing the numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from attrace.cli.output import print_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from attrace.analysis import Trace
    from attrace.analysis.scorecard import Scorecard
    from attrace.schemas import Direction

LONGEST_SIDE: Final = 64
"""Cells along the longer side of a map that is scored: those of the published detection study."""


def score_trace(
    trace: Trace,
    masks: dict[Direction, NDArray[Any]],
    *,
    size: tuple[int, int] | None = None,
    density: bool = False,
) -> dict[str, Scorecard]:
    """Numbers of the unified map of each direction that has a mask, by name of the map."""
    from attrace.analysis import ulam
    from attrace.analysis.levels import compute_together
    from attrace.analysis.scorecard import score_map
    from attrace.analysis.sram import picture_size

    maps = {
        f"ulam_{direction}": ulam(trace, direction=direction, size=size or _size_of_map(mask.shape), density=density)
        for direction, mask in masks.items()
    }
    computed = compute_together(maps)
    scores = {}
    for direction, mask in masks.items():
        # patches are chosen in the other picture: those of `g2r` in the generated one, which an r2g map lies over
        below = picture_size(trace, "g2r" if direction == "r2g" else "r2g")
        name = f"ulam_{direction}"
        scores[name] = score_map(computed[name], mask, picture_size=below)
    return scores


def _size_of_map(mask: tuple[int, ...]) -> tuple[int, int]:
    """A map in the proportions of a mask."""
    rows, columns = (max(1, round(LONGEST_SIDE * length / max(mask))) for length in mask)
    return rows, columns


def scores_as_json(scores: dict[str, Scorecard]) -> dict[str, Any]:
    """Numbers by name of the map."""
    return {name: asdict(card) for name, card in scores.items()}


def print_scores(scores: dict[str, Scorecard], *, compat: bool = False) -> None:
    """Print a table of the numbers."""
    rows = [
        ["map", "IMACS", *(["IMACS (i2am)"] if compat else []), "inside", "area", "box", "mask box", "IoU", "tokens"]
    ]
    for name, card in scores.items():
        rows.append(
            [
                name,
                f"{card.imacs:.3f}",
                *([f"{card.imacs_i2am:.3f}"] if compat else []),
                f"{card.inside:.1%}",
                f"{card.area:.1%}",
                "none" if card.box is None else ",".join(map(str, card.box)),
                ",".join(map(str, card.mask_box)),
                f"{card.iou:.2f}",
                f"{card.effective_tokens:.0f}",
            ]
        )
    print_table(rows, right=range(1, len(rows[0])))
