"""Options of `attrace record` that say what of a run is recorded."""

from __future__ import annotations

from typing import Any

import click

from attrace.cli.shared.options import CONTEXTS, Command, byte_size, kept_steps, size

_OPTIONS = (
    click.option("--layers", multiple=True, metavar="GLOB", help="Layers by module path; may be repeated."),
    click.option(
        "--steps-kept",
        type=kept_steps,
        metavar="FIRST:LAST:EVERY",
        help="Calls of the denoiser to record, both ends included, or numbers such as 0,10,20; all by default.",
    ),
    click.option(
        "--profile", metavar="NAME_OR_FILE", help="What is known of the model: a profile by name, or a TOML file."
    ),
    click.option("--network", metavar="NAME", help="Record this network of the pipeline, such as controlnet."),
    click.option(
        "--context",
        type=click.Choice(CONTEXTS),
        multiple=True,
        help="What the keys are, if the pipeline is not known; of joint attention which to record, may be repeated.",
    ),
    click.option("--key-grid", type=size, metavar="ROWSxCOLUMNS", help="Grid of the keys, if it is not known."),
    click.option(
        "--encoding",
        type=click.Choice(("auto", "scores", "factors")),
        default="auto",
        show_default=True,
        help="Store scores, or their factors.",
    ),
    click.option(
        "--capture",
        type=click.Choice(("auto", "hooks", "attention")),
        default="auto",
        show_default=True,
        help="How attention is seen.",
    ),
    click.option("--branch", default="conditional", show_default=True, help="Branch of guidance to keep, or both."),
    click.option(
        "--limit-bytes",
        "--limit",
        type=byte_size,
        metavar="BYTES",
        help="Largest size before compression, such as 2GB; a recording that would take more writes nothing.",
    ),
    click.option("--self-attention", is_flag=True, help="Record self-attention too."),
    click.option("--allow-gaps", is_flag=True, help="Accept layers that some steps skip."),
    click.option("--no-prompts", is_flag=True, help="Keep no prompt and no token text."),
)


def recording_options(command: Command) -> Command:
    """Options that say what is recorded: pass them on with `recording_arguments`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def recording_arguments(
    *, layers: tuple[str, ...], context: tuple[str, ...], steps_kept: Any, no_prompts: bool, **others: Any
) -> dict[str, Any]:
    """Arguments of `attrace.recorder.record`."""
    chosen = {"layers": layers or None, "context": context or None, "steps": steps_kept, "prompts": not no_prompts}
    return chosen | others
