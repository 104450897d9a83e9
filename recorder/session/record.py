"""`record`: the one thing that a user of the recorder calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from attrace.recorder.capture.methods import CaptureName, choose_methods
from attrace.recorder.capture.sites import refuse_hidden, select_candidates, with_values
from attrace.recorder.labels.keys import Grid
from attrace.recorder.labels.profile import Profile
from attrace.recorder.labels.target import find_target
from attrace.recorder.session.options import RunOptions
from attrace.recorder.session.provenance import dtype_and_device, identify, software_versions
from attrace.recorder.session.recording import Output, Recording
from attrace.recorder.session.select import Steps, select_steps
from attrace.recorder.writing.encode import EncodingChoice
from attrace.recorder.writing.images import Images
from attrace.schemas import Context, InputError, terms_of_use
from attrace.schemas.address import is_address, local_path
from attrace.schemas.checks import require_type
from attrace.schemas.codecs import Codec

Choice = TypeVar("Choice", bound=str)

TracePath = str | PathLike[str]


def record(
    model: Any,
    path: TracePath | Sequence[TracePath],
    *,
    reference: Any = None,
    mask: Any = None,
    input: Any = None,  # noqa: A002
    seed: int | None = None,
    context: Context | Sequence[Context] | None = None,
    layers: str | Iterable[str] | None = None,
    steps: Steps = None,
    encoding: EncodingChoice = "auto",
    capture: CaptureName = "auto",
    guidance: Sequence[str] | None = None,
    branch: str | Sequence[str] = "conditional",
    key_grid: Grid | None = None,
    tokens: Sequence[str] | None = None,
    self_attention: bool = False,
    values: bool = False,
    allow_gaps: bool = False,
    profile: Profile | TracePath | None = None,
    network: str | None = None,
    model_id: str | None = None,
    revision: str | None = None,
    prompts: bool = True,
    licence: str | None = None,
    citation: str | None = None,
    codec: Codec = "auto",
    queue_bytes: int = 256 * 2**20,
    limit_bytes: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> Recording:
    """Record the attention of a diffusion model while it runs.

    Queries and keys are copied as the model computes them; the model, its attention kernels and its result stay as
    they are, bit for bit. Every call of the denoiser inside the `with` block is a step of the trace.

    Parameters
    ----------
    model
        A diffusers pipeline, or a denoiser (any torch module whose attention modules have `to_q`, `to_k`, `heads`).
    path
        Folder to write the trace to; for a batch a list of folders, one for each sample.
    reference, mask, input
        Pictures to keep in the trace (see `Images`); more can be set in `recording.images`.
    seed
        Seed of the run, for the manifest.
    context
        What the keys are, where the pipeline does not tell. Of attention over several contexts at once (Flux, SD3,
        Qwen-Image; a reference network that joins keys), which to record; by default the references, and the text
        where there are none.
    layers
        Glob patterns of module paths to record, such as `"up_blocks.*"`; all by default.
    steps
        Calls of the denoiser to record, counted from 0: a slice or numbers; all by default.
    encoding
        `"scores"`, `"factors"`, or `"auto"`: for each layer the one that takes fewer bytes over the whole run.
        Scores are float32 (float64 of a float64 model); factors are what the model computed with (bfloat16 as float32).
    capture
        `"hooks"` on the query and key projections, interception of the `"attention"` call, or `"auto"`: hooks,
        unless queries and keys are normalised after their projections.
    guidance
        Names of the blocks of a guided batch, in order, such as `("unconditional", "conditional")`; a pipeline
        knows them. Where the batch has one row for each path, those of the calls that make one step, in order.
    branch
        Which of them to keep; `"both"` keeps all.
    key_grid
        Rows and columns of the keys; a class token may come before them. Of joint attention, those of a reference
        whose tokens end the text (Flux Redux).
    tokens
        Texts of the keys, where they are text and the pipeline does not know them.
    self_attention
        Record self-attention too.
    values
        Record what the attention adds up, too: the values of the keys, and the weights of each layer's output
        projection, of which contribution maps are made. A layer of which either is not seen is recorded without, and
        `recording.statistics.left_out` says why.
    allow_gaps
        Accept that layers are skipped in some steps, as block caches do; the gaps are missing values in the trace.
    profile
        What is known of the pipeline: the name of a profile, a TOML file with one (`docs/models.md`), or a `Profile`;
        found by the pipeline's class or its modules by default.
    network
        Attribute of the pipeline that holds the network to record, such as `"controlnet"`, in place of its denoiser.
        Two networks of one run are two recordings, one inside the other.
    model_id, revision
        Where the model is from, for the manifest; a diffusers pipeline knows its own `model_id`.
    prompts
        Keep prompts and their tokens in the trace.
    licence
        Terms under which the trace may be used: an SPDX expression such as `CC-BY-4.0`, or a line of text.
    citation
        How to cite the trace: text, or a BibTeX or CFF block.
    codec
        Compression: `"zstd"`, `"none"`, or `"auto"`: zstd, behind a byte shuffle where that makes chunks smaller.
    queue_bytes
        Bytes that may wait for the disk before the model does. The first step is held whole beside them, until it
        tells which arrays there are.
    limit_bytes
        Bytes that the arrays of all samples may take before compression. A recording that would take more writes
        nothing; the model's run goes on, and `SizeLimitError` is the problem at the end of the `with` block.
    strict
        Raise at the end of the `with` block what went wrong with the recording alone (a full disk, a trace that
        vanished, a layer that was skipped). By default that is a `RecordingWarning`, so that the run's picture is not
        lost with its trace; `recording.problem` holds it.
    overwrite
        Replace traces that are there.

    Returns
    -------
    Recording
        A context manager. `images` are the pictures, `paths` the traces, `statistics` what it did, `problem` what went
        wrong.

    Raises
    ------
    InputError
        If an argument does not fit the model; at once, or in the first step where only that can tell.
    CaptureError
        If the model's attention cannot be captured (before the run where that can be known, else in the first step),
        or, if `strict`, was not captured whole (at the end). Also at the end if the denoiser was never called.
    TraceExistsError
        If something is at `path` already.

    Examples
    --------
    >>> with record(pipe, "run.zarr", reference=ref, mask=mask, seed=0) as recording:  # doctest: +SKIP
    ...     recording.images["generated"] = pipe(...).images[0]
    """
    paths = _paths(path)
    images = Images(len(paths))
    for name, picture in (("reference", reference), ("input", input), ("mask", mask)):
        if picture is not None:
            images[name] = picture
    contexts = None if context is None else (context,) if isinstance(context, str) else tuple(context)
    target = find_target(model, profile, network, contexts)
    denoiser, found, profile = target.denoiser, target.candidates, target.profile
    found = tuple(map(with_values, found)) if values else found
    patterns = (layers,) if isinstance(layers, str) else None if layers is None else tuple(layers)
    candidates = select_candidates(found, patterns)
    refuse_hidden(denoiser, candidates)
    methods = choose_methods(candidates, _one_of("capture", capture, ("auto", "hooks", "attention")))
    options = RunOptions(
        profile=profile,
        samples=len(paths),
        steps=select_steps(steps),
        encoding=_one_of("encoding", encoding, ("auto", "scores", "factors")),
        capture=capture,
        guidance=None if guidance is None else tuple(guidance),
        branch=branch if isinstance(branch, str) else tuple(branch),
        contexts=contexts,
        key_grid=key_grid,
        tokens=None if tokens is None else tuple(tokens),
        self_attention=self_attention,
        values=values,
        allow_gaps=allow_gaps,
        selection={
            "layers": None if patterns is None else list(patterns),
            "steps": None if steps is None else str(steps),
        },
        limit_bytes=limit_bytes,
        prompts=prompts,
    )
    manifest = {
        "denoiser": identify(denoiser, model_id=model_id if model is denoiser else None, revision=revision),
        "pipeline": identify(model, model_id=model_id, revision=revision) if model is not denoiser else None,
        "seed": seed,
        "software": software_versions(),
        **dtype_and_device(denoiser),
        **terms_of_use(licence, citation),
    }
    output = Output(paths, _one_of("codec", codec, ("auto", "zstd", "none")), queue_bytes, strict, overwrite)
    return Recording(model, denoiser, found, methods, options, output, images, manifest)


def _paths(path: TracePath | Sequence[TracePath]) -> tuple[Path, ...]:
    expected = "a folder to write to, or a list of one for each sample"
    require_type(path, (str, PathLike, Sequence), "path", expected)
    given = list(path) if isinstance(path, Sequence) and not isinstance(path, str) else [path]
    for one in given:
        require_type(one, (str, PathLike), "path", expected)
        if is_address(one):
            raise InputError(
                f"path: expected a folder on this machine, found the address {fspath(one)}: record to a folder, then "
                "attrace push it, so that the model need not wait for the network"
            )
    paths = tuple(local_path(one) for one in given)
    if not paths or len({one.absolute() for one in paths}) != len(paths):
        raise InputError(f"path: expected one path for each sample, all different; found {[str(one) for one in paths]}")
    return paths


def _one_of(name: str, value: Choice, choices: tuple[str, ...]) -> Choice:
    if value not in choices:
        raise InputError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")
    return value
