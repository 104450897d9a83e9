"""Writing the report of a trace: one HTML file that carries its scripts and data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrace.analysis.explorer.contents import Contents, gather, scores_table, token_labels
from attrace.analysis.explorer.controls import LEVEL_NAMES, controls, palettes
from attrace.analysis.explorer.pictures import add_mask, gallery_figure, picture_figure
from attrace.analysis.explorer.words import name_of, words_of
from attrace.analysis.maps.weights import LayerWeights
from attrace.analysis.trace.trace import require_trace
from attrace.schemas import Direction, InputError
from attrace.schemas.words import DIRECTIONS

if TYPE_CHECKING:
    from attrace.analysis.trace.trace import Trace

DEFAULT_LIMIT: Final = 10_000_000
"""Bytes that a report takes at most."""


HIGHEST_PICTURE: Final = 40
"""Height of a picture on the page, at most, in units of the text's size."""

SIDES: Final[tuple[tuple[str, Direction], ...]] = (("generated", "r2g"), ("reference", "g2r"))
"""What stands side by side, and the direction of the maps over it."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    bytes: int
    grids: dict[Direction, tuple[int, int]]
    """Rows and columns of the map of each direction."""
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
    """Write an interactive report of a trace: one HTML file that needs neither a server nor a network.

    It shows the attention of chosen patches in both directions, for any layer, head and group of steps, the maps of
    all levels, the scores and the provenance.

    Parameters
    ----------
    trace
        The trace, or a selection of it: `trace.sel(context="text")` shows another context.
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
        If Bokeh is not installed, the trace has no finished step, no grid of queries or no scores, or the limit is
        too small for it.
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
    _require_bokeh()
    contents = gather(trace, groups=groups, limit=limit, weights=weights)
    page = _page(contents, title or name_of(trace))
    encoded = page.encode()
    if len(encoded) > limit:
        raise InputError(f"limit: the report takes {len(encoded)} bytes even in its coarsest form, found {limit}")
    path.write_bytes(encoded)
    plan = contents.plan
    return Report(
        path, len(encoded), dict(plan.grids), len(plan.spans), contents.levels, plan.heads_apart, plan.coarser
    )


def _require_bokeh() -> None:
    try:
        import bokeh  # noqa: F401  optional: only reports need it
    except ModuleNotFoundError as error:
        raise InputError('a report needs Bokeh: pip install "attrace[report]"') from error


def _page(contents: Contents, title: str) -> str:
    from bokeh.document import Document
    from bokeh.embed import file_html
    from bokeh.events import DocumentReady
    from bokeh.models import CustomJS, LinearColorMapper
    from bokeh.resources import INLINE
    from jinja2 import Environment

    mapper = LinearColorMapper(palette=["#000000"], low=0, high=1)
    models = _models(contents, mapper)
    document = Document()
    for model in models.values():
        document.add_root(model)
    facts = contents.facts | {"palettes": palettes(), "levels": list(LEVEL_NAMES)}
    arguments = {"meta": json.dumps(facts), "arrays": contents.arrays, "models": models, "mapper": mapper}
    document.js_on_event(DocumentReady, CustomJS(args=arguments, code=_resource("page.js")))
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_resource("page.html"))
    html: str = file_html(
        document,
        INLINE,
        title,
        template=template,
        template_variables=words_of(contents, title)
        | {"style": _resource("page.css"), "scores": scores_table(contents.scores), "widths": _widths(contents)},
    )
    return html


def _aspect(contents: Contents, name: str, way: Direction) -> float:
    """Width over height of a side."""
    rows, columns = contents.facts["sizes"][name] or contents.plan.grids[way]
    return float(columns / rows)


def _widths(contents: Contents) -> dict[str, str]:
    """Widths of the sides that keep a picture in portrait format no higher than a screen; a list takes any."""
    widths = {name: f"{HIGHEST_PICTURE * _aspect(contents, name, way):.4g}rem" for name, way in SIDES}
    return widths if contents.plan.view == "picture" else widths | {"reference": "none"}


def _models(contents: Contents, mapper: Any) -> dict[str, Any]:
    """Every figure and control by its name, which is its place in the page."""
    plan, facts = contents.plan, contents.facts
    models: dict[str, Any] = controls(
        plan, directions=facts["directions"], groups=facts["groups"], regions=facts["regions"]
    )
    for name, way in SIDES:
        models[name] = picture_figure(
            name,
            plan.grids[way],
            mapper,
            models["value"],
            aspect=_aspect(contents, name, way),
            has_picture=f"picture_{name}" in contents.arrays and (name == "generated" or plan.view == "picture"),
            tokens=token_labels(plan) if name == "reference" else None,
        )
    if contents.mask is not None:
        add_mask(models["generated"], contents.mask, plan.grids["r2g"])
    for way in DIRECTIONS:
        models[f"gallery_{way}"] = gallery_figure(f"gallery_{way}", models["value"])
    return models


def _resource(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
