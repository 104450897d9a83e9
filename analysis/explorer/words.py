"""The words of a report: what it shows, of what, and how exact its numbers are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrace.analysis.explorer.facts import keys_name, name_of
from attrace.analysis.figures.text import counted, grid_text, joined
from attrace.analysis.trace.summary import facts

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis.explorer.embedding import Embedding
    from attrace.analysis.explorer.plan import ReportPlan
    from attrace.analysis.trace.trace import Trace


def words_of(embedding: Embedding, scores: xr.Dataset, title: str) -> dict[str, Any]:
    """Every text of the page that is not in its template; the template escapes them."""
    trace = embedding.plans[0].trace
    return {
        "title": title,
        "summary": summary_of(trace),
        "notes": [note for plan in embedding.plans for note in notes_of(plan)] + _left_out(embedding),
        "scores_note": _scores_note(scores),
        "exactness": _exactness(embedding),
        "facts": facts(trace) | {"trace": name_of(trace)},
        "manifest": json.dumps(trace.manifest.to_json(), indent=2, ensure_ascii=False),
        "made_by": f"Made by attrace {_version()}.",
    }


def summary_of(trace: Trace) -> str:
    """What was recorded, in a line."""
    return joined(
        [
            facts(trace)["denoiser"],
            counted(trace.steps, "step"),
            counted(len(trace.layers), "layer"),
            counted(len(trace.heads), "head"),
            f"{trace.branch} branch",
            f"picture {trace.picture}" if trace.picture is not None else "",
        ]
    )


def _version() -> str:
    from importlib.metadata import version

    return version("attrace")


def notes_of(plan: ReportPlan) -> list[str]:
    """What a reader has to know of the attention of a context."""
    trace = plan.trace
    notes = []
    if plan.weights is not None:
        notes.append(f"Layers and heads are weighted by {plan.weights.name} in every mean over them.")
    if trace.picture is not None:
        others = [str(number) for number in range(trace.pictures) if number != trace.picture]
        notes.append(
            f"The keys hold {trace.pictures} pictures. The reference is here picture {trace.picture}, counted from 0, "
            f"and all numbers are of its patches: --picture {' or '.join(others)} shows another."
        )
    if any(one.site_class.has_lse for one in plan.classes):
        keys = "text" if trace.context == "text" else "reference"
        notes.append(
            f"One softmax shares the model's attention out over the {keys} and other keys: the weights over the {keys} "
            "sum to less than 1. Even attention is that of a patch that looks at all keys alike."
        )
    if trace.interrupted:
        notes.append(f"The run was not recorded to its end ({trace.status}): the report shows its finished steps.")
    if plan.reason:
        notes.append(
            f"There is no map over the {keys_name(trace).lower()}: {plan.reason.replace(trace.path, name_of(trace))}."
        )
    needed = ("generated", trace.reference_name) if plan.view == "picture" else ("generated",)
    missing = [f"no picture {name!r}" for name in needed if name not in trace.images]
    if missing:
        notes.append(f"The trace holds {' and '.join(missing)}: the patches are shown alone.")
    return notes


def _left_out(embedding: Embedding) -> list[str]:
    """Contexts that the page does not show."""
    trace = embedding.plans[0].trace
    reasons = {context: reason.replace(trace.path, name_of(trace)) for context, reason in embedding.left_out.items()}
    return [f"The trace has {one} attention too, which this page leaves out: {why}." for one, why in reasons.items()]


def _scores_note(scores: xr.Dataset) -> str:
    masked = "" if "imacs" in scores else " The trace holds no mask that maps can be scored against."
    return f"As attrace score gives them. docs/scores.md says what each number is, and when it misleads.{masked}"


def _exactness(embedding: Embedding) -> list[str]:
    plan, levels = embedding.plans[0], embedding.levels
    of_heads = "head" if plan.heads_apart else "the mean of its heads"
    stored = (
        f"The attention of each patch is stored for every layer, {of_heads} and each of "
        f"{counted(len(plan.spans), 'group')} of steps, in whole numbers from 0 to {levels} with a scale of its own: a "
        f"value is within {50 / levels:.2g} % of the largest one of its patch. The line below the sentence says how "
        "far the values of the map may be off for this reason."
    )
    lines = [stored, "Otherwise a map is what attrace sram, ulam, tlam, hlam and llam give for the same choice."]
    for plan in embedding.plans:
        name = keys_name(plan.trace)
        if plan.coarser:
            shown = " and ".join(grid_text(grid) for grid in dict.fromkeys(plan.grids.values()))
            lines.append(
                f"{name}: the recorded grids are finer than the page holds ({shown} cells): a cell is the mean of "
                "several patches. A larger --limit gives finer cells."
            )
        if not plan.heads_apart:
            lines.append(f"{name}: heads do not fit the limit one by one; maps are means over them.")
    lines.append("Time is averaged within each group of steps; attrace report --groups makes more of them.")
    return lines
