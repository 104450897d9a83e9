"""Boxes that attention finds are compared with true ones, beside the whole picture and random boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.traces import make_trace

from attrace.analysis import bounding_box, iou, open_trace, ulam
from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.scores.boxes import Box
from attrace.analysis.studies.detect import detect, read_boxes
from attrace.analysis.studies.trace_statistics import Settings
from attrace.schemas import InputError

TRUE = {"0": Box(4, 8, 20, 30), "1": Box(0, 0, 8, 8), "2": Box(10, 10, 32, 32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    for seed in range(3):
        make_trace(folder / f"{seed}.zarr", seed=seed, spread=2.0, image_size=(32, 32))
    return folder


@pytest.mark.parametrize("settings", [Settings(size=(32, 32)), Settings((64, 64), density=False, layers=("down.*",))])
def test_every_trace_has_the_overlap_of_its_own_box(folder: Path, settings: Settings) -> None:
    found = detect(folder, TRUE, settings=settings)
    assert [Path(one.trace).stem for one in found.traces] == list(TRUE)
    for one, (name, true) in zip(found.traces, TRUE.items(), strict=True):
        trace = open_trace(folder / f"{name}.zarr").sel(layer=settings.layers or None)
        cells = bounding_box(ulam(trace, size=settings.size, density=settings.density))
        assert cells is not None
        assert settings.size is not None
        box = Box(*(round(edge * 32 / settings.size[0]) for edge in cells))
        assert (one.found, one.true) == (box, true)
        assert one.attention == iou(box, true)
        assert one.whole == pytest.approx((true.bottom - true.top) * (true.right - true.left) / 32**2)
        assert 0 < one.random < 1
    table = np.array([[one.attention, one.whole, one.random] for one in found.traces])
    low, high = bootstrap_interval(table, seed=0)
    for place, method in enumerate(("attention", "whole", "random")):
        assert found.means[method] == pytest.approx((table[:, place].mean(), low[place], high[place]))


def test_contributions_are_not_replaced_by_attention(folder: Path) -> None:
    with pytest.raises(InputError, match="holds no values"):
        detect(folder, TRUE, settings=Settings(contribution=True))


def test_random_boxes_are_of_the_true_size_and_repeat(folder: Path) -> None:
    whole = detect(folder / "0.zarr", {"0": Box(0, 0, 32, 32)})
    assert whole.traces[0].random == 1
    assert detect(folder, TRUE, seed=1).traces == detect(folder, TRUE, seed=1).traces != detect(folder, TRUE).traces


def test_a_trace_without_a_box_is_left_out(folder: Path) -> None:
    found = detect(folder, {"0": TRUE["0"], "1": Box(0, 0, 40, 8)})
    assert [Path(one.trace).stem for one in found.traces] == ["0"]
    assert {Path(path).stem: reason for path, reason in found.broken.items()} == {
        "1": "its true box (0, 0, 40, 8) does not lie in the picture of 32 x 32",
        "2": "no box is named '2'",
    }
    with pytest.raises(InputError, match="nothing can be detected in 3 traces"):
        detect(folder, {"other": TRUE["0"]})


def test_boxes_are_read_from_csv_and_coco(tmp_path: Path) -> None:
    table, coco = tmp_path / "boxes.csv", tmp_path / "boxes.json"
    table.write_text("name,top,left,bottom,right\n0,4,8,20,30\n1,0,0,8,8\n2,10,10,32,32\n")
    images = [{"id": 7 + number, "file_name": f"val/{name}.png"} for number, name in enumerate(TRUE)]
    annotations = [
        {"image_id": 7 + number, "bbox": [box.left, box.top, box.right - box.left, box.bottom - box.top]}
        for number, box in enumerate(TRUE.values())
    ]
    small = {"image_id": 7, "bbox": [0, 0, 2, 2]}
    coco.write_text(json.dumps({"images": images, "annotations": [*annotations, small]}))
    assert read_boxes(table) == read_boxes(coco) == TRUE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("boxes.csv", "name,x,y\n0,1,2\n"),
        ("boxes.csv", "name,top,left,bottom,right\n0,a,b,c,d\n"),
        ("boxes.csv", ""),
        ("boxes.json", "[]"),
        ("boxes.json", "{"),
        ("boxes.json", '{"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2]}]}'),
        ("boxes.json", '{"images": [], "annotations": []}'),
    ],
)
def test_what_holds_no_boxes_is_told(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"boxes\.(csv|json): (expected a CSV|found no box)"):
        read_boxes(tmp_path / name)
