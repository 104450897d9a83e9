"""`attrace faithfulness`: whether the model uses the patches of the reference that its attention points at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.errors import Failure
from attrace.cli.shared.options import (
    LocalPath,
    contribution_option,
    density_option,
    examples,
    json_option,
    weights_option,
)
from attrace.cli.shared.output import chunk_progress, print_csv, print_json, print_table, say, show
from attrace.cli.shared.recording import Run, recorder_at_work, run_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attrace.analysis import Trace
    from attrace.analysis.scores.faithfulness import Faithfulness, Order
    from attrace.recorder.jobs.faithfulness import Fill
    from attrace.recorder.jobs.joblist import Job


def rising_shares(text: str) -> tuple[float, ...]:
    """Shares of the patches, such as `0.1,0.25,0.5`."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or sorted(set(shares)) != list(shares) or not 0 < shares[0] <= shares[-1] < 1:
        raise click.BadParameter(f"expected rising shares between 0 and 1 such as 0.1,0.25,0.5, found {text!r}")
    return shares


@click.command(
    epilog=examples(
        """attrace faithfulness --pipeline ./pipeline --class attrace.demo.pipeline:ReferenceInpaintPipeline
--jobs jobs.jsonl --steps 20 --reference reference_image --mask mask_image -o faithful"""
    )
)
@click.option("-o", "--output", type=LocalPath(), required=True, help="Folder for traces, figures and numbers.")
@click.option(
    "--fill",
    type=click.Choice(("mean", "blur", "swap")),
    default="mean",
    show_default=True,
    help="Hide patches by the mean colour, by a blur, or by each other.",
)
@click.option(
    "--shares",
    type=rising_shares,
    metavar="SHARES",
    default="0.1,0.25,0.5,0.75",
    show_default=True,
    help="Shares of the patches to hide, beside none and all.",
)
@click.option("--draws", type=click.IntRange(min=1), default=3, show_default=True, help="Random orders for each input.")
@click.option("--order-seed", type=int, default=0, show_default=True, help="Seed of random orders and the bootstrap.")
@click.option("--whole", is_flag=True, help="Measure the whole picture, not only what lies inside the mask.")
@click.option(
    "--queries",
    type=click.Choice(("all", "mask")),
    default="all",
    show_default=True,
    help="Rank by the attention of all patches of the generated picture, or of those inside the mask.",
)
@density_option
@weights_option
@contribution_option
@run_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a line for each input, order and share.")
def faithfulness(
    jobs: Path | None,
    output: Path,
    fill: Any,
    shares: tuple[float, ...],
    draws: int,
    order_seed: int,
    whole: bool,
    queries: str,
    density: bool | None,
    weights: str | None,
    contribution: bool,
    as_json: bool,
    as_csv: bool,
    **options: Any,
) -> None:
    """Hide what attention points at, and see what changes.

    Records every input, ranks the patches of its reference by the unified g2r map, and generates again from the same
    noise with a share of them hidden: those of the highest rank first, of the lowest first, and in random order. The
    change is the mean absolute difference of the pictures, inside the mask where there is one. Prints the areas under
    the deletion curves (a share hidden) and insertion curves (only that share shown), and the ratio of top to random,
    with bootstrap intervals over the inputs; leaves the traces, a figure and all numbers in the output.

    --reference and a seed are needed, and --reference must name an input, as it is what is changed. --jobs takes a
    list of inputs as `attrace record` does. Traces that are complete are not recorded again, and the same command goes
    on after an interruption: what a run with hidden patches gave is kept beside the trace.
    """
    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv, not both")
    run = Run.of(**options)
    with recorder_at_work("faithfulness"):
        listed = (run.job(output / "run.zarr"),) if jobs is None else run.jobs(jobs, output)
        _check(listed)
        from attrace.analysis.scores.faithfulness import by_order, summarise
        from attrace.recorder.jobs.pipelines import load_pipeline

        load = cache(partial(load_pipeline, **run.loading))
        _record(load, listed, run.recording | ({"values": True} if contribution else {}))
        layers = list(options["layers"]) or None
        ranking = {"density": density is not False, "weights": weights, "contribution": contribution}
        test = _Test((0.0, *shares, 1.0), draws, order_seed, fill, whole, queries == "mask", ranking, layers)
        curves = []
        with chunk_progress("pictures") as progress:
            for number, job in enumerate(listed, 1):
                curves.append(test.curves(load, job))
                if progress is not None:
                    progress(number, len(listed))
    found = summarise(test.fractions, by_order(curves), seed=order_seed)
    told = _as_json(found, listed, fill, draws)
    _save(found, told, output, order_seed)
    if as_json:
        print_json(told)
    elif as_csv:
        print_csv(("input", "order", "hidden", "change"), _rows(found, listed))
    else:
        _print_areas(found)


def _check(jobs: Sequence[Job]) -> None:
    """Refuse what cannot be tested before a model is loaded."""
    for job in jobs:
        if job.seed is None:
            raise click.UsageError(f"{job.where}: pass --seed, as every picture is to come from the same noise")
        if not isinstance(job.pictures.get("reference"), str):
            raise click.UsageError(f"{job.where}: pass --reference with the name of an input: it is what is changed")


def _record(load: Callable[[], Any], jobs: Sequence[Job], options: dict[str, Any]) -> None:
    from attrace.recorder.jobs.jobs import record_jobs

    left = [job for job in jobs if not job.is_complete]
    failed = [one for one in record_jobs(load(), left, **options) if one.state == "failed"] if left else []
    if failed:
        listed = "\n".join(f"  {one.job.where}: {one.problem}" for one in failed)
        raise Failure(f"{len(failed)} inputs could not be recorded:\n{listed}")


@dataclass(frozen=True)
class _Test:
    """What is hidden, and how a change is measured."""

    fractions: tuple[float, ...]
    draws: int
    seed: int
    fill: Fill
    whole: bool
    rank_by_mask: bool
    """Whether the queries inside the mask rank the patches, not all."""
    ranking: dict[str, Any]
    """Options of the map that ranks the patches."""
    layers: list[str] | None
    """Of the model, that are recorded and rank the patches; None for all."""

    def curves(self, load: Callable[[], Any], job: Job) -> dict[Order, NDArray[np.float64]]:
        """Change of an input's picture by order: (fraction)."""
        from attrace.analysis import open_trace
        from attrace.analysis.maps.masks import trace_mask
        from attrace.analysis.scores.faithfulness import deletion_plan, picture_change
        from attrace.recorder.jobs.hidden_runs import Recorded, hidden_changes

        trace = open_trace(job.output)
        self._require_layers(trace, job)
        stored = trace_mask(trace)
        if self.rank_by_mask and stored is None:
            raise Failure(f"{job.where}: {job.output} holds no mask to take the queries of: pass --mask")
        queries = stored if self.rank_by_mask else None
        plan = deletion_plan(trace, self.fractions, draws=self.draws, seed=self.seed, queries=queries, **self.ranking)
        recorded = Recorded(trace.manifest.id, trace.images["generated"].values)
        mask = None if self.whole else stored
        changes = hidden_changes(
            load,
            job,
            recorded,
            plan.hidden,
            lambda picture: picture_change(picture, recorded.picture, mask),
            fill=self.fill,
            measured="whole" if mask is None else "mask",
        )
        return plan.curves(changes)

    def _require_layers(self, trace: Trace, job: Job) -> None:
        """Refuse a trace of an earlier call that ranks by other layers."""
        recorded = trace.manifest.capture.get("layers")
        if recorded != self.layers:
            raise Failure(
                f"{job.where}: {job.output} was recorded of {_listed(recorded)}, not of {_listed(self.layers)}: "
                "choose another --output, or the same layers"
            )


def _listed(layers: Any) -> str:
    return f"--layers {' '.join(map(str, layers))}" if layers else "all layers"


def _as_json(found: Faithfulness, jobs: Sequence[Job], fill: str, draws: int) -> dict[str, Any]:
    """Every number by its name."""
    return {
        "inputs": [job.output.stem for job in jobs],
        "fill": fill,
        "draws": draws,
        "fractions": found.fractions,
        "deletion": {order: curves.tolist() for order, curves in found.deletion.items()},
        "deletion_area": {order: asdict(area) for order, area in found.areas.items()},
        "insertion_area": {order: asdict(area) for order, area in found.insertion_areas.items()},
        "deletion_ratio": asdict(found.deletion_ratio),
        "insertion_ratio": asdict(found.insertion_ratio),
    }


def _save(found: Faithfulness, told: dict[str, Any], output: Path, seed: int) -> None:
    """Write the numbers and the figure of the curves."""
    from attrace.analysis.figures.curves import draw_curves
    from attrace.analysis.figures.save import save_figure

    (output / "faithfulness.json").write_text(json.dumps(told, indent=2) + "\n")
    save_figure(draw_curves(found, seed=seed), output / "faithfulness.png")
    say(f"wrote {output / 'faithfulness.json'} and {output / 'faithfulness.png'}")


def _rows(found: Faithfulness, jobs: Sequence[Job]) -> Iterator[tuple[str, str, float, float]]:
    for order, curves in found.deletion.items():
        for job, curve in zip(jobs, curves.tolist(), strict=True):
            yield from ((job.output.stem, order, *pair) for pair in zip(found.fractions, curve, strict=True))


def _print_areas(found: Faithfulness) -> None:
    """Print tables of the curves, areas and ratios."""
    header = ["order", *(f"hide {fraction:.0%}" for fraction in found.fractions[1:]), "deletion area", "insertion area"]
    rows = [
        [
            order,
            *(f"{value:.4f}" for value in found.deletion[order].mean(axis=0)[1:]),
            *(f"{one.value:.4f}" for one in (area, found.insertion_areas[order])),
        ]
        for order, area in found.areas.items()
    ]
    print_table([header, *rows], right=range(1, len(header)))
    show()
    ratios = {"deletion, faithful above 1": found.deletion_ratio, "insertion, faithful below 1": found.insertion_ratio}
    lines = [[name, *(f"{value:.2f}" for value in asdict(one).values())] for name, one in ratios.items()]
    print_table([["top / random", "ratio", "low", "high"], *lines], right=(1, 2, 3))
