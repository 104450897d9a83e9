"""The demo's bundled pictures, cut from public-domain photographs that the model never saw in training.

`python -m attrace.demo.pictures` makes them again: the reference is Chelsea the cat (Stefan van der Walt, CC0), the
scene a cup of coffee (Rachel Michetti, CC0), both from scikit-image; the mask is the inside of the cup.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from attrace.demo.data import SIZE

FOLDER = Path(__file__).parent / "pictures"
"""Where the pictures lie in the package."""

BOX = (10, 4, 54, 41)
"""Left, top, right and bottom of the mask, in pixels."""


@dataclass(frozen=True)
class Pictures:
    """What the demo's pipeline is called with, and the picture it should paint."""

    reference: PIL.Image.Image
    """The object."""
    scene: PIL.Image.Image
    """Where it belongs."""
    mask: PIL.Image.Image
    """White where to paint."""

    @property
    def truth(self) -> PIL.Image.Image:
        """The scene with the reference pasted into the mask."""
        left, top, right, bottom = self.mask.getbbox() or (0, 0, SIZE, SIZE)
        pasted = self.scene.copy()
        pasted.paste(self.reference.resize((right - left, bottom - top), PIL.Image.Resampling.BOX), (left, top))
        return PIL.Image.composite(pasted, self.scene, self.mask)


def load_pictures(reference: Path | None = None) -> Pictures:
    """Load the bundled pictures, with another reference if one is given; every picture is 64 x 64.

    Raises
    ------
    OSError
        If the reference is not there, or is no picture.
    """
    with PIL.Image.open(reference or FOLDER / "reference.png") as picture:
        square = _square(picture.convert("RGB"))
    with PIL.Image.open(FOLDER / "scene.png") as scene, PIL.Image.open(FOLDER / "mask.png") as mask:
        return Pictures(square, scene.convert("RGB"), mask.convert("L"))


def _square(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The middle square of a picture, SIZE x SIZE."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def main() -> None:
    """Make the bundled pictures."""
    import skimage.data  # only making the pictures needs it

    FOLDER.mkdir(exist_ok=True)
    cat = PIL.Image.fromarray(skimage.data.chelsea()).crop((75, 0, 345, 270))
    coffee = PIL.Image.fromarray(skimage.data.coffee()).crop((140, 0, 440, 300))
    _square(cat).save(FOLDER / "reference.png")
    _square(coffee).save(FOLDER / "scene.png")
    left, top, right, bottom = BOX
    row, column = np.mgrid[:SIZE, :SIZE] + 0.5
    across = 2 * (column - left) / (right - left) - 1
    down = 2 * (row - top) / (bottom - top) - 1
    PIL.Image.fromarray((across**2 + down**2 <= 1).astype(np.uint8) * 255).save(FOLDER / "mask.png")


if __name__ == "__main__":
    main()
