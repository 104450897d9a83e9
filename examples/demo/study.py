"""Do the scores rank models as the pictures do? `python -m attrace.demo.study RUNS...`.

I2AM (arXiv 2407.12331) reports that IMACS correlates with what measures pictures. Here this is asked
of models that were trained for it: the demo's at every save, and its variants (`attrace.demo.train --variant ...
--keep`). Each paints and records the same held-out samples; every score is computed from the traces, and its rank
correlation over the models with PSNR and SSIM inside the mask is reported with a bootstrap interval. The rows are kept
in a file: a study that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from attrace.demo.data import SIZE
from attrace.demo.evaluate import evaluate
from attrace.demo.run import load_pipeline
from attrace.demo.train import held_out_samples

Row = dict[str, Any]

SCORES: Final[dict[str, Callable[[Row], float]]] = {
    "R2G IMACS": lambda row: row["r2g_imacs"],
    "R2G mass inside the mask": lambda row: row["r2g_mass"],
    "G2R mass on the object": lambda row: row["g2r_object_mass"],
    "correspondence error of the best layer (lower is better)": lambda row: -min(row["sram_error"].values()),
    "correspondence error, mean over layers (lower is better)": lambda row: (
        -float(np.mean(list(row["sram_error"].values())))
    ),
}
"""What is computed from traces alone, each so that more is better."""

QUALITIES: Final[dict[str, Callable[[Row], float]]] = {
    "PSNR": lambda row: row["psnr"],
    "SSIM": lambda row: row["ssim"],
}
"""What is computed from the pictures and their truth."""


def correlation(scores: Sequence[float], qualities: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's rank correlation over models, and its 95 % interval by bootstrap over models (seed 0, percentile).

    A draw that holds one model only has no correlation and is left out.
    """
    pairs = np.stack([scores, qualities]).astype(np.float64)
    draws = np.random.default_rng(0).integers(pairs.shape[1], size=(2000, pairs.shape[1]))
    varied = [drawn for drawn in (pairs[:, draw] for draw in draws) if np.ptp(drawn, axis=1).all()]
    low, high = np.percentile([_spearman(drawn) for drawn in varied], [2.5, 97.5])
    return _spearman(pairs), float(low), float(high)


def _spearman(pairs: NDArray[np.float64]) -> float:
    return float(stats.spearmanr(*pairs).statistic)


def saved_pipelines(runs: Iterable[Path]) -> dict[str, Path]:
    """The pipelines that training runs kept, by a name such as `coarse, step 250`.

    Raises
    ------
    click.UsageError
        If a run kept none.
    """
    found = {}
    for run in runs:
        steps = sorted((run / "steps").glob("*/model_index.json"))
        if not steps:
            raise click.UsageError(f"{run}: expected pipelines under {run / 'steps'}, found none; train it with --keep")
        found.update({f"{run.name}, step {int(step.parent.name)}": step.parent for step in steps})
    return found


def model_table(rows: Sequence[Row]) -> str:
    """What was measured of each model, as a Markdown table."""
    columns = ("PSNR, dB", "SSIM", "R2G IMACS", "R2G mass", "G2R mass", "error, best layer", "error, mean")
    lines = [f"| model | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for row in rows:
        errors = list(row["sram_error"].values())
        cells = [
            f"{row['psnr']:.1f}",
            f"{row['ssim']:.3f}",
            f"{row['r2g_imacs']:+.2f}",
            f"{row['r2g_mass']:.2f}",
            f"{row['g2r_object_mass']:.2f}",
            f"{min(errors):.2f}",
            f"{np.mean(errors):.2f}",
        ]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def correlation_table(rows: Sequence[Row]) -> str:
    """Rank correlations of scores with qualities over the models, as a Markdown table."""
    lines = [f"| score | {' | '.join(QUALITIES)} |", "| --- |" + " ---: |" * len(QUALITIES)]
    for name, score in SCORES.items():
        cells = []
        for quality in QUALITIES.values():
            value, low, high = correlation([score(row) for row in rows], [quality(row) for row in rows])
            cells.append(f"{value:+.2f} ({low:+.2f} to {high:+.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(rows: Path, settings: Row) -> dict[str, Row]:
    """By model, what was measured under the same settings."""
    lines = rows.read_text().splitlines() if rows.exists() else []
    return {row["model"]: row for row in map(json.loads, lines) if settings.items() <= row.items()}


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rows", type=click.Path(dir_okay=False, path_type=Path), default="study.jsonl", help="Kept results.")
@click.option("--samples", default=32, help="How many held-out samples each model paints.")
@click.option("--steps", default=20, help="DDIM steps.")
@click.option("--seed", default=20_000, help="Of the samples.")
def main(runs: tuple[Path, ...], rows: Path, samples: int, steps: int, seed: int) -> None:
    """Measure every model that is not measured yet, and print both tables."""
    pipelines = saved_pipelines(runs)
    settings = {"samples": samples, "steps": steps, "seed": seed}
    measured = _measured(rows, settings)
    made = held_out_samples(samples, seed, SIZE)
    for number, (model, folder) in enumerate(pipelines.items(), 1):
        if model not in measured:
            quality = evaluate(load_pipeline(folder), made, steps=steps)
            measured[model] = {"model": model, **settings, **asdict(quality)}
            with rows.open("a") as kept:
                kept.write(json.dumps(measured[model]) + "\n")
        click.echo(f"{number} of {len(pipelines)}: {model}", err=True)
    chosen = [measured[model] for model in pipelines]
    click.echo(f"{model_table(chosen)}\n\n{correlation_table(chosen)}")


if __name__ == "__main__":
    main()
