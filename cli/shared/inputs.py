"""Values of the options `--input name=value`, and pictures from files."""

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


def inputs_by_name(options: Sequence[str]) -> dict[str, Any]:
    """Arguments of a pipeline's call from texts such as `image=@photo.png`, `prompt=a cat`, `guidance_scale=3`.

    A picture file stays a text with `@` and its absolute path; several of one name make a list.

    Raises
    ------
    click.BadParameter
        If a text has no name, or a name that is not of pictures comes twice.
    """
    found: dict[str, list[Any]] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"expected NAME=VALUE or NAME=@PICTURE, found {option!r}", param_hint="--input")
        if name in found and not all(str(one).startswith("@") for one in (text, *found[name])):
            raise click.BadParameter(
                f"{name} is given twice: only pictures, such as {name}=@photo.png, make a list", param_hint="--input"
            )
        found.setdefault(name, []).append(_value(text))
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


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
    from attrace.analysis.maps import masks

    return masks.read_mask(read_picture(Path(file), hint))


def _value(text: str) -> Any:
    if text.startswith("@"):
        return f"@{Path(text[1:]).absolute()}"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
