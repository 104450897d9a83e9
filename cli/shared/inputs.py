"""Values of the options `--input name=value`: pictures, JSON, or text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


def read_inputs(options: Sequence[str]) -> dict[str, Any]:
    """Arguments of a pipeline's call from texts such as `image=@photo.png`, `prompt=a cat`, `guidance_scale=3`.

    Raises
    ------
    click.BadParameter
        If a text has no name, a name that is not of pictures comes twice, or a picture cannot be read.
    """
    texts = texts_by_name(options)
    return {name: _value(text, f"--input {name}") for name, text in texts.items()}


def texts_by_name(options: Sequence[str]) -> dict[str, str | list[str]]:
    """The values of `--input` as they stand there; a list where several pictures have one name.

    Raises
    ------
    click.BadParameter
        If one has no name, or a name that is not of pictures comes twice.
    """
    found: dict[str, list[str]] = {}
    for option in options:
        name, text = _split(option)
        found.setdefault(name, []).append(text)
    for name, texts in found.items():
        if len(texts) > 1 and not all(text.startswith("@") for text in texts):
            raise click.BadParameter(
                f"{name} is given twice: only pictures, such as {name}=@photo.png, make a list", param_hint="--input"
            )
    return {name: texts if len(texts) > 1 else texts[0] for name, texts in found.items()}


def stored_picture(option: str | None, inputs: dict[str, Any], hint: str) -> Any:
    """A picture to keep in the trace: the name of an input, or a file; None where the option is not given."""
    if option is None:
        return None
    if option in inputs:
        return inputs[option]
    return read_picture(Path(option.removeprefix("@")), hint)


def read_picture(path: Path, hint: str) -> Image:
    """A picture from a file, upright, as RGB; one that is grey stays grey."""
    from attrace.recorder.writing.images import read_picture as read
    from attrace.schemas import InputError

    try:
        return read(path)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint=hint) from error


def read_mask(file: str, hint: str) -> NDArray[np.bool_]:
    """A mask from a picture that is white where it holds: bool (row, column)."""
    import numpy as np

    return np.asarray(read_picture(Path(file), hint).convert("L")) > 127


def _value(text: str | list[str], hint: str) -> Any:
    if isinstance(text, list):
        return [_value(one, hint) for one in text]
    if text.startswith("@"):
        return read_picture(Path(text[1:]), hint)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _split(option: str) -> tuple[str, str]:
    name, equals, text = option.partition("=")
    if not equals or not name.isidentifier():
        raise click.BadParameter(f"expected NAME=VALUE or NAME=@PICTURE, found {option!r}", param_hint="--input")
    return name, text
