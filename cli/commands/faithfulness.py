"""`attrace faithfulness`: whether the model uses the patches of the reference that its attention points at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.commands.record import ip_adapter_files, record
from attrace.cli.shared.curves import faithfulness_as_json, print_curves, print_faithfulness, save_faithfulness
from attrace.cli.shared.errors import Failure, recorder_needed
from attrace.cli.shared.inputs import read_inputs
from attrace.cli.shared.jobs import STORED_AS, messages_on_stderr, read_list
from attrace.cli.shared.options import LocalPath, density_option, examples, json_option
from attrace.cli.shared.output import chunk_progress, print_json
from attrace.cli.shared.recording import recording_arguments, recording_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attrace.analysis import Trace
    from attrace.analysis.scores.faithfulness import Order
    from attrace.recorder.jobs.faithfulness import Fill
    from attrace.recorder.jobs.joblist import Job

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
    list of inputs as `attrace record` does. Traces that are complete are not recorded again, and the same command goes
    on after an interruption: what a run with hidden patches gave is kept beside the trace.
    """
    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv, not both")
    members = {"steps": steps, "seed": seed, "reference": reference, "mask": mask, "scene": scene}
    with recorder_needed("faithfulness"), messages_on_stderr(logging.WARNING):
        listed = _jobs(jobs, output, inputs, members)
        _check(listed)
        from attrace.analysis.scores.faithfulness import by_order, summarise
        from attrace.recorder.jobs.pipelines import load_pipeline

        load = cache(
            partial(
                load_pipeline,
                source,
                class_name=class_name,
                revision=revision,
                dtype=dtype,
                device=device,
                local_files_only=local_files_only,
                ip_adapter=ip_adapter_files(ip_adapter, ip_adapter_weights),
            )
        )
        _record(load, listed, recording_arguments(**options) | {"model_id": source, "revision": revision})
        layers = list(options["layers"]) or None
        test = _Test((0.0, *shares, 1.0), draws, order_seed, fill, whole, bool(density), layers)
        curves = []
        with chunk_progress("pictures") as progress:
            for number, job in enumerate(listed, 1):
                curves.append(test.curves(load, job))
                if progress is not None:
                    progress(number, len(listed))
    found = summarise(test.fractions, by_order(curves), seed=order_seed)
    told = faithfulness_as_json(found, listed, fill, draws)
    save_faithfulness(found, told, output, order_seed)
    if as_json:
        print_json(told)
    elif as_csv:
        print_curves(found, listed)
    else:
        print_faithfulness(found)


def _jobs(path: Path | None, output: Path, inputs: tuple[str, ...], members: dict[str, Any]) -> tuple[Job, ...]:
    """The inputs to test: those of a list, or the one of the options."""
    if path is not None:
        return read_list(path, output, inputs, members)
    from attrace.recorder.jobs.joblist import Job

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


def _record(load: Callable[[], Any], jobs: tuple[Job, ...], options: dict[str, Any]) -> None:
    from attrace.recorder.jobs.jobs import record_jobs

    if all(job.is_complete for job in jobs):
        return
    failed = [one for one in record_jobs(load(), jobs, **options) if one.state == "failed"]
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
    density: bool
    layers: list[str] | None
    """Of the model, that are recorded and rank the patches; None for all."""

    def curves(self, load: Callable[[], Any], job: Job) -> dict[Order, NDArray[np.float64]]:
        """Change of an input's picture by order: (fraction)."""
        from attrace.analysis import open_trace
        from attrace.analysis.scores.faithfulness import deletion_plan, picture_change
        from attrace.analysis.scores.trace_scores import stored_mask
        from attrace.recorder.jobs.hidden_runs import Recorded, hidden_changes

        trace = open_trace(job.output)
        self._require_layers(trace, job)
        plan = deletion_plan(trace, self.fractions, draws=self.draws, seed=self.seed, density=self.density)
        recorded = Recorded(trace.manifest.id, trace.images["generated"].values)
        mask = None if self.whole or "mask" not in trace.images else stored_mask(trace)
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
