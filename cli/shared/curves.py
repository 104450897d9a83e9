"""Printing and keeping what hiding patches of the reference changed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.shared.output import print_table, say

if TYPE_CHECKING:
    from attrace.analysis.scores.faithfulness import Faithfulness
    from attrace.recorder.jobs.joblist import Job


def faithfulness_as_json(found: Faithfulness, jobs: Sequence[Job], fill: str, draws: int) -> dict[str, Any]:
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


def save_faithfulness(found: Faithfulness, told: dict[str, Any], output: Path, seed: int) -> None:
    """Write the numbers and the figure of the curves into the output."""
    import json

    from attrace.analysis.figures.curves import draw_curves
    from attrace.analysis.figures.save import save_figure

    (output / "faithfulness.json").write_text(json.dumps(told, indent=2) + "\n")
    save_figure(draw_curves(found, seed=seed), output / "faithfulness.png")
    say(f"wrote {output / 'faithfulness.json'} and {output / 'faithfulness.png'}")


def _rows(found: Faithfulness, jobs: Sequence[Job]) -> Iterator[tuple[str, str, float, float]]:
    for order, curves in found.deletion.items():
        for job, curve in zip(jobs, curves.tolist(), strict=True):
            yield from ((job.output.stem, order, *pair) for pair in zip(found.fractions, curve, strict=True))


def print_curves(found: Faithfulness, jobs: Sequence[Job]) -> None:
    """Print a line for each input, order and share."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("input", "order", "hidden", "change"))
    writer.writerows(_rows(found, jobs))


def print_faithfulness(found: Faithfulness) -> None:
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
    click.echo()
    ratios = {"deletion, faithful above 1": found.deletion_ratio, "insertion, faithful below 1": found.insertion_ratio}
    lines = [[name, *(f"{value:.2f}" for value in asdict(one).values())] for name, one in ratios.items()]
    print_table([["top / random", "ratio", "low", "high"], *lines], right=(1, 2, 3))
