"""What runs with hidden patches gave is kept for exactly the same runs, whatever a file went through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import box_mask, demo, noise, picture

from attrace.recorder.jobs.hidden_runs import KeptChanges, Recorded, digest_of_inputs, hidden_changes
from attrace.recorder.jobs.joblist import Job
from attrace.schemas import CaptureError


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "run.hidden.jsonl"
    kept = KeptChanges(path)
    kept.add("a", 0.1, hidden=3)
    kept.add("b", 1 / 3)
    path.write_text(path.read_text()[:-5])
    again = KeptChanges(path)
    assert again.changes == {"a": 0.1}
    again.add("c", 0.25)
    assert KeptChanges(path).changes == {"a": 0.1, "c": 0.25}


@pytest.mark.parametrize("line", ["[]", "null", '{"run": "a"}', '{"run": "a", "change": "much"}', "\x00"])
def test_a_line_that_is_no_result_does_not_count(tmp_path: Path, line: str) -> None:
    path = tmp_path / "run.hidden.jsonl"
    path.write_text(line + "\n")
    KeptChanges(path).add("b", 0.5)
    assert KeptChanges(path).changes == {"b": 0.5}


def test_inputs_are_told_apart_by_what_they_hold() -> None:
    inputs: dict[str, Any] = {"image": picture(seed=0), "prompt": "a cat", "scale": 2.0}
    same = {"scale": 2.0, "prompt": "a cat", "image": picture(seed=0)}
    assert digest_of_inputs(inputs) == digest_of_inputs(same)
    others: list[dict[str, Any]] = [
        {"image": picture(seed=1)},
        {"image": picture(seed=0).rotate(90)},
        {"prompt": "a"},
        {"scale": 2.5},
    ]
    assert len({digest_of_inputs(inputs | other) for other in [{}, *others]}) == 5


@pytest.mark.parametrize(
    "hold", [lambda one: [one], lambda one: {"image": one}, lambda one: [np.asarray(one)], lambda one: {"a": [one]}]
)
def test_inputs_are_told_apart_by_what_their_lists_hold(hold: Callable[[Any], Any]) -> None:
    """Large arrays, whose text leaves most out, and pictures, whose text has their address."""
    first, same, other = (hold(picture(seed=seed).resize((64, 64))) for seed in (0, 0, 1))
    assert digest_of_inputs({"images": first}) == digest_of_inputs({"images": same})
    assert digest_of_inputs({"images": first}) != digest_of_inputs({"images": other})


def test_equal_choices_are_one_run_and_another_picture_is_refused(tmp_path: Path) -> None:
    inputs = {"image": picture(seed=0), "mask_image": box_mask(), "reference_image": picture(seed=1)}
    job = Job("here", tmp_path / "run.zarr", inputs, 3, 2, {"reference": "reference_image"})
    cells = np.eye(4, dtype=bool)
    black = Recorded("0", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(CaptureError, match=r"another picture than in .*run\.zarr"):
        hidden_changes(demo, job, black, [cells], lambda _: 0.0)
    assert not (tmp_path / "run.hidden.jsonl").exists()
    shown: list[Any] = []
    pipeline = demo()
    generator = pipeline(**inputs, num_inference_steps=2, generator=noise(3))
    recorded = Recorded("0", np.asarray(generator.images[0]))

    def measure(one: Any) -> float:
        shown.append(one)
        return float(len(shown))

    assert hidden_changes(lambda: pipeline, job, recorded, [cells, ~cells, cells], measure) == [1, 2, 1]
    assert len(shown) == 2
