"""`attrace atlas`: a table of the heads of many traces."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attrace.cli.shared.destination import Destination
from attrace.cli.shared.errors import Failure, Usage
from attrace.cli.shared.options import CONTEXTS, examples, json_option, layers_option, overwrite_option
from attrace.cli.shared.output import chunk_progress, csv_cell, print_json, say

if TYPE_CHECKING:
    from attrace.analysis import Atlas

SUFFIXES = (".parquet", ".csv")


@click.command(
    epilog=examples(
        'attrace atlas "run*.zarr" -o atlas.parquet',
        "attrace atlas run.zarr -o heads.csv --groups 2 --places mask",
    )
)
@click.argument("sources", metavar="SOURCES...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="PATH", required=True, help="A .parquet or .csv file to write; or an address.")
@click.option("--groups", type=click.IntRange(min=1), default=5, show_default=True, help="Groups of steps.")
@click.option(
    "--effects",
    metavar="effect|FILE",
    default="effect",
    show_default=True,
    help="Effects of layers or heads: those that a trace holds, or a file of attrace ablate.",
)
@click.option(
    "--places",
    metavar="mask|matches|FOLDER",
    help="Where the whole reference was laid, SIFT matches, or a folder of true places, NAME.npy for NAME.zarr.",
)
@layers_option
@click.option("--context", type=click.Choice(CONTEXTS), help="What the keys are.")
@click.option("--branch", metavar="NAME", help="Branch of classifier-free guidance.")
@click.option("--scheduler", metavar="ADDRESS", help="Address of a Dask cluster, such as tcp://host:8786.")
@overwrite_option
@json_option
def atlas(
    sources: tuple[str, ...],
    output: str,
    groups: int,
    effects: str,
    places: str | None,
    layers: tuple[str, ...],
    context: str | None,
    branch: str | None,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a table of the heads of many traces.

    SOURCES are traces, folders of them, globs or addresses. One row for each trace, layer, head, group of steps and
    direction: entropy of the head's map, its mass inside the mask, agreement of the heads of the layer, measured
    effect, and correspondence error and PCK where --places tells the truth. pandas and DuckDB read the table.

    A trace that cannot be read is left out and named at the end; the exit code is then 1.
    """
    from attrace.analysis.studies.atlas import AtlasSettings, atlas as make
    from attrace.analysis.studies.engine import engine

    target = Destination(output)
    if target.suffix not in SUFFIXES:
        raise click.BadParameter(f"expected a name that ends in {', '.join(SUFFIXES)}, found {output}", param_hint="-o")
    if target.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise Usage("a .parquet file needs pyarrow: pip install 'attrace[parquet]', or write a .csv")
    target.check(overwrite=overwrite)
    settings = AtlasSettings(groups, layers, context, branch, effects, places)
    with chunk_progress("traces") as progress, engine(scheduler) as pool:
        made = make(sources, settings=settings, executor=pool, progress=progress)
    target.write(lambda path: _write(made, path))
    traces = made.table["trace"].nunique()
    if as_json:
        print_json({"output": output, "traces": traces, "rows": len(made.table), "broken": dict(made.broken)})
    else:
        say(f"{len(made.table)} rows of {traces} traces in {output}")
    if made.broken:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in made.broken.items())
        raise Failure(f"{len(made.broken)} traces are left out:\n{listed}")


def _write(made: Atlas, path: Path) -> None:
    if path.suffix == ".parquet":
        made.table.to_parquet(path, index=False)
    else:
        texts = made.table.astype(dict.fromkeys(("trace", "layer", "direction"), str))
        texts.map(csv_cell).to_csv(path, index=False)
