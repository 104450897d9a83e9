"""`attrace detect`: find objects by attention, against true boxes."""

from __future__ import annotations

from pathlib import Path

import click

from attrace.cli.shared.errors import Failure
from attrace.cli.shared.options import (
    CONTEXTS,
    density_option,
    examples,
    json_option,
    layers_option,
    size_option,
    weights_option,
)
from attrace.cli.shared.output import chunk_progress, print_csv, print_json, print_table, say


@click.command(
    epilog=examples(
        'attrace detect "run*.zarr" --boxes boxes.csv',
        'attrace detect "run*.zarr" --boxes coco.json --size 64x64 --csv',
    )
)
@click.argument("sources", metavar="SOURCES...", nargs=-1, required=True)
@click.option(
    "--boxes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    metavar="FILE",
    help="True boxes by trace: a CSV of name,top,left,bottom,right, or a .json in the layout of COCO.",
)
@size_option
@density_option
@weights_option
@layers_option
@click.option("--context", type=click.Choice(CONTEXTS), help="What the keys are.")
@click.option("--branch", metavar="NAME", help="Branch of classifier-free guidance.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random boxes and the bootstrap.")
@click.option("--scheduler", metavar="ADDRESS", help="Address of a Dask cluster, such as tcp://host:8786.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a line for each trace.")
def detect(
    sources: tuple[str, ...],
    boxes: Path,
    size: tuple[int, int] | None,
    density: bool | None,
    weights: str | None,
    layers: tuple[str, ...],
    context: str | None,
    branch: str | None,
    seed: int,
    scheduler: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Find objects by attention, against true boxes.

    SOURCES are traces, folders of them, globs or addresses. For each, the box around the largest region of high
    attention in the unified R2G map (as in I2AM's detection study), and its overlap (IoU) with the true box in the
    generated picture; beside it the IoU of the whole picture, and the mean of random boxes of the true one's size.
    Prints the means over traces, with bootstrap intervals.

    A box belongs to the trace of its name: `003` in the CSV, or an image `003.png` of COCO, to `003.zarr`. A trace
    without a box, or that cannot be read, is left out and named at the end; the exit code is then 1.
    """
    from attrace.analysis.studies.detect import Detection, detect as find, read_boxes
    from attrace.analysis.studies.engine import engine
    from attrace.analysis.studies.trace_statistics import Settings

    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv, not both")
    settings = Settings(
        size, density=density is not False, layers=layers, context=context, branch=branch, weights=weights
    )
    true = read_boxes(boxes)
    with chunk_progress("traces") as progress, engine(scheduler) as pool:
        made = find(sources, true, settings=settings, executor=pool, seed=seed, progress=progress)
    if as_json:
        means = {method: dict(zip(("iou", "low", "high"), one, strict=True)) for method, one in made.means.items()}
        print_json({"map": settings.map_name, "means": means, "traces": [one._asdict() for one in made.traces]})
    elif as_csv:
        print_csv(
            Detection._fields,
            [[_text(value) for value in one] for one in made.traces],
        )
    else:
        say(f"{len(made.traces)} traces; boxes are of the unified R2G maps, {settings.map_name}")
        rows = [[method, *(f"{value:.3f}" for value in one)] for method, one in made.means.items()]
        print_table([["box", "IoU", "low", "high"], *rows], right=(1, 2, 3))
    if made.broken:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in made.broken.items())
        raise Failure(f"{len(made.broken)} traces are left out:\n{listed}")


def _text(value: object) -> object:
    """A box as text."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
