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
        If a text has no name, a name comes twice, or a picture cannot be read.
    """
    inputs: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"expected NAME=VALUE or NAME=@PICTURE, found {option!r}", param_hint="--input")
        if name in inputs:
            raise click.BadParameter(f"{name} is given twice", param_hint="--input")
        inputs[name] = _value(text, f"--input {name}")
    return inputs


def stored_picture(option: str | None, inputs: dict[str, Any], hint: str) -> Any:
    """A picture to keep in the trace: the name of an input, or a file; None where the option is not given."""
    if option is None:
        return None
    if option in inputs:
        return inputs[option]
    return read_picture(Path(option.removeprefix("@")), hint)


def read_picture(path: Path, hint: str) -> Image:
    """A picture from a file, upright, as RGB; one that is grey stays grey."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            return upright.convert("L" if upright.mode in ("1", "L") else "RGB")
    except FileNotFoundError as error:
        raise click.BadParameter(f"there is no file {path}", param_hint=hint) from error
    except UnidentifiedImageError as error:
        raise click.BadParameter(f"{path} is no picture that can be read", param_hint=hint) from error
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be read: {error.strerror or error}", param_hint=hint) from error


def read_mask(file: str, hint: str) -> NDArray[np.bool_]:
    """A mask from a picture that is white where it holds: bool (row, column)."""
    import numpy as np

    return np.asarray(read_picture(Path(file), hint).convert("L")) > 127


def _value(text: str, hint: str) -> Any:
    if text.startswith("@"):
        return read_picture(Path(text[1:]), hint)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
