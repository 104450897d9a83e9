"""`attrace aggregate`: statistics over many traces."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attrace.cli.shared.destination import MARK, Destination
from attrace.cli.shared.errors import Failure, Usage
from attrace.cli.shared.options import (
    CONTEXTS,
    LocalPath,
    contribution_option,
    density_option,
    examples,
    json_option,
    layers_option,
    overwrite_option,
    size,
    weights_option,
)
from attrace.cli.shared.output import chunk_progress, csv_cell, print_json, print_table, say

if TYPE_CHECKING:
    import xarray as xr

    from attrace.analysis.studies.aggregate import Aggregate

SUFFIXES = (".zarr", ".csv", ".parquet")


@click.command(
    epilog=examples(
        'attrace aggregate "run*.zarr" -o statistics.zarr',
        'attrace aggregate "run*.zarr" -o scores.csv --size 16x16 --align mask',
    )
)
@click.argument("sources", metavar="SOURCES...", nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="PATH", required=True, help="A .zarr, .csv or .parquet file to write; may be an address."
)
@click.option(
    "--size",
    type=size,
    metavar="ROWSxCOLUMNS",
    help="Rows and columns of maps; by default scores take the finest grid, averaged maps 32x32.",
)
@click.option("--groups", type=click.IntRange(min=1), default=5, show_default=True, help="Groups of steps.")
@click.option(
    "--align",
    type=click.Choice(("picture", "mask")),
    default="picture",
    show_default=True,
    help="Lay whole pictures over each other, or the boxes around their masks.",
)
@density_option
@weights_option
@contribution_option
@layers_option
@click.option("--context", type=click.Choice(CONTEXTS), help="What the keys are.")
@click.option("--branch", metavar="NAME", help="Branch of classifier-free guidance.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--parts",
    type=LocalPath(),
    metavar="DIR",
    help="Folder for the statistics of each trace, until all is written; OUTPUT.parts by default.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Address of a Dask cluster, such as tcp://host:8786.")
@overwrite_option
@json_option
def aggregate(
    sources: tuple[str, ...],
    output: str,
    size: tuple[int, int] | None,
    groups: int,
    align: str,
    density: bool | None,
    weights: str | None,
    contribution: bool,
    layers: tuple[str, ...],
    context: str | None,
    branch: str | None,
    seed: int,
    parts: Path | None,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compute statistics over many traces.

    SOURCES are traces, folders of them, globs or addresses. Mean and variance of the maps of every level and direction,
    entropy, mass inside the mask and agreement of heads, and the scores of every trace, with bootstrap intervals. A
    .zarr holds all of it, the tables leave out the maps.

    The statistics of each trace are saved beside the output (OUTPUT.parts; in the working directory if the output is
    an address such as s3://bucket/stats.zarr) until all is written: run the same command again after an interruption
    and it goes on. A trace that cannot be read is left out and reported at the end; the exit code is then 1, and the
    parts stay.
    """
    from attrace.analysis.studies.aggregate import aggregate as aggregate_traces
    from attrace.analysis.studies.engine import engine
    from attrace.analysis.studies.trace_statistics import Settings

    target = Destination(output)
    if target.suffix not in SUFFIXES:
        raise click.BadParameter(f"expected a name that ends in {', '.join(SUFFIXES)}, found {output}", param_hint="-o")
    target.check(overwrite=overwrite)
    if target.suffix == ".parquet":
        _require_pyarrow()
    settings = Settings(
        size, groups, density is not False, align == "mask", layers, context, branch, weights, contribution
    )
    folder = parts or target.beside / f"{target.name}.parts"
    with chunk_progress("traces") as progress, engine(scheduler) as pool:
        made = aggregate_traces(sources, folder, settings=settings, executor=pool, seed=seed, progress=progress)
    _write(made, target)
    _report(made, settings.map_name, as_json=as_json)
    for path, original in made.copies.items():
        say(f"{path} is a copy of {original}: both count")
    if made.broken:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in made.broken.items())
        raise Failure(f"{len(made.broken)} traces are left out:\n{listed}")
    shutil.rmtree(folder)


def _require_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise Usage("a .parquet file needs pyarrow: pip install 'attrace[parquet]', or write a .csv")


def _write(made: Aggregate, target: Destination) -> None:
    from attrace.analysis.studies.aggregate import summary_table

    def write(path: Path) -> None:
        if target.suffix == ".zarr":
            _plain(made.dataset).to_zarr(path, zarr_format=3)
        elif target.suffix == ".csv":
            summary_table(made.dataset).map(csv_cell).to_csv(path, index=False)
        else:
            summary_table(made.dataset).to_parquet(path, index=False)

    target.write(write)


def _plain(dataset: xr.Dataset) -> xr.Dataset:
    """With text of any length, as Zarr has no type for fixed-length text, and marked as ours."""
    texts = {name: values.astype(object) for name, values in dataset.coords.items() if values.dtype.kind == "U"}
    return dataset.assign_coords(texts).assign_attrs({MARK: "1"})


def _report(made: Aggregate, map_name: str, *, as_json: bool) -> None:
    dataset = made.dataset
    scores = {
        score: {
            "mean": float(dataset["scores"].sel(score=score).mean()),
            **{bound: float(dataset["scores_interval"].sel(score=score, bound=bound)) for bound in ("low", "high")},
        }
        for score in dataset["score"].values.tolist()
    }
    if as_json:
        print_json({"traces": made.dataset.sizes["trace"], "scores": scores, "broken": dict(made.broken)})
        return
    say(f"{made.dataset.sizes['trace']} traces; scores are of the unified maps, {map_name}")
    if scores:
        rows = [[name, *(f"{value:.4g}" for value in found.values())] for name, found in scores.items()]
        print_table([["score", "mean", "low", "high"], *rows], right=(1, 2, 3))
