"""Examples of help texts as arguments, and pictures for them that need no torch."""

from __future__ import annotations

import shlex

import click
import numpy as np
import PIL.Image


def examples_of(command: click.Command) -> list[list[str]]:
    """The examples of a command's help text, without `attrace`."""
    assert command.epilog is not None
    lines = command.epilog.replace("\\\n", " ").splitlines()[2:]
    return [shlex.split(line)[1:] for line in lines]


def noise_picture(size: int = 32, seed: int = 0) -> PIL.Image.Image:
    """A square picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def box_mask(size: int = 32) -> PIL.Image.Image:
    """White from a quarter to a half of a square picture, else black."""
    pixels = np.zeros((size, size), np.uint8)
    pixels[size // 4 : size // 2, size // 4 : size // 2] = 255
    return PIL.Image.fromarray(pixels)
