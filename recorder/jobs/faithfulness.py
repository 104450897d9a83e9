"""Running a model again with parts of its reference hidden: what the attention says is used, put to the test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, get_args

import numpy as np
import PIL.Image
import PIL.ImageFilter
from numpy.typing import NDArray

from attrace.recorder.jobs.pipelines import call_arguments, generate
from attrace.schemas import InputError

Fill = Literal["mean", "blur", "swap"]
"""What hidden patches show: the mean colour of the picture; the picture blurred by a patch's size; each other."""

FILLS: Final[tuple[Fill, ...]] = get_args(Fill)


def hide(picture: PIL.Image.Image, cells: NDArray[np.bool_], fill: Fill = "mean") -> PIL.Image.Image:
    """Hide patches of a picture.

    Parameters
    ----------
    picture
        The reference.
    cells
        Patches to hide: bool (row, column), laid over the whole picture.
    fill
        `mean`: the mean colour of the picture. `blur`: the picture under a Gaussian blur of a patch's size. `swap`: the
        hidden patches change places, each with the next in reading order, so that every colour stays in the picture.

    Returns
    -------
    PIL.Image.Image
        A new picture; equal to the given one where nothing is hidden.

    Raises
    ------
    InputError
        If the fill is unknown, or there are more cells than pixels along a side.
    """
    if fill not in FILLS:
        raise InputError(f"fill: expected {', '.join(FILLS)}, found {fill!r}")
    boxes = _boxes(picture, cells)
    result = picture.copy()
    if not boxes:
        return result
    if fill == "swap":
        for box, (left, top, right, bottom) in zip(boxes, [*boxes[1:], boxes[0]], strict=True):
            size = (box[2] - box[0], box[3] - box[1])
            result.paste(picture.crop((left, top, right, bottom)).resize(size), box)
        return result
    if fill == "mean":
        pixels = np.asarray(picture)
        colour = np.broadcast_to(np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8), pixels.shape)
        shown = PIL.Image.fromarray(np.ascontiguousarray(colour))
    else:
        radius = max(picture.width / cells.shape[1], picture.height / cells.shape[0])
        shown = picture.filter(PIL.ImageFilter.GaussianBlur(radius))
    for box in boxes:
        result.paste(shown.crop(box), box)
    return result


def regenerate(
    pipeline: Any,
    inputs: Mapping[str, Any],
    reference: str,
    hidden: Iterable[NDArray[np.bool_]],
    *,
    seed: int,
    steps: int | None = None,
    fill: Fill = "mean",
) -> Iterator[NDArray[np.uint8]]:
    """Generate again from the same noise, once for each choice of hidden patches.

    Parameters
    ----------
    pipeline
        A diffusers pipeline.
    inputs
        Arguments of its call.
    reference
        Name of the argument that is the reference picture.
    hidden
        Patches to hide, as for `hide`; none hidden gives the picture of the inputs as they are.
    seed
        Of the noise.
    steps
        `num_inference_steps`, if they are to be set.
    fill
        As for `hide`.

    Yields
    ------
    ndarray
        uint8 (row, column[, channel]), in the order of `hidden`.

    Raises
    ------
    InputError
        If the reference is no picture among the inputs, or the pipeline makes no picture.
    """
    picture = inputs.get(reference)
    if not isinstance(picture, PIL.Image.Image):
        pictures = [name for name, value in inputs.items() if isinstance(value, PIL.Image.Image)]
        raise InputError(
            f"reference: expected the name of an input that is a picture ({', '.join(pictures) or 'there is none'}), "
            f"found {reference!r}"
        )
    for cells in hidden:
        changed = dict(inputs) | {reference: hide(picture, cells, fill)}
        made = generate(pipeline, call_arguments(pipeline, changed, steps=steps, seed=seed))
        if not isinstance(made, PIL.Image.Image):
            raise InputError(f"{type(pipeline).__name__} made no picture to compare: leave output_type as it is")
        yield np.asarray(made)


def _boxes(picture: PIL.Image.Image, cells: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of every hidden patch, in reading order."""
    rows, columns = cells.shape
    if rows > picture.height or columns > picture.width:
        raise InputError(f"a picture of {picture.height} x {picture.width} pixels has no {rows} x {columns} patches")
    down = np.rint(np.linspace(0, picture.height, rows + 1)).astype(int).tolist()
    across = np.rint(np.linspace(0, picture.width, columns + 1)).astype(int).tolist()
    return [(across[j], down[i], across[j + 1], down[i + 1]) for i, j in np.argwhere(cells).tolist()]
