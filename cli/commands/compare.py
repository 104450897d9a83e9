"""`attrace compare`: two models or settings over the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.destination import Destination
from attrace.cli.shared.errors import Failure
from attrace.cli.shared.options import (
    CONTEXTS,
    contribution_option,
    density_option,
    examples,
    json_option,
    layers_option,
    overwrite_option,
    size,
    weights_option,
)
from attrace.cli.shared.output import chunk_progress, print_csv, print_json, print_table, say, show

if TYPE_CHECKING:
    from attrace.analysis.studies.compare import Change, Comparison
    from attrace.analysis.studies.pairing import PairBy


@click.command(
    epilog=examples(
        "attrace compare before after",
        "attrace compare before after --html page.html",
        "attrace compare run.zarr other.zarr --size 16x16 --json",
    )
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--pair",
    type=click.Choice(("name", "inputs")),
    default="name",
    show_default=True,
    help="Pair traces by file name, or by seed, texts and input pictures.",
)
@click.option("--names", nargs=2, metavar="NAME NAME", help="What to call A and B; by default their paths.")
@click.option(
    "--size",
    type=size,
    metavar="ROWSxCOLUMNS",
    help="Rows and columns of maps; by default scores take the finest grid, averaged maps 32x32.",
)
@click.option("--groups", type=click.IntRange(min=1), default=5, show_default=True, help="Groups of steps.")
@density_option
@weights_option
@contribution_option
@layers_option
@click.option("--context", type=click.Choice(CONTEXTS), help="What the keys are.")
@click.option("--branch", metavar="NAME", help="Branch of classifier-free guidance.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Changes of each kind to print.")
@click.option(
    "--sets",
    is_flag=True,
    help="FID and KID of the pictures of A and of B, too: needs attrace[perceptual] and its weights.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Address of a Dask cluster, such as tcp://host:8786.")
@click.option("--html", metavar="FILE", help="Write a page with tables and maps, too; may be an address.")
@overwrite_option
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a line for each difference.")
def compare(
    a: str,
    b: str,
    pair: PairBy,
    names: tuple[str, str] | None,
    size: tuple[int, int] | None,
    groups: int,
    density: bool | None,
    weights: str | None,
    contribution: bool,
    layers: tuple[str, ...],
    context: str | None,
    branch: str | None,
    seed: int,
    top: int,
    sets: bool,
    scheduler: str | None,
    html: str | None,
    overwrite: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Compare two models or settings over the same inputs.

    A and B are each a trace, a folder of traces, a glob or an address. Traces are paired by name, or by what was put
    into the model; differences are B - A, pair by pair, with bootstrap intervals over pairs. Scores as in `attrace
    score`; layers and heads ranked by the distance between their maps (Jensen-Shannon divergence, 0 to 1 bit) and by
    the change of their entropy, mass inside the mask and agreement.

    Traces without a partner are named. A trace that cannot be read is left out with its partner and named at the end;
    the exit code is then 1.
    """
    from attrace.analysis.studies.compare import compare as compare_traces
    from attrace.analysis.studies.engine import engine
    from attrace.analysis.studies.trace_statistics import Settings

    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv, not both")
    page = None if html is None else Destination(html)
    if page is not None:
        page.check(overwrite=overwrite)
    settings = Settings(
        size,
        groups,
        density is not False,
        layers=layers,
        context=context,
        branch=branch,
        weights=weights,
        contribution=contribution,
    )
    with chunk_progress("pairs") as progress, engine(scheduler) as pool:
        made = compare_traces(a, b, by=pair, settings=settings, executor=pool, seed=seed, progress=progress, sets=sets)
    called = names or (a, b)
    if page is not None:
        _write_page(made, called, pair, page)
    if as_json:
        print_json(_as_json(made, called))
    elif as_csv:
        _print_csv(made)
    else:
        _print(made, called, top)
    _tell_left_out(made, called)
    if made.broken:
        raise Failure(f"{len(made.broken)} traces could not be read:\n{_listed(made.broken.items())}")


def _write_page(made: Comparison, names: tuple[str, str], pair: str, target: Destination) -> None:
    from attrace.analysis.explorer.compare_page import compare_page

    page = compare_page(made, names, paired_by=pair)

    def write(path: Path) -> None:
        path.write_text(page, encoding="utf-8")

    target.write(write)


def _as_json(made: Comparison, names: tuple[str, str]) -> dict[str, Any]:
    from attrace.analysis.studies.compare import ranked_changes

    dataset = made.dataset
    scores = {}
    for score in dataset["score"].values.tolist():
        one = dataset.sel(score=score)
        low, high = one["scores_interval"].values.tolist()
        scores[score] = {
            "a": float(one["scores_a"].mean()),
            "b": float(one["scores_b"].mean()),
            "difference": float(one["scores_difference"]),
            "low": low,
            "high": high,
            "pairs": int(one["scores_pairs"]),
        }
    changes = {
        score: [{name: value for name, value in one._asdict().items() if name != "score"} for one in ranked]
        for score, ranked in ranked_changes(dataset).items()
    }
    return {
        "names": names,
        "pairs": dataset["pair"].values.tolist(),
        "scores": scores,
        "changes": changes,
        "sets": {side: asdict(distance) for side, distance in made.sets.items()},
        "unpaired": dict(made.unpaired),
        "broken": dict(made.broken),
        "only": {side: list(layers) for side, layers in made.only.items()},
    }


def _print_csv(made: Comparison) -> None:
    from attrace.analysis.studies.compare import ranked_changes

    rows = [(score, "", *one.values()) for score, one in _as_json(made, ("", ""))["scores"].items()]
    for ranked in ranked_changes(made.dataset).values():
        rows += [(one.score, one.of, "", "", one.difference, one.low, one.high, "") for one in ranked]
    print_csv(("score", "of", "a", "b", "difference", "low", "high", "pairs"), rows)


def _print(made: Comparison, names: tuple[str, str], top: int) -> None:
    from attrace.analysis.explorer.compare_page import score_rows, set_rows
    from attrace.analysis.studies.compare import ranked_changes

    say(f"{made.dataset.sizes['pair']} pairs; differences are {names[1]} - {names[0]}")
    say(f"scores are of the unified maps, {made.dataset.attrs['maps']}")
    header = ["score", *names, "difference", "low", "high", "pairs", "better"]
    print_table([header, *score_rows(made, names)], right=range(1, 7))
    if made.sets:
        show()
        print_table(set_rows(made, names), right=range(1, 5))
    for score, ranked in ranked_changes(made.dataset).items():
        show()
        print_table(_change_rows(score, ranked[:top]), right=(1, 2, 3))


def _change_rows(score: str, ranked: list[Change]) -> list[list[str]]:
    from attrace.analysis.explorer.compare_page import number

    rows = [[one.of, *map(number, (one.difference, one.low, one.high))] for one in ranked]
    return [[score, "difference", "low", "high"], *rows]


def _tell_left_out(made: Comparison, names: tuple[str, str]) -> None:
    if made.unpaired:
        say(f"{len(made.unpaired)} traces have no partner:\n{_listed(made.unpaired.items())}")
    for name, layers in zip(names, made.only.values(), strict=True):
        if layers:
            say(f"layers of {name} only: {', '.join(layers)}")


def _listed(reasons: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"  {path}: {reason}" for path, reason in reasons)
