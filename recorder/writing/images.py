"""The pictures of a trace: checked when they are given, stored when the recording ends."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from attrace.recorder.writing.store import as_image
from attrace.schemas import InputError
from attrace.schemas.layout import REFERENCE, reference_name

Picture = NDArray[np.uint8]


class Images(MutableMapping[str, Any]):
    """Pictures by name, for every sample of a batch.

    A picture is a PIL image or an array: uint8, bool, or float in [0, 1]; (row, column) or (row, column, channel). A
    list or tuple holds one for each sample; anything else is the same for all of them. Of a single sample, a list given
    for `reference` holds all references of the model at once: `reference`, `reference-1` and so on. `generated`,
    `reference`, `input` and `mask` have a meaning; other names are kept.

    Parameters
    ----------
    samples
        Samples in the batch.
    """

    def __init__(self, samples: int = 1) -> None:
        self._samples = samples
        self._images: dict[str, tuple[Picture, ...]] = {}

    def __setitem__(self, name: str, picture: Any) -> None:
        if not name or "/" in name or name.startswith((".", "__")):
            raise InputError(f"image name {name!r}: expected a plain name, such as 'generated'")
        pictures = list(picture) if isinstance(picture, list | tuple) else [picture] * self._samples
        if name == REFERENCE and self._samples == 1:
            for number, other in enumerate(pictures[1:], start=1):
                self[reference_name(number)] = other
            pictures = pictures[:1]
        if len(pictures) != self._samples:
            raise InputError(f"image {name!r}: found {len(pictures)} pictures for {self._samples} samples")
        images = tuple(_as_mask(one) if name == "mask" else as_image(one, name) for one in pictures)
        self._check_sizes(name, images)
        self._images[name] = images

    def __getitem__(self, name: str) -> tuple[Picture, ...]:
        return self._images[name]

    def __delitem__(self, name: str) -> None:
        del self._images[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def of(self, sample: int) -> dict[str, Picture]:
        """The pictures of one sample."""
        return {name: images[sample] for name, images in self._images.items()}

    def _check_sizes(self, name: str, images: tuple[Picture, ...]) -> None:
        """A mask marks pixels of the input, so the two must be of one size."""
        other = {"mask": "input", "input": "mask"}.get(name)
        if other is None or other not in self._images:
            return
        for image, partner in zip(images, self._images[other], strict=True):
            if image.shape[:2] != partner.shape[:2]:
                raise InputError(
                    f"image {name!r} has {image.shape[0]} x {image.shape[1]} pixels, image {other!r} "
                    f"{partner.shape[0]} x {partner.shape[1]}: the mask must be as large as the input"
                )


def read_picture(path: Path) -> PIL.Image.Image:
    """A picture from a file, upright, as RGB; one that is grey stays grey.

    Raises
    ------
    InputError
        If there is no file, or none that can be read as a picture.
    """
    with _picture_errors(path), PIL.Image.open(path) as picture:
        upright = PIL.ImageOps.exif_transpose(picture)
        return upright.convert("L" if upright.mode in ("1", "L") else "RGB")


def check_picture(path: Path) -> None:
    """Read the head of a picture's file; raises as `read_picture`."""
    with _picture_errors(path), PIL.Image.open(path):
        pass


@contextmanager
def _picture_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except PIL.UnidentifiedImageError as error:
        raise InputError(f"{path} is no picture that can be read") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _as_mask(picture: Any) -> Picture:
    """A mask as (row, column); of a coloured picture, its lightness."""
    if hasattr(picture, "convert"):
        picture = picture.convert("L")
    image = as_image(picture, "mask")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim != 2:
        raise InputError(f"image 'mask': expected (row, column), found shape {image.shape}")
    return image
