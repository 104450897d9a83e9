"""`attrace record`: run a diffusers pipeline and record its attention."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from attrace.cli.shared.jobs import Engine, done_text, record_list
from attrace.cli.shared.options import (
    LocalPath,
    citation_option,
    examples,
    json_option,
    licence_option,
    overwrite_option,
    text_or_file,
)
from attrace.cli.shared.output import check_output, print_json, say, show
from attrace.cli.shared.recording import Run, recorder_at_work, run_options
from attrace.cli.shared.sending import Sending


def shard(text: str) -> tuple[int, int]:
    """One of equal parts of a list, such as `3/8`: its number from 1, and how many there are."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise click.BadParameter(f"expected K/N with K from 1 to N, such as 3/8, found {text!r}")
    return number, count


@click.command(
    epilog=examples(
        'attrace record --pipeline ./pipeline --input prompt="a red car" --steps 20 -o run.zarr',
        """attrace record --pipeline owner/name --steps 50 --seed 0 --device cuda --dtype float16
--input image=@scene.png --input mask_image=@mask.png --input example_image=@shoe.png
--scene image --mask mask_image --reference example_image -o run.zarr --save-image run.png""",
        """attrace record --pipeline ./pipeline --input prompt="a red car" --steps 20
--layers "up_blocks.*attn2" --steps-kept 0:9 --limit-bytes 2GB -o run.zarr""",
        "attrace record --pipeline ./pipeline --jobs jobs.jsonl --steps 20 -o runs",
        "attrace record --pipeline ./pipeline --jobs jobs.jsonl --steps 20 --workers 2 -o runs",
    )
)
@click.option(
    "-o",
    "--output",
    type=LocalPath("record to a folder, and send the trace from there by --push {}"),
    required=True,
    metavar="PATH",
    help="The trace to write; with --jobs, the folder for traces.",
)
@click.option("--save-image", type=LocalPath(), metavar="FILE", help="Write the generated picture too.")
@click.option(
    "--push", "address", metavar="URL", help="Send the trace there too, once it is complete; with --jobs, each into it."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Share the jobs between N processes; on CUDA each has a GPU.",
)
@click.option(
    "--scheduler", metavar="ADDRESS", help="Share the jobs between the workers of a Dask cluster (tcp://host:8786)."
)
@click.option("--shard", type=shard, metavar="K/N", help="Do the Kth of N parts of the jobs, from 1.")
@run_options
@licence_option
@citation_option
@overwrite_option
@json_option
def record(
    output: Path,
    jobs: Path | None,
    save_image: Path | None,
    address: str | None,
    workers: int | None,
    scheduler: str | None,
    shard: tuple[int, int] | None,
    overwrite: bool,
    as_json: bool,
    citation: str | None,
    **options: Any,
) -> None:
    """Run a diffusers pipeline and record its attention.

    The pipeline runs as it would without recording: its picture is the same, bit for bit. Prints the path of the
    trace. A run that is stopped leaves a readable trace of its finished steps. The size is estimated in the first step
    that is kept, and told before anything is written.

    --jobs records a list of runs with one loaded pipeline: one JSON object a line, with id or output, inputs, seed,
    steps, reference, mask, scene, save_image; what a line lacks is taken from the options. Complete traces are
    skipped, so the same command goes on after an interruption. --workers and --scheduler give each worker process of
    this machine or of a Dask cluster a pipeline and the next job; --shard is for arrays of a batch system.

    --push sends what is complete to an object store or another address, as attrace push does, so that the model never
    waits for the network; the traces stay here too.
    """
    run = Run.of(citation=text_or_file(citation), **options)
    sending = None if address is None else Sending(address, is_folder=jobs is not None)
    if sending is not None:
        sending.check()
    if jobs is None:
        if workers or scheduler or shard:
            raise click.UsageError("--workers, --scheduler and --shard share out the runs of a list: pass --jobs too")
        _record_one(run, output, save_image, sending, overwrite=overwrite, as_json=as_json)
        return
    if workers and scheduler:
        raise click.UsageError("give either --workers or --scheduler, not both")
    if overwrite or save_image is not None:
        raise click.UsageError(
            "--jobs takes no --overwrite (remove the traces to record anew) and no --save-image (each line has its own)"
        )
    if output.is_file():
        raise click.BadParameter(f"expected a folder for traces, {output} is a file", param_hint="--output")
    number, count = shard or (1, 1)
    listed = run.jobs(jobs, output)[number - 1 :: count]
    with recorder_at_work("record"):
        record_list(Engine(workers, scheduler), run.loading, listed, run.recording, sending, as_json=as_json)


def _record_one(
    run: Run, output: Path, save_image: Path | None, sending: Sending | None, *, overwrite: bool, as_json: bool
) -> None:
    for path in filter(None, (output, save_image)):
        check_output(path, overwrite=overwrite)
    job = run.job(output, save_image)
    with recorder_at_work("record", logging.INFO):
        from attrace.recorder import RecordingWarning
        from attrace.recorder.jobs.jobs import record_run
        from attrace.recorder.jobs.pipelines import load_pipeline

        warnings.simplefilter("ignore", RecordingWarning)  # raised below, once the picture is saved
        pipeline = load_pipeline(**run.loading)
        recording, picture = record_run(pipeline, job, output, overwrite=overwrite, **run.recording)
    if save_image is not None and picture is not None:
        picture.save(save_image)
    if recording.problem is not None:
        raise recording.problem
    if sending is not None:
        _send(output, sending)
    if as_json:
        print_json({"trace": str(output), **asdict(recording.statistics)})
        return
    say(done_text(recording.statistics))
    show(output)


def _send(trace: Path, sending: Sending) -> None:
    try:
        sending.send(trace)
    except Exception as error:
        error.add_note(f"{trace} is complete: attrace push {trace} {sending.url} sends it again")
        raise
