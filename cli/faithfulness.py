"""`attrace faithfulness`: whether the model uses the patches of the reference that its attention points at."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.errors import Failure, recorder_needed
from attrace.cli.inputs import read_inputs
from attrace.cli.jobs import STORED_AS, messages_on_stderr, read_list
from attrace.cli.options import density_option, examples, json_option
from attrace.cli.output import chunk_progress, print_json, print_table, say
from attrace.cli.record import ip_adapter_files, record
from attrace.cli.recording import recording_arguments, recording_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attrace.analysis.faithfulness import Faithfulness, Order
    from attrace.recorder.joblist import Job

OF_THE_RUN = (
    *(
        "pipeline",
        "class",
        "revision",
        "local-files-only",
        "ip-adapter",
        "ip-adapter-weights",
        "input",
        "jobs",
        "steps",
    ),
    *("seed", "device", "dtype", "reference", "mask", "scene"),
)
"""Options of `attrace record` that load the model and say what goes into it."""


def like_record(*names: str) -> Callable[[click.Command], click.Command]:
    """Give a command options of `attrace record`, before its own."""

    def add(command: click.Command) -> click.Command:
        options = {one.opts[0].removeprefix("--"): one for one in record.params}
        command.params = [*(options[name] for name in names), *command.params]
        return command

    return add


def rising_shares(text: str) -> tuple[float, ...]:
    """Shares of the patches, such as `0.1,0.25,0.5`."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or sorted(set(shares)) != list(shares) or not 0 < shares[0] <= shares[-1] < 1:
        raise click.BadParameter(f"expected rising shares between 0 and 1 such as 0.1,0.25,0.5, found {text!r}")
    return shares


@like_record(*OF_THE_RUN)
@click.command(
    epilog=examples(
        """attrace faithfulness --pipeline ./pipeline --class attrace.demo.pipeline:ReferenceInpaintPipeline
--jobs jobs.jsonl --steps 20 --reference reference_image --mask mask_image -o faithful"""
    )
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for traces, figures and numbers."
)
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
@density_option
@recording_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a line for each input, order and share.")
def faithfulness(
    source: str,
    class_name: str | None,
    revision: str | None,
    local_files_only: bool,
    inputs: tuple[str, ...],
    jobs: Path | None,
    steps: int | None,
    seed: int | None,
    device: str,
    dtype: str,
    reference: str | None,
    mask: str | None,
    scene: str | None,
    ip_adapter: str | None,
    ip_adapter_weights: str | None,
    output: Path,
    fill: Any,
    shares: tuple[float, ...],
    draws: int,
    order_seed: int,
    whole: bool,
    density: bool | None,
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
    list of inputs as `attrace record` does. Traces that are complete are not recorded again.
    """
    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv, not both")
    members = {"steps": steps, "seed": seed, "reference": reference, "mask": mask, "scene": scene}
    with recorder_needed("faithfulness"), messages_on_stderr(logging.WARNING):
        listed = _jobs(jobs, output, inputs, members)
        _check(listed)
        from attrace.recorder.pipelines import load_pipeline

        pipeline = load_pipeline(
            source,
            class_name=class_name,
            revision=revision,
            dtype=dtype,
            device=device,
            local_files_only=local_files_only,
            ip_adapter=ip_adapter_files(ip_adapter, ip_adapter_weights),
        )
        _record(pipeline, listed, recording_arguments(**options) | {"model_id": source, "revision": revision})
        test = _Test((0.0, *shares, 1.0), draws, order_seed, fill, whole, bool(density))
        with chunk_progress("pictures") as progress:
            curves = test.run(pipeline, listed, progress)
    from attrace.analysis.faithfulness import summarise

    found = summarise(test.fractions, curves, seed=order_seed)
    told = _as_json(found, listed, fill, draws)
    _save(found, told, output, order_seed)
    if as_json:
        print_json(told)
    elif as_csv:
        _write_csv(found, listed, sys.stdout)
    else:
        _print(found)


def _jobs(path: Path | None, output: Path, inputs: tuple[str, ...], members: dict[str, Any]) -> tuple[Job, ...]:
    """The inputs to test: those of a list, or the one of the options."""
    if path is not None:
        return read_list(path, output, inputs, members)
    from attrace.recorder.joblist import Job

    values = read_inputs(inputs)
    pictures: dict[str, Path | str] = {
        stored: members[name] if members[name] in values else Path(members[name].removeprefix("@"))
        for name, stored in STORED_AS.items()
        if members[name] is not None
    }
    one = Job("the options", output / "run.zarr", values, members["seed"], members["steps"], pictures)
    return (one,)


def _check(jobs: Sequence[Job]) -> None:
    """Refuse what cannot be tested before a model is loaded."""
    for job in jobs:
        if job.seed is None:
            raise click.UsageError(f"{job.where}: pass --seed, as every picture is to come from the same noise")
        if not isinstance(job.pictures.get("reference"), str):
            raise click.UsageError(f"{job.where}: pass --reference with the name of an input: it is what is changed")


def _record(pipeline: Any, jobs: tuple[Job, ...], options: dict[str, Any]) -> None:
    from attrace.recorder.jobs import record_jobs

    failed = [one for one in record_jobs(pipeline, jobs, **options) if one.state == "failed"]
    if failed:
        listed = "\n".join(f"  {one.job.where}: {one.problem}" for one in failed)
        raise Failure(f"{len(failed)} inputs could not be recorded:\n{listed}")


class _Test:
    """Runs the model with hidden patches."""

    def __init__(
        self, fractions: tuple[float, ...], draws: int, seed: int, fill: Any, whole: bool, density: bool
    ) -> None:
        self.fractions = fractions
        self._draws, self._seed, self._fill, self._whole, self._density = draws, seed, fill, whole, density

    def run(
        self, pipeline: Any, jobs: Sequence[Job], progress: Callable[[int, int], None] | None
    ) -> dict[Order, NDArray[np.float64]]:
        """Change of the picture by order: (input, fraction), the mean over its draws."""
        import numpy as np

        curves: dict[Order, list[Any]] = {"top": [], "random": [], "bottom": []}
        for number, job in enumerate(jobs):
            for order, values in self._of_input(pipeline, job).items():
                curves[order].append(values)
            if progress is not None:
                progress(number + 1, len(jobs))
        return {order: np.array(values) for order, values in curves.items()}

    def _of_input(self, pipeline: Any, job: Job) -> dict[Order, NDArray[np.float64]]:
        import numpy as np

        from attrace.analysis import open_trace, ulam
        from attrace.analysis.faithfulness import first_of, patch_orders, picture_change
        from attrace.analysis.trace_scores import stored_mask
        from attrace.recorder.faithfulness import regenerate

        trace = open_trace(job.output)
        heat = ulam(trace, direction="g2r", density=self._density).compute()
        grid = (heat.sizes["row"], heat.sizes["column"])
        orders = patch_orders(heat, draws=self._draws, seed=self._seed)
        every = [one for several in orders.values() for one in several]
        hidden = [np.zeros(grid, bool), np.ones(grid, bool)]
        hidden += [first_of(one, fraction, grid) for one in every for fraction in self.fractions[1:-1]]
        inputs, _ = job.load()
        assert job.seed is not None  # `_check`
        pictures = regenerate(
            pipeline, inputs, str(job.pictures["reference"]), hidden, seed=job.seed, steps=job.steps, fill=self._fill
        )
        before = trace.images["generated"].values
        mask = None if self._whole or "mask" not in trace.images else stored_mask(trace)
        if not np.array_equal(next(pictures), before):
            raise Failure(
                f"{job.where}: the model gives another picture than in {job.output} from the same noise and inputs, so "
                "that nothing can be learned from a change: remove that trace if another model or other inputs made "
                "it, else run on a device and with settings that repeat"
            )
        all_hidden, *changes = [picture_change(picture, before, mask) for picture in pictures]
        inner = np.array(changes).reshape(len(every), -1)
        whole = np.column_stack([np.zeros(len(every)), inner, np.full(len(every), all_hidden)])
        split = np.split(whole, np.cumsum([len(several) for several in orders.values()])[:-1])
        return {order: curves.mean(axis=0) for order, curves in zip(orders, split, strict=True)}


def _as_json(found: Faithfulness, jobs: Sequence[Job], fill: str, draws: int) -> dict[str, Any]:
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


def _write_csv(found: Faithfulness, jobs: Sequence[Job], file: Any) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("input", "order", "hidden", "change"))
    writer.writerows(_rows(found, jobs))


def _print(found: Faithfulness) -> None:
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
