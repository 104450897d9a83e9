"""The detection study of I2AM: the box of the reference's object, found by attention alone, against the true one."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.maps.attribution import ulam
from attrace.analysis.maps.sram import picture_size
from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.scores.boxes import Box, bounding_box, iou
from attrace.analysis.studies.engine import Progress, or_reason, run_tasks
from attrace.analysis.studies.pairing import stem_of
from attrace.analysis.studies.trace_statistics import Settings
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.analysis.trace.traces import Sources, find_traces
from attrace.schemas import InputError

METHODS: Final = ("attention", "whole", "random")
"""What boxes are compared with the true one: that of the unified R2G map, the whole picture, and random boxes."""

RANDOM_BOXES: Final = 100
"""Random boxes of each picture: of the size of the true one, anywhere in the picture."""


class Detection(NamedTuple):
    """The boxes of one trace, in pixels of the generated picture, and how far they overlap with the true one."""

    trace: str
    true: Box
    found: Box | None
    """Around the largest region of high attention; None where there is none."""
    attention: float
    """IoU of the box that was found."""
    whole: float
    """IoU of the whole picture."""
    random: float
    """Mean IoU of `RANDOM_BOXES` random boxes of the true one's size."""


@dataclass(frozen=True)
class Detections:
    """What was found in many traces."""

    traces: tuple[Detection, ...]
    means: Mapping[str, tuple[float, float, float]]
    """By method the mean IoU, and the low and high end of its 95 % bootstrap interval over traces."""
    broken: Mapping[str, str]
    """Why each trace that is left out was, by its path."""


def detect(
    sources: Sources,
    boxes: Mapping[str, Sequence[float]],
    *,
    settings: Settings | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Detections:
    """Find the object of every trace by its attention, and compare its box with the true one.

    Parameters
    ----------
    sources
        As for `open_traces`.
    boxes
        By the name of a trace (without `.zarr`), its true box: top, left, bottom, right in pixels of the generated
        picture, the last two not included.
    settings
        `size`, `density`, `layers`, `context`, `branch`, `weights` and `contribution` of the map.
    executor
        What runs the traces: `engine()` by default.
    seed
        Of the random boxes and the bootstrap.
    progress
        Called after every trace.
    storage_options
        As for `open_trace`.

    Raises
    ------
    InputError
        If no trace has a box and a map.
    """
    settings = settings or Settings()
    paths = find_traces(sources, storage_options=storage_options)
    broken = {path: f"no box is named {stem_of(path)!r}" for path in paths if stem_of(path) not in boxes}
    tasks = [(path, tuple(boxes[stem_of(path)])) for path in paths if path not in broken]
    found: list[Detection] = []
    arguments: Any = (settings, seed, storage_options)
    for (path, _), result in run_tasks(_detection_or_reason, tasks, *arguments, executor=executor, progress=progress):
        if isinstance(result, str):
            broken[path] = result
        else:
            found.append(result)
    if not found:
        path, reason = next(iter(broken.items()))
        raise InputError(f"nothing can be detected in {len(broken)} traces; the first, {path}: {reason}")
    table = np.array([[getattr(one, method) for method in METHODS] for one in found])
    low, high = bootstrap_interval(table, seed=seed)
    means = zip(METHODS, table.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return Detections(tuple(found), {method: interval for method, *interval in means}, broken)  # type: ignore[misc]


def read_boxes(path: Path) -> dict[str, Box]:
    """True boxes by name from a CSV (`name,top,left,bottom,right`) or a JSON in the layout of COCO.

    Of COCO, boxes are `bbox` (left, top, width, height) of the annotations; names are `file_name` of the images without
    its folder and suffix. Of several annotations of an image the largest box counts.

    Raises
    ------
    InputError
        If the file is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        boxes = _coco_boxes(json.loads(text)) if path.suffix == ".json" else _csv_boxes(text)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: expected a CSV with the columns name,top,left,bottom,right, or a .json in the layout of COCO "
            f"with images and annotations ({type(error).__name__}: {error})"
        ) from error
    if not boxes:
        raise InputError(f"{path}: found no box in it")
    return boxes


def _csv_boxes(text: str) -> dict[str, Box]:
    rows = csv.DictReader(text.splitlines())
    return {row["name"]: Box(*(round(float(row[edge])) for edge in Box._fields)) for row in rows}


def _coco_boxes(document: Any) -> dict[str, Box]:
    names = {one["id"]: stem_of(Path(str(one["file_name"])).stem) for one in document["images"]}
    boxes: dict[str, Box] = {}
    for one in sorted(document["annotations"], key=lambda one: float(one["bbox"][2]) * float(one["bbox"][3])):
        left, top, width, height = map(float, one["bbox"])
        boxes[names[one["image_id"]]] = Box(round(top), round(left), round(top + height), round(left + width))
    return boxes


@or_reason
def _detection_or_reason(
    task: tuple[str, Box], settings: Settings, seed: int, storage_options: Mapping[str, Any] | None
) -> Detection:
    return _detection(settings.select(open_trace(task[0], storage_options=storage_options)), task[1], settings, seed)


def _detection(trace: Trace, true: Sequence[int], settings: Settings, seed: int) -> Detection:
    picture = picture_size(trace)
    box = Box(*true)
    if not (0 <= box.top < box.bottom <= picture[0] and 0 <= box.left < box.right <= picture[1]):
        raise InputError(f"its true box {tuple(box)} does not lie in the picture of {picture[0]} x {picture[1]}")
    options: Any = {"weights": settings.weights, "contribution": settings.contribution}
    heat = ulam(trace, size=settings.size, density=settings.density, **options)
    heat = heat.compute(scheduler="synchronous")
    cells = bounding_box(heat)
    scale = np.tile(np.divide(picture, heat.shape), 2)
    found = None if cells is None else Box(*np.rint(np.array(cells) * scale).astype(int).tolist())
    overlaps = [iou(one, box) for one in _random_boxes(box, picture, seed)]
    whole = iou(Box(0, 0, *picture), box)
    return Detection(trace.path, box, found, iou(found, box), whole, float(np.mean(overlaps)))


def _random_boxes(box: Box, picture: tuple[int, int], seed: int) -> list[Box]:
    """Boxes of the size of one, anywhere in the picture."""
    random = np.random.default_rng(seed)
    height, width = box.bottom - box.top, box.right - box.left
    corners: NDArray[np.int64] = random.integers(
        0, [picture[0] - height + 1, picture[1] - width + 1], (RANDOM_BOXES, 2)
    )
    return [Box(top, left, top + height, left + width) for top, left in corners.tolist()]
