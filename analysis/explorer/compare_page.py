"""A comparison as one page of HTML that needs no other file and no server: the verdict, the pictures, the numbers."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from attrace.analysis.explorer.embedding import embed
from attrace.analysis.explorer.facts import picture_address
from attrace.analysis.explorer.page import for_script, render_page
from attrace.analysis.figures.difference import draw_difference
from attrace.analysis.figures.text import counted
from attrace.analysis.scores.trace_scores import BETTER
from attrace.analysis.studies.compare import Comparison, ranked_changes
from attrace.analysis.trace.trace import open_trace
from attrace.schemas import AttraceError
from attrace.schemas.words import LEVELS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SHOWN: Final = 12
"""Layers or heads of a figure, and rows of a ranked table: those that changed most."""

FEW_PAIRS: Final = 10
"""Below so many pairs an interval says little."""

PICTURED: Final = 24
"""Pairs whose pictures are shown."""

EXPLORED: Final = 2
"""Pairs that can be explored on the page, those that differ most."""

EXPLORER_BYTES: Final = 1_000_000
"""Of one trace that can be explored."""

PICTURES: Final = ("reference", "mask")
"""What both traces of a pair share."""

MEANING: Final = {"r2g": "over the generated picture", "g2r": "over the reference"}

GLOSSARY: Final[Mapping[str, str]] = {
    "imacs": "Attention inside the mask less three times that outside of it, on a map scaled to 0 to 1.",
    "imacs_stableviton": "IMACS as StableVITON publishes it, of the inverted map.",
    "imacs_viton_step_1": "IMACS as the code of the I2AM paper has it, of values above 0.4.",
    "inside": "Share of the attention that lies inside the mask.",
    "area": "Share of the picture that the mask covers.",
    "iou": "Overlap of the box around strong attention with the box around the mask.",
    "entropy": "How widely attention is spread, in nats.",
    "effective_tokens": "How many patches would have as wide a spread if they shared attention evenly.",
    "head_agreement": "How alike the maps of the heads are.",
    "layer_agreement": "How alike the maps of the layers are.",
    "drift": "How much the map changes from the first steps to the last.",
    "psnr": "Likeness to the true picture, in decibels.",
    "ssim": "Likeness of structure to the true picture, 1 at most.",
    "psnr_inside": "Likeness to the true picture inside the mask, in decibels.",
    "ssim_inside": "Likeness of structure to the true picture inside the mask, 1 at most.",
    "lpips": "Perceptual distance from the true picture.",
    "correspondence_error": "How far attention looks from the true place, in patches.",
    "layer_distance": "How much the map of a layer changed: Jensen-Shannon divergence, 0 to 1 bit.",
    "head_distance": "How much the map of a head changed: Jensen-Shannon divergence, 0 to 1 bit.",
}
"""What the scores say, in a sentence each; docs/scores.md has the rest."""

LINK: Final = """
const translated = (state, from, to) => {
  // layers and heads by their labels: the other trace may have others
  const [here, there] = [from, to].map((model) => model.get("facts").relations[state.relation ?? 0] ?? {});
  const known = (list, index) => (index >= 0 ? (there[list] ?? []).indexOf(here[list][index]) : -1);
  return { ...state, layer: known("layers", state.layer), head: known("heads", state.head) };
};
for (const pair of document.querySelectorAll("[data-pair]")) {
  const models = [];
  for (const at of pair.querySelectorAll("[data-explorer]")) {
    const model = await embedded(at.parentNode, false);
    if (models.length) model.set("state", translated(models[0].explorer.state, models[0], model));
    models.push(model);
    await render({ model, el: at });
    model.explorer = at.explorer;
  }
  let linking = false;
  for (const model of models) model.on("change:state", () => {
    if (linking) return;
    linking = true;
    for (const other of models) if (other !== model) other.set("state", translated(model.get("state"), model, other));
    linking = false;
  });
}
"""
"""What is chosen in one explorer of a pair is chosen in the other."""


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
    dataset, changes = comparison.dataset, ranked_changes(comparison.dataset)
    order, pairs = _by_difference(dataset), counted(dataset.attrs["pairs"], "pair")
    values = {
        "title": f"{names[0]} against {names[1]}",
        "names": names,
        "summary": f"{pairs} of traces, paired by {paired_by}; maps {dataset.attrs['maps']}",
        "verdict": verdict(comparison, names),
        "caution": _caution(dataset.attrs["pairs"]),
        "method": (
            f"Every difference is {names[1]} - {names[0]}, pair by pair; intervals are 95 % percentile intervals of "
            f"the mean over pairs, by bootstrap (seed {dataset.attrs['seed']})."
        ),
        "left_out": {**comparison.unpaired, **comparison.broken},
        "only": {name: layers for name, layers in zip(names, comparison.only.values(), strict=True) if layers},
        "scores": [("score", *names, "difference", "low", "high", "pairs", "better"), *score_rows(comparison, names)],
        "sets": set_rows(comparison, names) if comparison.sets else [],
        "maps": [
            (
                f"Maps {MEANING[direction]} ({direction})",
                list(_figures(dataset.sel(direction=direction), direction, names, changes)),
            )
            for direction in dataset["direction"].values.tolist()
        ],
        "changes": {
            score: (
                len(ranked),
                [(one.of, *map(number, (one.difference, one.low, one.high))) for one in ranked[:SHOWN]],
            )
            for score, ranked in changes.items()
        },
        "pairs": [_pair_facts(comparison, index) for index in order[:PICTURED]],
        "explored": [_explored(comparison, index, names) for index in order[:EXPLORED] if comparison.pairs],
        "differences": _differences(dataset, order),
        "glossary": _glossary([*dataset["score"].values.tolist(), *changes]),
    }
    page, _ = render_page("compare.html", ["local.js", "embedded.js", "explorer.js"], LINK, values)
    return page


def verdict(comparison: Comparison, names: tuple[str, str]) -> list[str]:
    """Who is better on what, by how much, in sentences; that nothing is decided where no interval leaves out 0."""
    dataset, decided, open_ones = comparison.dataset, [], []
    for score in dataset["score"].values.tolist():
        if not BETTER.get(_plain(score)):
            continue
        one = dataset.sel(score=score)
        low, high = one["scores_interval"].values.tolist()
        side = better_side(score, low, high)
        if side is None:
            open_ones.append(score)
            continue
        size, *ends = (number(abs(value)) for value in (float(one["scores_difference"]), *sorted((low, high), key=abs)))
        decided.append(f"{names[side]} is better on {_readable(score)}, by {size} ({' to '.join(ends)}).")
    if not decided:
        return [f"No score tells {names[0]} from {names[1]}: every interval of a difference holds 0."]
    return decided + ([f"Undecided: {', '.join(map(_readable, open_ones))}."] if open_ones else [])


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
    way = BETTER.get(_plain(score))
    if not way or not (low > 0 or high < 0):
        return None
    return int((low > 0) == (way == "higher"))


def number(value: float) -> str:
    """A number with four digits, a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def _figures(
    dataset: xr.Dataset, direction: str, names: tuple[str, str], changes: dict[str, list[Any]]
) -> Iterable[dict[str, str]]:
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
        yield {"caption": caption, "picture": _inlined(draw_difference(maps[0], maps[1], maps[2], names))}


def _inlined(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plain(score: str) -> str:
    """The name of a score without its direction."""
    return score.removesuffix("_r2g").removesuffix("_g2r")


def _readable(score: str) -> str:
    return score.replace("_", " ")


def _caution(pairs: int) -> str:
    if pairs >= FEW_PAIRS:
        return ""
    return f"Over {counted(pairs, 'pair')} an interval says little: compare {FEW_PAIRS} or more before you conclude."


def _glossary(scores: Iterable[str]) -> dict[str, str]:
    """What each score says, by the name that tables give it."""
    return {score: GLOSSARY[_plain(score)] for score in scores if _plain(score) in GLOSSARY}


def _by_difference(dataset: xr.Dataset) -> list[int]:
    """Pairs in the order of how much they differ: the mean over scores, each relative to its largest difference."""
    sizes = np.abs(_changed(dataset))
    known = np.isfinite(sizes)
    largest = np.where(known, sizes, 0).max(axis=0)
    relative = np.where(known, sizes, 0) / np.where(largest > 0, largest, 1)
    order: list[int] = np.argsort(-relative.sum(axis=1) / np.maximum(known.sum(axis=1), 1), kind="stable").tolist()
    return order


def _changed(dataset: xr.Dataset) -> NDArray[np.float64]:
    """Scores of b less those of a: (pair, score)."""
    return np.asarray((dataset["scores_b"] - dataset["scores_a"]).transpose("pair", "score").values, np.float64)


def _differences(dataset: xr.Dataset, order: list[int]) -> list[tuple[str, ...]]:
    """A header and a row for each pair, those that differ most first."""
    names, changed = dataset["pair"].values.tolist(), _changed(dataset)
    rows = [(str(names[index]), *map(number, changed[index].tolist())) for index in order]
    return [("pair", *dataset["score"].values.tolist()), *rows]


def _pair_facts(comparison: Comparison, index: int) -> dict[str, Any]:
    """Name and pictures of a pair: both generated pictures, the reference and the mask."""
    name = str(comparison.dataset["pair"].values[index])
    if not comparison.pairs:
        return {"name": name, "pictures": []}
    pair = comparison.pairs[index]
    a, b = open_trace(pair.a), open_trace(pair.b)
    pictures = [("a", picture_address(a, "generated")), ("b", picture_address(b, "generated"))]
    pictures += [(picture, picture_address(a, picture)) for picture in PICTURES]
    return {"name": name, "pictures": [(kind, address) for kind, address in pictures if address]}


def _explored(comparison: Comparison, index: int, names: tuple[str, str]) -> dict[str, Any]:
    """What a page carries of both traces of a pair, and why it cannot where it cannot."""
    pair, sides = comparison.pairs[index], []
    for name, path in zip(names, (pair.a, pair.b), strict=True):
        try:
            embedding = embed(open_trace(path), groups=1, limit=EXPLORER_BYTES)
            sides.append(
                {"name": name, "embedding": for_script(embedding.to_json()), "rows": embedding.rows(), "failed": ""}
            )
        except AttraceError as error:
            sides.append({"name": name, "failed": str(error)})
    return {"name": pair.name, "sides": sides}
