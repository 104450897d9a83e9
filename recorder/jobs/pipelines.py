"""Loading a diffusers pipeline by name, and calling it with arguments that are checked first."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from diffusers.pipelines import pipeline_utils

from attrace.schemas import AttraceError, InputError

DTYPE_ARGUMENT: Final = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"
"""Argument of from_pretrained: diffusers renamed it in 2026, and an older one ignores the new name without a word."""

DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def load_pipeline(
    source: str,
    *,
    class_name: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    local_files_only: bool = False,
    ip_adapter: tuple[str, str] | None = None,
) -> Any:
    """Load a diffusers pipeline and move it to a device.

    Parameters
    ----------
    source
        A folder as `save_pretrained` leaves it, or the id of a repository of the Hugging Face hub.
    class_name
        A class of diffusers, or `package.module:Class`; by default the one that the pipeline itself names.
    revision
        Branch, tag or commit of the repository.
    dtype
        `float16`, `bfloat16` or `float32`.
    device
        A device of torch, such as `cpu` or `cuda`.
    local_files_only
        Download nothing.
    ip_adapter
        Folder or repository of an IP-Adapter, and the file of its weights in there, perhaps in a subfolder.

    Raises
    ------
    InputError
        If the device is not there, the class unknown, or nothing can be loaded from `source` or of the adapter.
    """
    _check_device(device)
    _restore_moved_pipelines()
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    pipeline_class = _pipeline_class(class_name)
    folder = Path(source)
    if folder.is_dir() and not (folder / "model_index.json").exists():
        raise InputError(
            f"{source} is a folder without model_index.json: expected one that a diffusers pipeline was saved to with "
            "save_pretrained"
        )
    try:
        pipeline = pipeline_class.from_pretrained(
            source, revision=revision, local_files_only=local_files_only, **{DTYPE_ARGUMENT: _dtype(dtype)}
        )
    except (OSError, ValueError, AttributeError, ImportError, TypeError) as error:
        if isinstance(error, AttributeError) and class_name is None:
            raise InputError(
                f"{source} names a pipeline class that diffusers does not have ({first_line(error)}): name its class, "
                "as package.module:Class"
            ) from error
        raise InputError(
            f"cannot load a pipeline from {source!r}: expected a folder that a pipeline was saved to, or the id of a "
            f"repository such as 'owner/name'; found: {first_line(error)}"
        ) from error
    if ip_adapter is not None:
        _load_ip_adapter(pipeline, *ip_adapter, local_files_only=local_files_only)
    pipeline.set_progress_bar_config(disable=None)  # shown on a terminal only
    return pipeline.to(device)


def _load_ip_adapter(pipeline: Any, source: str, weights: str, *, local_files_only: bool) -> None:
    folder, _, name = weights.rpartition("/")
    if not hasattr(pipeline, "load_ip_adapter"):
        raise InputError(f"{type(pipeline).__name__} takes no IP-Adapter")
    try:
        pipeline.load_ip_adapter(source, subfolder=folder, weight_name=name, local_files_only=local_files_only)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"cannot load an IP-Adapter from {weights!r} in {source!r}, made for this pipeline: {first_line(error)}"
        ) from error


def call_arguments(pipeline: Any, given: Mapping[str, Any], *, steps: int | None, seed: int | None) -> dict[str, Any]:
    """The arguments to call a pipeline with, checked against its signature.

    The noise comes from a generator on the CPU, as diffusers advises: the same on every device.

    Raises
    ------
    InputError
        If the pipeline does not take an argument, or needs one that is not given.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name, parameter in parameters.items() if name != "self" and parameter.kind.name != "VAR_KEYWORD"]
    arguments = dict(given)
    if steps is not None:
        arguments.setdefault("num_inference_steps", steps)
    if seed is not None:
        arguments.setdefault("generator", torch.Generator("cpu").manual_seed(seed))
    for name in arguments:
        if name not in known and not takes_any:
            raise InputError(_not_taken(pipeline, name, known))
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in arguments]
    if missing:
        raise InputError(f"{type(pipeline).__name__} needs {', '.join(missing)}: pass --input {missing[0]}=...")
    return arguments


def generate(pipeline: Any, arguments: Mapping[str, Any]) -> Any:
    """Call a pipeline; the first picture that it makes, or None.

    Raises
    ------
    InputError
        If the pipeline stumbles over its arguments, such as a path where a picture is meant.
    """
    try:
        output = pipeline(**arguments)
    except AttraceError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{type(pipeline).__name__} does not work with these arguments: {first_line(error)}"
        ) from error
    pictures = getattr(output, "images", None)
    if pictures is None and isinstance(output, tuple) and output:
        pictures = output[0]
    return pictures[0] if isinstance(pictures, Sequence) and len(pictures) else None


def _restore_moved_pipelines() -> None:
    """Let diffusers find what it moved: the published Paint-by-Example names its encoder by the folder's old place."""
    pipelines = diffusers.pipelines
    if not hasattr(pipelines, "paint_by_example"):
        pipelines.paint_by_example = importlib.import_module("diffusers.pipelines.deprecated.paint_by_example")


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"device {device!r}: expected a device of torch, such as cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch sees no CUDA device here; use cpu, or install torch with CUDA")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _pipeline_class(name: str | None) -> Any:
    if name is None:
        return diffusers.DiffusionPipeline
    module_name, colon, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name) if colon else diffusers
        found = getattr(module, class_name if colon else name)
    except (ImportError, AttributeError) as error:
        close = difflib.get_close_matches(name, [one for one in dir(diffusers) if one.endswith("Pipeline")], n=3)
        guess = f"; did you mean {' or '.join(close)}?" if close and not colon else ""
        raise InputError(
            f"class {name!r}: expected a class of diffusers, or package.module:Class, found none of that name "
            f"({first_line(error)}){guess}"
        ) from error
    if not hasattr(found, "from_pretrained"):
        raise InputError(f"class {name!r}: expected a pipeline with from_pretrained, found {found!r}")
    return found


def _not_taken(pipeline: Any, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    guess = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{type(pipeline).__name__} takes no argument {name!r}{guess} It takes {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or its name."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text or type(error).__name__
