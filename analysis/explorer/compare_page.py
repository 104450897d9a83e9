"""A comparison as one page of HTML that needs no other file, no server and no script."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from attrace.analysis.figures.difference import draw_difference
from attrace.analysis.scores.trace_scores import BETTER
from attrace.analysis.studies.compare import Comparison, ranked_changes
from attrace.schemas.words import LEVELS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

SHOWN: Final = 12
"""Layers or heads of a figure, and rows of a ranked table: those that changed most."""

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right } th:first-child, td:first-child {
  text-align: left } caption { text-align: left; color: #555; padding-bottom: .3rem }
img { max-width: 100%; height: auto } figure { margin: 1rem 0 }
figcaption { color: #555 } code { font-size: .9em }
"""

MEANING: Final = {"r2g": "over the generated picture", "g2r": "over the reference"}


def compare_page(comparison: Comparison, names: tuple[str, str], *, paired_by: str) -> str:
    """The page.

    Parameters
    ----------
    comparison
        What `compare` gave.
    names
        Of the two sets; every text that comes from outside is escaped.
    paired_by
        How traces were paired, as given to `compare`.
    """
    dataset = comparison.dataset
    pairs = f"{dataset.attrs['pairs']} pairs of traces, paired by {paired_by}"
    parts = [
        f"<h1>{escape(names[0])} against {escape(names[1])}</h1>",
        _paragraph(
            f"{pairs}. Every difference is {names[1]} - {names[0]}, pair by pair; intervals are 95 % percentile "
            f"intervals of the mean over pairs, by bootstrap (seed {dataset.attrs['seed']})."
        ),
        *_left_out(comparison, names),
        "<h2>Scores</h2>",
        _table(("score", *names, "difference", "low", "high", "pairs", "better"), score_rows(comparison, names)),
    ]
    if comparison.sets:
        header, *rows = set_rows(comparison, names)
        parts += ["<h2>Sets of pictures</h2>", _table(header, rows)]
    changes = ranked_changes(dataset)
    for direction in dataset["direction"].values.tolist():
        parts.append(f"<h2>Maps {MEANING[direction]} ({direction})</h2>")
        parts += _figures(dataset.sel(direction=direction), direction, names, changes)
    parts.append("<h2>Layers and heads, the largest changes first</h2>")
    for score, ranked in changes.items():
        rows = [(one.of, *map(number, (one.difference, one.low, one.high))) for one in ranked[:SHOWN]]
        parts.append(_table((score, "difference", "low", "high"), rows, f"{len(ranked)} in all"))
    parts += ["<h2>Pairs</h2>", _pairs(dataset, names)]
    title = escape(f"{names[0]} against {names[1]}")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def score_rows(comparison: Comparison, names: tuple[str, str]) -> list[tuple[str, ...]]:
    """Rows of text: score, mean of a, mean of b, difference, low, high, pairs, and which is better.

    A set is better where the score has a better way and the interval leaves out 0.
    """
    dataset, rows = comparison.dataset, []
    for score in dataset["score"].values.tolist():
        one = dataset.sel(score=score)
        low, high = one["scores_interval"].values.tolist()
        means = [float(one[f"scores_{side}"].mean()) for side in ("a", "b")]
        numbers = (*means, float(one["scores_difference"]), low, high)
        better = better_side(score, low, high)
        rows.append(
            (score, *map(number, numbers), str(int(one["scores_pairs"])), "" if better is None else names[better])
        )
    return rows


def set_rows(comparison: Comparison, names: tuple[str, str]) -> list[tuple[str, ...]]:
    """A header, and for each set its FID, KID, the deviation of that over subsets, and how many pictures it has."""
    rows: list[tuple[str, ...]] = [("pictures against the true ones", "FID", "KID", "deviation", "pictures")]
    for name, one in zip(names, comparison.sets.values(), strict=True):
        rows.append((name, *map(number, (one.fid, one.kid, one.kid_deviation)), str(one.pictures)))
    return rows


def better_side(score: str, low: float, high: float) -> int | None:
    """0 or 1 where the interval of the difference says that the first or second set is better; else None."""
    way = BETTER.get(score.removesuffix("_r2g").removesuffix("_g2r"))
    if not way or not (low > 0 or high < 0):
        return None
    return int((low > 0) == (way == "higher"))


def number(value: float) -> str:
    """A number with four digits, a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _left_out(comparison: Comparison, names: tuple[str, str]) -> Iterable[str]:
    listed = {**comparison.unpaired, **comparison.broken}
    if listed:
        items = "".join(f"<li><code>{escape(path)}</code>: {escape(reason)}</li>" for path, reason in listed.items())
        yield f"<h2>Left out</h2><ul>{items}</ul>"
    for name, layers in zip(names, comparison.only.values(), strict=True):
        if layers:
            yield _paragraph(f"Layers of {name} only: {', '.join(layers)}")


def _figures(
    dataset: xr.Dataset, direction: str, names: tuple[str, str], changes: dict[str, list[Any]]
) -> Iterable[str]:
    for level in LEVELS:
        maps: list[xr.DataArray] = [dataset[f"{level}_{part}"] for part in ("a", "b", "difference")]
        caption = f"{level}: mean over pairs"
        dim = {"hlam": "head", "llam": "layer"}.get(level)
        if dim is not None:
            ranked = [one.of.removeprefix("head ") for one in changes.get(f"{dim}_distance_{direction}", [])[:SHOWN]]
            order = [label for label in maps[0][dim].values.tolist() if str(label) in ranked]
            if not order:
                continue
            maps = [one.sel({dim: order}) for one in maps]
            caption += f"; the {len(order)} {dim}s that changed most" if len(order) < dataset.sizes[dim] else ""
        elif level == "tlam":
            there = maps[2].notnull().any(["row", "column"]).values
            maps = [one.isel(time_group=np.flatnonzero(there)) for one in maps]
        picture = _inlined(draw_difference(maps[0], maps[1], maps[2], names))
        text = escape(caption)
        yield f'<figure><img alt="{text}" src="{picture}"><figcaption>{text}</figcaption></figure>'


def _inlined(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pairs(dataset: xr.Dataset, names: tuple[str, str]) -> str:
    differences = (dataset["scores_b"] - dataset["scores_a"]).transpose("pair", "score").values
    rows = [
        (name, *map(number, values))
        for name, values in zip(dataset["pair"].values.tolist(), differences.tolist(), strict=True)
    ]
    return _table(("pair", *dataset["score"].values.tolist()), rows, f"{names[1]} - {names[0]}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
