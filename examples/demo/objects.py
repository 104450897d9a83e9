"""Objects that people recognise, for training: `python -m attrace.demo.objects ASSETS GROUPS objects.npz`.

The pictures are the 3D emoji of Microsoft's Fluent set (MIT licence), as the npm package `@lobehub/fluent-emoji-3d` has
them; the npm package `unicode-emoji-json` tells their Unicode groups. `npm pack` fetches either. ASSETS is the folder
of the pictures, GROUPS the file `data-by-group.json`. Skin tones and flags are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import click
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

OBJECT_SIZE = 128
"""Rows and columns of a stored object, in pixels."""

MARGIN = 0.04
"""Share of its frame that is left free on each side of the longer side of an object."""

HELD_OUT_GROUPS = ("Animals & Nature", "Food & Drink")
"""Unicode groups whose objects are never seen in training."""

LEFT_OUT_GROUPS = ("Flags",)
"""Unicode groups whose objects are not stored: flat rectangles, many of them alike."""


@dataclass(frozen=True)
class Objects:
    """Pictures of objects with alpha, centred in square frames."""

    pictures: NDArray[np.uint8]
    """Colours times alpha, and alpha: (object, row, column, 4)."""
    names: list[str]
    """What each shows, such as `hamburger`."""
    groups: list[str]
    """The Unicode group of each."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load what `save` wrote."""
        with np.load(path) as stored:
            return cls(stored["pictures"], stored["names"].tolist(), stored["groups"].tolist())

    def save(self, path: Path) -> None:
        """Write a compressed NumPy archive."""
        np.savez_compressed(path, pictures=self.pictures, names=self.names, groups=self.groups)

    def select(self, *, held_out: bool) -> Objects:
        """The objects of training, or those of the held-out groups."""
        chosen = [number for number, group in enumerate(self.groups) if (group in HELD_OUT_GROUPS) == held_out]
        names, groups = ([labels[number] for number in chosen] for labels in (self.names, self.groups))
        return Objects(self.pictures[chosen], names, groups)

    def sprites(self, size: int) -> Tensor:
        """The objects as float32 (object, 4, size, size): colours in [-1, 1] times alpha, and alpha in [0, 1]."""
        pictures = torch.from_numpy(self.pictures).permute(0, 3, 1, 2).float() / 255
        pictures = F.interpolate(pictures, size=(size, size), mode="area")
        colours, alpha = pictures[:, :3], pictures[:, 3:]
        return torch.cat([2 * colours - alpha, alpha], dim=1)


def read_objects(assets: Path, groups: Path) -> Objects:
    """Read the objects of the npm packages.

    Parameters
    ----------
    assets
        Folder of pictures named by code points, such as `1f354.webp`.
    groups
        JSON list of groups, each with its emoji.

    Raises
    ------
    ValueError
        If the folder has none of the pictures that the groups name.
    """
    pictures, names, labels = [], [], []
    for group in json.loads(groups.read_text(encoding="utf-8")):
        for emoji in group["emojis"] if group["name"] not in LEFT_OUT_GROUPS else []:
            path = assets / ("-".join(f"{ord(sign):04x}" for sign in emoji["emoji"]) + ".webp")
            if path.exists():
                with PIL.Image.open(path) as picture:
                    pictures.append(_framed(picture.convert("RGBA")))
                names.append(emoji["name"])
                labels.append(group["name"])
    if not pictures:
        raise ValueError(f"{assets}: expected pictures such as 1f354.webp, found none of those that {groups} names")
    return Objects(np.stack(pictures), names, labels)


def _framed(picture: PIL.Image.Image) -> NDArray[np.uint8]:
    """The object in the middle of a square frame that its longer side fills but for the margin."""
    left, top, right, bottom = picture.getchannel("A").getbbox() or (0, 0, *picture.size)
    side = round(max(right - left, bottom - top) / (1 - 2 * MARGIN))
    frame = PIL.Image.new("RGBA", (side, side))
    frame.paste(picture.crop((left, top, right, bottom)), ((side - right + left) // 2, (side - bottom + top) // 2))
    resized = frame.resize((OBJECT_SIZE, OBJECT_SIZE), PIL.Image.Resampling.HAMMING)
    return np.asarray(resized.convert("RGBa"))


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("assets", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("groups", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def main(assets: Path, groups: Path, output: Path) -> None:
    """Read, store and count the objects."""
    objects = read_objects(assets, groups)
    objects.save(output)
    click.echo(f"{output}: {len(objects.names)} objects, {len(objects.select(held_out=True).names)} of them held out")


if __name__ == "__main__":
    main()
