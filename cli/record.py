"""`attrace record`: run a diffusers pipeline and record its attention."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attrace.cli.errors import recorder_needed
from attrace.cli.inputs import read_inputs, stored_picture
from attrace.cli.options import (
    CONTEXTS,
    byte_size,
    citation_option,
    examples,
    licence_option,
    overwrite_option,
    size,
    text_or_file,
)
from attrace.cli.output import bytes_text, check_output, say

if TYPE_CHECKING:
    from attrace.recorder import Recording


@click.command(
    epilog=examples(
        'attrace record --pipeline ./pipeline --input prompt="a red car" --steps 20 -o run.zarr',
        """attrace record --pipeline owner/name --steps 50 --seed 0 --device cuda --dtype float16
--input image=@scene.png --input mask_image=@mask.png --input example_image=@shoe.png
--scene image --mask mask_image --reference example_image -o run.zarr --save-image run.png""",
    )
)
@click.option("--pipeline", "source", required=True, metavar="PATH_OR_ID", help="Folder of a pipeline, or its hub id.")
@click.option("--class", "class_name", metavar="NAME", help="A diffusers class, or package.module:Class.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--local-files-only", is_flag=True, help="Download nothing.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=VALUE", help="Argument: JSON, text, or @picture file.")
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
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The trace to write.")
@click.option("--reference", metavar="NAME_OR_FILE", help="Reference picture to keep: an input, or a file.")
@click.option("--mask", metavar="NAME_OR_FILE", help="Mask to keep.")
@click.option("--scene", metavar="NAME_OR_FILE", help="Input picture to keep.")
@click.option("--save-image", type=click.Path(path_type=Path), metavar="FILE", help="Write the generated picture too.")
@click.option("--layers", multiple=True, metavar="GLOB", help="Layers by module path; may be repeated.")
@click.option("--context", type=click.Choice(CONTEXTS), help="What the keys are, if the pipeline is not known.")
@click.option("--key-grid", type=size, metavar="ROWSxCOLUMNS", help="Grid of the keys, if the pipeline is not known.")
@click.option(
    "--encoding",
    type=click.Choice(("auto", "scores", "factors")),
    default="auto",
    show_default=True,
    help="Store scores, or their factors.",
)
@click.option(
    "--capture",
    type=click.Choice(("auto", "hooks", "attention")),
    default="auto",
    show_default=True,
    help="How attention is seen.",
)
@click.option("--branch", default="conditional", show_default=True, help="Branch of guidance to keep, or both.")
@click.option("--limit", type=byte_size, metavar="BYTES", help="Largest size before compression, such as 2GB.")
@click.option("--self-attention", is_flag=True, help="Record self-attention too.")
@click.option("--allow-gaps", is_flag=True, help="Accept layers that some steps skip.")
@click.option("--no-prompts", is_flag=True, help="Keep no prompt and no token text.")
@licence_option
@citation_option
@overwrite_option
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
    output: Path,
    reference: str | None,
    mask: str | None,
    scene: str | None,
    save_image: Path | None,
    layers: tuple[str, ...],
    limit: int | None,
    no_prompts: bool,
    citation: str | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Run a diffusers pipeline and record its attention.

    The pipeline runs as it would without recording: its picture is the same, bit for bit. Prints the path of the
    trace. A run that is stopped leaves a readable trace of its finished steps.
    """
    check_output(output, overwrite=overwrite)
    if save_image is not None:
        check_output(save_image, overwrite=overwrite)
    values = read_inputs(inputs)
    pictures = {
        "reference": stored_picture(reference, values, "--reference"),
        "mask": stored_picture(mask, values, "--mask"),
        "input": stored_picture(scene, values, "--scene"),
    }
    with recorder_needed("record"), _messages_on_stderr():
        from attrace.recorder import RecordingWarning
        from attrace.recorder import record as start_recording
        from attrace.recorder.pipelines import call_arguments, first_picture, load_pipeline

        warnings.simplefilter("ignore", RecordingWarning)  # raised below, once the picture is saved
        pipeline = load_pipeline(
            source,
            class_name=class_name,
            revision=revision,
            dtype=dtype,
            device=device,
            local_files_only=local_files_only,
        )
        arguments = call_arguments(pipeline, values, steps=steps, seed=seed)
        with start_recording(
            pipeline,
            output,
            **pictures,
            seed=seed,
            layers=layers or None,
            model_id=source,
            revision=revision,
            limit_bytes=limit,
            prompts=not no_prompts,
            citation=text_or_file(citation),
            overwrite=overwrite,
            **options,
        ) as recording:
            picture = first_picture(pipeline, arguments)
            if picture is not None:
                recording.images["generated"] = picture
    if save_image is not None and picture is not None:
        picture.save(save_image)
    if recording.problem is not None:
        raise recording.problem
    _tell(recording)
    click.echo(str(output))


def _tell(recording: Recording) -> None:
    statistics = recording.statistics
    say(
        f"{statistics.steps} steps of {statistics.sites} layers, {bytes_text(statistics.bytes_written)} before "
        f"compression; the model waited {statistics.waited_seconds:.2f} s for the disk"
    )


@contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Show what the recorder logs and warns of, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("attrace")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
