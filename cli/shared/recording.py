"""What the commands that run a pipeline share: options of a run, and how a recorder behaves in a command."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attrace.cli.shared.errors import recorder_needed
from attrace.cli.shared.inputs import inputs_by_name
from attrace.cli.shared.options import CONTEXTS, Command, byte_size, kept_steps, layers_option, size
from attrace.cli.shared.output import say

if TYPE_CHECKING:
    from attrace.recorder.jobs.joblist import Job

PICTURES: Final = ("reference", "mask", "scene")
"""Options that name a picture to keep."""

_INPUTS: Final = (
    click.option(
        "--pipeline", "source", required=True, metavar="PATH_OR_ID", help="Folder of a pipeline, or its hub id."
    ),
    click.option("--class", "class_name", metavar="NAME", help="A diffusers class, or package.module:Class."),
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option("--local-files-only", is_flag=True, help="Download nothing."),
    click.option("--ip-adapter", metavar="PATH_OR_ID", help="Folder of an IP-Adapter's weights, or its hub id."),
    click.option(
        "--ip-adapter-weights", metavar="FILE", help="The file in it, such as models/ip-adapter_sd15.safetensors."
    ),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME=VALUE",
        help="Argument: JSON, text, or @picture file; several of one name make a list.",
    ),
    click.option(
        "--jobs",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Record a list of runs.",
    ),
    click.option("--steps", type=click.IntRange(min=1), help="num_inference_steps of the pipeline."),
    click.option("--seed", type=int, help="Seed of the noise, kept in the trace."),
    click.option("--device", default="cpu", show_default=True, help="Device of torch: cpu, cuda, cuda:1."),
    click.option(
        "--dtype",
        type=click.Choice(("float32", "float16", "bfloat16")),
        default="float32",
        show_default=True,
        help="The model computes in it.",
    ),
    click.option("--reference", metavar="NAME_OR_FILE", help="Reference picture to keep: an input, or a file."),
    click.option("--mask", metavar="NAME_OR_FILE", help="Mask to keep."),
    click.option("--scene", metavar="NAME_OR_FILE", help="Input picture to keep."),
)
"""Options of a pipeline and of what goes into it."""

_TARGETS: Final = (
    layers_option,
    click.option(
        "--profile", metavar="NAME_OR_FILE", help="What is known of the model: a profile by name, or a TOML file."
    ),
    click.option("--network", metavar="NAME", help="Record this network of the pipeline, such as controlnet."),
    click.option("--key-grid", type=size, metavar="ROWSxCOLUMNS", help="Grid of the keys, if it is not known."),
)
"""Options of the attention that is looked at."""

_RECORDING: Final = (
    click.option(
        "--steps-kept",
        type=kept_steps,
        metavar="FIRST:LAST:EVERY",
        help="Calls of the denoiser to record, both ends included, or numbers such as 0,10,20; all by default.",
    ),
    click.option(
        "--context",
        type=click.Choice(CONTEXTS),
        multiple=True,
        help="What the keys are, if the pipeline is not known; of joint attention which to record, may be repeated.",
    ),
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
    click.option("--values", is_flag=True, help="Record values and output weights too, for maps of contributions."),
    click.option("--allow-gaps", is_flag=True, help="Accept layers that some steps skip."),
    click.option("--no-prompts", is_flag=True, help="Keep no prompt and no token text."),
)
"""Options of a recording alone."""


def run_options(command: Command) -> Command:
    """Options of a run that is recorded: pass them on to `Run.of`."""
    for option in reversed((*_INPUTS, *_TARGETS, *_RECORDING)):
        command = option(command)
    return command


def pipeline_options(command: Command) -> Command:
    """Options of a run that is not recorded: pass them on to `Run.of`."""
    for option in reversed((*_INPUTS, *_TARGETS)):
        command = option(command)
    return command


@dataclass(frozen=True)
class Run:
    """What the options of a run say."""

    loading: dict[str, Any]
    """Arguments of `load_pipeline`."""
    members: dict[str, Any]
    """What a line of a list may hold: `inputs`, `seed`, `steps`, and pictures to keep."""
    recording: dict[str, Any]
    """Arguments of `record`."""

    @classmethod
    def of(
        cls,
        *,
        source: str,
        class_name: str | None,
        revision: str | None,
        device: str,
        dtype: str,
        local_files_only: bool,
        ip_adapter: str | None,
        ip_adapter_weights: str | None,
        inputs: tuple[str, ...],
        seed: int | None,
        steps: int | None,
        layers: tuple[str, ...],
        context: tuple[str, ...] = (),
        steps_kept: Any = None,
        no_prompts: bool = False,
        **others: Any,
    ) -> Run:
        """Sort the options by what takes them."""
        if (ip_adapter is None) != (ip_adapter_weights is None):
            raise click.UsageError("--ip-adapter and --ip-adapter-weights go together: the folder, and the file in it")
        loading = {
            "source": source,
            "class_name": class_name,
            "revision": revision,
            "device": device,
            "dtype": dtype,
            "local_files_only": local_files_only,
            "ip_adapter": None if ip_adapter is None else (ip_adapter, ip_adapter_weights),
        }
        members: dict[str, Any] = {"inputs": inputs_by_name(inputs), "seed": seed, "steps": steps}
        for name in PICTURES:
            given = others.pop(name)
            is_file = given is not None and Path(given.removeprefix("@")).is_file()
            members[name] = str(Path(given.removeprefix("@")).absolute()) if is_file else given
        chosen = {"layers": layers or None, "context": context or None, "steps": steps_kept, "prompts": not no_prompts}
        return cls(loading, members, others | chosen | {"model_id": source, "revision": revision})

    def job(self, output: Path, save_image: Path | None = None) -> Job:
        """The one run that the options describe."""
        from attrace.recorder.jobs.joblist import job_of

        files = {"output": str(output), "save_image": None if save_image is None else str(save_image)}
        return job_of(self.members | files, "the options", Path(), pictures=Path())

    def jobs(self, path: Path, folder: Path) -> tuple[Job, ...]:
        """The runs of a list; what its lines lack is as the options say."""
        from attrace.recorder.jobs.joblist import read_jobs

        return read_jobs(path, folder, {name: value for name, value in self.members.items() if value is not None})


@contextmanager
def recorder_at_work(command: str, level: int = logging.WARNING) -> Iterator[None]:
    """Say what to install where that is missing, show what the recorder tells, and end on a signal as on Ctrl-C."""
    with recorder_needed(command), _messages_on_stderr(level), _stopped_like_ctrl_c():
        yield


@contextmanager
def _messages_on_stderr(level: int) -> Iterator[None]:
    """Show what the recorder logs from a level on, and what it warns of, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("attrace")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)


@contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """End on SIGTERM, which a batch system sends before it kills, and on SIGHUP as on Ctrl-C; not under nohup."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    before = {one: signal.getsignal(one) for one in signals}
    for one, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(one, signal.default_int_handler)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
