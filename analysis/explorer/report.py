"""The report of a trace: one HTML file that carries the explorer and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrace.analysis.explorer.embedding import Embedding, embed
from attrace.analysis.explorer.facts import name_of, usable_mask
from attrace.analysis.explorer.page import for_script, render_page
from attrace.analysis.explorer.words import words_of
from attrace.analysis.maps.weights import LayerWeights, read_weights
from attrace.analysis.scores.trace_scores import score_table, score_trace
from attrace.analysis.trace.trace import require_trace
from attrace.schemas import Direction, InputError

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis.trace.trace import Trace

DEFAULT_LIMIT: Final = 4_500_000
"""Bytes that a report takes at most."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    bytes: int
    contexts: tuple[str, ...]
    """Those that the page shows."""
    grids: dict[Direction, tuple[int, int]]
    """Rows and columns of the map of each direction, in the first context."""
    groups: int
    """Groups of steps."""
    levels: int
    """Whole numbers that a row of attention is stored in."""
    heads_apart: bool
    """Whether every head can be shown; else their mean."""
    coarser: bool
    """Whether cells are means of several recorded patches."""


def write_report(
    trace: Trace,
    path: str | Path,
    *,
    groups: int | None = None,
    limit: int = DEFAULT_LIMIT,
    title: str | None = None,
    weights: LayerWeights = None,
    overwrite: bool = False,
) -> Report:
    """Write the explorer of a trace as a report: one HTML file that needs neither a server nor a network.

    It shows the attention of chosen patches in both directions, for any layer, head and group of steps, in every
    context of the trace, with the scores and the provenance.

    Parameters
    ----------
    trace
        The trace, or a selection of it: `trace.sel(context="text")` shows that context alone.
    path
        The file, such as `report.html`.
    groups
        Groups of steps; 5 by default (fewer where there are fewer steps, or where they do not fit).
    limit
        Bytes that the file may take. What does not fit is coarsened, and the page says how: whole numbers of fewer
        levels, larger cells, the mean of the heads.
    title
        Of the page; the name of the trace by default.
    weights
        Of layers and heads in every mean over them, as for `attribution_map`.
    overwrite
        Replace a file that is there.

    Returns
    -------
    Report
        What was written, and how fine it is.

    Raises
    ------
    InputError
        If the trace has no finished step, no grid of queries or no scores, or the limit is too small for it.
    FileExistsError
        If the file is there and is not to be overwritten.

    Notes
    -----
    `docs/report.md` says which of its numbers are exact.
    """
    require_trace(trace)
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another path, or pass overwrite=True (--overwrite)")
    weights = read_weights(weights)
    embedding = embed(trace, groups=groups, limit=limit, weights=weights)
    shown = embedding.plans[0].trace
    mask = usable_mask(shown)
    scores = score_trace(shown, {} if mask is None else {"r2g": mask}, weights=weights)
    encoded = _page(embedding, scores, title or name_of(trace)).encode()
    if len(encoded) > limit:
        raise InputError(f"limit: the report takes {len(encoded)} bytes even in its coarsest form, found {limit}")
    path.write_bytes(encoded)
    plan, contexts = embedding.plans[0], tuple(str(one.trace.context) for one in embedding.plans)
    fineness = plan.heads_apart, any(one.coarser for one in embedding.plans)
    return Report(path, len(encoded), contexts, dict(plan.grids), len(plan.spans), embedding.levels, *fineness)


def _page(embedding: Embedding, scores: xr.Dataset, title: str) -> str:
    page, _ = render_page(
        "report.html",
        ["local.js", "embedded.js", "explorer.js"],
        "for (const at of document.querySelectorAll('[data-explorer]')) "
        "await render({ model: await embedded(at.parentNode, true), el: at });",
        words_of(embedding, scores, title)
        | {"scores": scores_table(scores), "embedding": for_script(embedding.to_json()), "rows": embedding.rows()},
    )
    return page


def scores_table(scores: xr.Dataset) -> list[list[str]]:
    """The numbers of `attrace score` as lines of text, with a header."""
    rows = [
        [row.score.replace("_", " "), f"{row.of}, {row.map}" if row.map else row.of, _number(row.value), row.better]
        for row in score_table(scores)
    ]
    return [["score", "of", "value", "better"], *rows]


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "infinite" if value > 0 else "nothing to compare"
