"""`attrace record`: run a diffusers pipeline and record its attention."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from attrace.cli.shared.errors import recorder_needed
from attrace.cli.shared.inputs import read_inputs, stored_picture
from attrace.cli.shared.jobs import STORED_AS, done_text, messages_on_stderr, read_list, record_list
from attrace.cli.shared.options import (
    LocalPath,
    citation_option,
    examples,
    json_option,
    licence_option,
    overwrite_option,
    text_or_file,
)
from attrace.cli.shared.output import check_output, print_json, say
from attrace.cli.shared.recording import recording_arguments, recording_options
from attrace.cli.shared.sending import Sending


@click.command(
    epilog=examples(
        'attrace record --pipeline ./pipeline --input prompt="a red car" --steps 20 -o run.zarr',
        """attrace record --pipeline owner/name --steps 50 --seed 0 --device cuda --dtype float16
--input image=@scene.png --input mask_image=@mask.png --input example_image=@shoe.png
--scene image --mask mask_image --reference example_image -o run.zarr --save-image run.png""",
        """attrace record --pipeline ./pipeline --input prompt="a red car" --steps 20
--layers "up_blocks.*attn2" --steps-kept 0:9 --limit-bytes 2GB -o run.zarr""",
        "attrace record --pipeline ./pipeline --jobs jobs.jsonl --steps 20 -o runs",
    )
)
@click.option("--pipeline", "source", required=True, metavar="PATH_OR_ID", help="Folder of a pipeline, or its hub id.")
@click.option("--class", "class_name", metavar="NAME", help="A diffusers class, or package.module:Class.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--local-files-only", is_flag=True, help="Download nothing.")
@click.option("--ip-adapter", metavar="PATH_OR_ID", help="Folder of an IP-Adapter's weights, or its hub id.")
@click.option(
    "--ip-adapter-weights", metavar="FILE", help="The file in it, such as models/ip-adapter_sd15.safetensors."
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Argument: JSON, text, or @picture file; several of one name make a list.",
)
@click.option("--steps", type=click.IntRange(min=1), help="num_inference_steps of the pipeline.")
@click.option("--seed", type=int, help="Seed of the noise, kept in the trace.")
@click.option("--device", default="cpu", show_default=True, help="Device of torch: cpu, cuda, cuda:1.")
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float16", "bfloat16")),
    default="float32",
    show_default=True,
    help="The model computes in it.",
)
@click.option(
    "-o", "--output", required=True, metavar="PATH", help="The trace to write; with --jobs, the folder for traces."
)
@click.option(
    "--jobs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Record a list of runs.",
)
@click.option("--reference", metavar="NAME_OR_FILE", help="Reference picture to keep: an input, or a file.")
@click.option("--mask", metavar="NAME_OR_FILE", help="Mask to keep.")
@click.option("--scene", metavar="NAME_OR_FILE", help="Input picture to keep.")
@click.option("--save-image", type=LocalPath(), metavar="FILE", help="Write the generated picture too.")
@click.option(
    "--push", "address", metavar="URL", help="Send the trace there too, once it is complete; with --jobs, each into it."
)
@recording_options
@licence_option
@citation_option
@overwrite_option
@json_option
def record(
    source: str,
    class_name: str | None,
    revision: str | None,
    local_files_only: bool,
    inputs: tuple[str, ...],
    steps: int | None,
    seed: int | None,
    device: str,
    dtype: str,
    output: str,
    jobs: Path | None,
    reference: str | None,
    mask: str | None,
    scene: str | None,
    save_image: Path | None,
    address: str | None,
    ip_adapter: str | None,
    ip_adapter_weights: str | None,
    citation: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a diffusers pipeline and record its attention.

    The pipeline runs as it would without recording: its picture is the same, bit for bit. Prints the path of the
    trace. A run that is stopped leaves a readable trace of its finished steps. The size is estimated in the first step
    that is kept, and told before anything is written.

    --jobs records a list of runs with one loaded pipeline: one JSON object a line, with id or output, inputs, seed,
    steps, reference, mask, scene, save_image; what a line lacks is taken from the options. Complete traces are
    skipped, so the same command goes on after an interruption, and several processes or machines can share the list.

    --push sends what is complete to an object store or another address, as attrace push does, so that the model never
    waits for the network; the traces stay here too.
    """
    adapter = ip_adapter_files(ip_adapter, ip_adapter_weights)
    options = recording_arguments(**options) | {
        "model_id": source,
        "revision": revision,
        "citation": text_or_file(citation),
    }

    def load() -> Any:
        from attrace.recorder.jobs.pipelines import load_pipeline

        return load_pipeline(
            source,
            class_name=class_name,
            revision=revision,
            dtype=dtype,
            device=device,
            local_files_only=local_files_only,
            ip_adapter=adapter,
        )

    target = _local(output)
    sending = None if address is None else Sending(address, is_folder=jobs is not None)
    if sending is not None:
        sending.check()
    pictures = {"reference": reference, "mask": mask, "scene": scene}
    if jobs is None:
        one = OneRun(inputs, steps, seed, pictures, save_image, sending)
        _record_one(load, one, target, options, overwrite=overwrite, as_json=as_json)
        return
    if overwrite or save_image is not None:
        raise click.UsageError(
            "--jobs takes no --overwrite (remove the traces to record anew) and no --save-image (each line has its own)"
        )
    if target.is_file():
        raise click.BadParameter(f"expected a folder for traces, {target} is a file", param_hint="--output")
    listed = read_list(jobs, target, inputs, {"steps": steps, "seed": seed, **pictures})
    with recorder_needed("record"), messages_on_stderr(logging.WARNING):
        record_list(load, listed, options, sending, as_json=as_json)


def ip_adapter_files(folder: str | None, weights: str | None) -> tuple[str, str] | None:
    """Folder or hub id of an IP-Adapter and the file in it; None where neither is given."""
    if folder is None and weights is None:
        return None
    if folder is None or weights is None:
        raise click.UsageError("--ip-adapter and --ip-adapter-weights go together: the folder, and the file in it")
    return folder, weights


@dataclass(frozen=True)
class OneRun:
    """What the options say of a run."""

    inputs: tuple[str, ...]
    steps: int | None
    seed: int | None
    pictures: Mapping[str, str | None]
    save_image: Path | None
    sending: Sending | None


def _local(output: str) -> Path:
    """The output as a path; an address is refused, as a trace is recorded at the speed of a disk."""
    from attrace.schemas.address import is_address, local_path

    if is_address(output):
        raise click.BadParameter(
            f"expected a path on this machine, found the address {output}: record to a folder, and send the trace from "
            f"there by --push {output}",
            param_hint="--output",
        )
    return local_path(output)


def _record_one(
    load: Callable[[], Any], one: OneRun, output: Path, options: dict[str, Any], *, overwrite: bool, as_json: bool
) -> None:
    check_output(output, overwrite=overwrite)
    if one.save_image is not None:
        check_output(one.save_image, overwrite=overwrite)
    values = read_inputs(one.inputs)
    pictures = {STORED_AS[name]: stored_picture(option, values, f"--{name}") for name, option in one.pictures.items()}
    with recorder_needed("record"), messages_on_stderr(logging.INFO):
        from attrace.recorder import RecordingWarning, record as start_recording
        from attrace.recorder.jobs.pipelines import call_arguments, first_picture

        warnings.simplefilter("ignore", RecordingWarning)  # raised below, once the picture is saved
        pipeline = load()
        arguments = call_arguments(pipeline, values, steps=one.steps, seed=one.seed)
        with start_recording(pipeline, output, **pictures, seed=one.seed, overwrite=overwrite, **options) as recording:
            picture = first_picture(pipeline, arguments)
            if picture is not None:
                recording.images["generated"] = picture
    if one.save_image is not None and picture is not None:
        picture.save(one.save_image)
    if recording.problem is not None:
        raise recording.problem
    if one.sending is not None:
        _send(output, one.sending)
    if as_json:
        print_json({"trace": str(output), **asdict(recording.statistics)})
        return
    say(done_text(recording.statistics))
    click.echo(str(output))


def _send(trace: Path, sending: Sending) -> None:
    try:
        sending.send(trace)
    except Exception as error:
        error.add_note(f"{trace} is complete: attrace push {trace} {sending.url} sends it again")
        raise
