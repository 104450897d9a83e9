"""The words of a report: what it shows, of what, and how exact its numbers are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from attrace.analysis.figures.text import counted, grid_text, joined
from attrace.analysis.trace.summary import facts

if TYPE_CHECKING:
    from attrace.analysis.explorer.contents import Contents
    from attrace.analysis.explorer.plan import ReportPlan
    from attrace.analysis.trace.trace import Trace

HELP: Final = {
    "picture": "Click a patch of either picture, or move it with the arrow keys (Shift and an arrow make it larger). "
    "A patch of the generated picture shows where in the reference it comes from; a patch of the reference shows where "
    "in the generated picture it went.",
    "tokens": "Click a patch of the generated picture to see which keys it takes from, or a key of the list to see "
    "where it went. The arrow keys move the choice (Shift and an arrow make it larger).",
    "whole": "The keys of this context cannot be told apart on a picture or in a list, so the map shows where all of "
    "them act together.",
}

LEVELS_HELP: Final = (
    "Means of the same attention: over everything, for each group of steps, head or layer. Click a map to see that "
    "group of steps, head or layer in the pictures above."
)


def words_of(contents: Contents, title: str) -> dict[str, Any]:
    """Every text of the page that is not in its template; the template escapes them."""
    plan = contents.plan
    trace = plan.trace
    of_text = trace.context == "text"
    return {
        "title": title,
        "summary": joined(
            [
                f"Attention of {facts(trace)['denoiser']}",
                f"context {trace.context}",
                f"picture {trace.picture}" if trace.picture is not None else "",
                f"branch {trace.branch}",
                counted(trace.steps, "step"),
                counted(len(trace.layers), "layer"),
                counted(len(trace.heads), "head"),
            ]
        ),
        "notes": _notes(plan),
        "help": HELP[plan.view],
        "levels_help": LEVELS_HELP,
        "view": plan.view,
        "hidden": [] if plan.view != "whole" else ["region", "direction", "follow"],
        "captions": contents.facts["names"],
        "gallery_captions": {
            "r2g": f"{'Text' if of_text else 'Reference'} to generated (R2G): where in the generated picture the "
            f"{'text' if of_text else 'reference'} acts",
            "g2r": "Generated to reference (G2R): which parts of the reference are used",
        },
        "scores_note": _scores_note(contents),
        "exactness": _exactness(contents),
        "facts": facts(trace) | {"trace": name_of(trace)},
        "manifest": json.dumps(trace.manifest.to_json(), indent=2, ensure_ascii=False),
        "made_by": f"Made by attrace {_version()}.",
    }


def name_of(trace: Trace) -> str:
    """The name of a trace without where it lies: a report is shown to others."""
    return trace.path.rstrip("/").rpartition("/")[2]


def _version() -> str:
    from importlib.metadata import version

    return version("attrace")


def _notes(plan: ReportPlan) -> list[str]:
    trace = plan.trace
    notes = []
    if plan.weights is not None:
        notes.append(f"Layers and heads are weighted by {plan.weights.name} in every mean over them.")
    others = [one for one in trace.contexts if one != trace.context]
    if others:
        notes.append(
            f"The trace has other contexts too ({', '.join(others)}); a report shows one: --context {others[0]}."
        )
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
            f"sum to less than 1, and 1 x even would be all attention of a patch, spread evenly over the {keys}."
        )
    if trace.interrupted:
        notes.append(f"The run was not recorded to its end ({trace.status}): the report shows its finished steps.")
    if plan.reason:
        notes.append(f"There is no map over the reference: {plan.reason.replace(trace.path, name_of(trace))}.")
    needed = ("generated", trace.reference_name) if plan.view == "picture" else ("generated",)
    missing = [f"no picture {name!r}" for name in needed if name not in trace.images]
    if missing:
        notes.append(f"The trace holds {' and '.join(missing)}: the patches are shown alone.")
    return notes


def _scores_note(contents: Contents) -> str:
    masked = "" if "imacs" in contents.scores else " The trace holds no mask that maps can be scored against."
    return f"As attrace score gives them. docs/scores.md says what each number is, and when it misleads.{masked}"


def _exactness(contents: Contents) -> list[str]:
    plan = contents.plan
    of_heads = "head" if plan.heads_apart else "the mean of its heads"
    bound = (
        f"The attention of each chosen patch is stored for every layer, {of_heads} and each of "
        f"{counted(len(plan.spans), 'group')} of steps, in whole numbers from 0 to {contents.levels}: a value is "
        f"within {50 / contents.levels:.2g} % of the largest one of its patch. Beside the colours stands how far a "
        "value of the map may be off for this reason."
    )
    lines = ["The maps of the levels are the numbers that attrace maps gives, in single precision.", bound]
    if plan.coarser:
        shown = " and ".join(grid_text(grid) for grid in dict.fromkeys(plan.grids.values()))
        lines.append(
            f"The recorded grids are finer than the page holds ({shown} cells): a cell is the mean of several patches. "
            "A larger --limit gives finer cells."
        )
    if not plan.heads_apart:
        lines.append(
            "Heads do not fit the limit one by one: chosen patches show their mean; the levels show each head."
        )
    lines.append("Time is averaged within each group of steps; attrace report --groups makes more of them.")
    return lines
