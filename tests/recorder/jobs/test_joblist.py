"""Lists of jobs: read whole, and refused with the line and the member at fault before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import box_mask, noise_picture
from support.traces import make_trace

from attrace.recorder.jobs.joblist import Job, read_jobs
from attrace.schemas import AttraceError, InputError, TraceExistsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures for a list."""
    noise_picture().save(tmp_path / "scene.png")
    box_mask().save(tmp_path / "mask.png")
    (tmp_path / "note.txt").write_text("no picture")
    return tmp_path


def listed(folder: Path, *lines: Any, **defaults: Any) -> tuple[Job, ...]:
    (folder / "jobs.jsonl").write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return read_jobs(folder / "jobs.jsonl", folder / "runs", defaults)


def test_every_member_is_read(folder: Path) -> None:
    line = {
        "id": "cat-1.5",
        "inputs": {"image": "@scene.png", "images": ["@mask.png", 3], "prompt": "a cat", "scale": 2.5},
        "seed": 3,
        "steps": 20,
        "reference": "image",
        "mask": "mask.png",
        "save_image": "cat.png",
    }
    (job,) = listed(folder, "", line, "  ")
    assert job.where == f"{folder}/jobs.jsonl:2"
    assert (job.output, job.save_image) == (folder / "runs/cat-1.5.zarr", folder / "runs/cat.png")
    assert (job.seed, job.steps) == (3, 20)
    inputs, pictures = job.load()
    assert np.array_equal(inputs["image"], np.asarray(noise_picture()))
    assert np.array_equal(inputs["images"][0], np.asarray(box_mask()))
    assert (inputs["images"][1], inputs["prompt"], inputs["scale"]) == (3, "a cat", 2.5)
    assert pictures["reference"] is inputs["image"]
    assert np.array_equal(pictures["mask"], np.asarray(box_mask()))


def test_what_a_line_lacks_is_taken_from_the_defaults(folder: Path) -> None:
    defaults = {"seed": 1, "steps": 5, "inputs": {"image": "@scene.png", "scale": 1}, "reference": "image"}
    first, second = listed(
        folder,
        {"id": "a", "seed": 2, "inputs": {"scale": 3}},
        {"output": "deep/b.zarr", "reference": "mask.png"},
        **defaults,
    )
    assert (first.seed, first.steps, first.inputs["scale"], first.pictures) == (2, 5, 3, {"reference": "image"})
    assert (second.seed, second.inputs["scale"]) == (1, 1)
    assert (second.output, second.pictures) == (folder / "runs/deep/b.zarr", {"reference": folder / "mask.png"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected a JSON object, found Expecting property name"),
        ("[1]", "expected a JSON object"),
        ({"id": "a", "sed": 3}, "sed: expected one of id, output, inputs, seed"),
        ({"id": "a", "seed": "3"}, "seed: input should be a valid integer, found '3'"),
        ({"id": "a", "steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"id": "../a"}, "id: string should match pattern"),
        ({"id": "a", "inputs": [1]}, "inputs: input should be a valid dictionary"),
        ({"seed": 1}, "output: expected an output, or an id"),
        ({"id": "a", "inputs": {"image": "@none.png"}}, "inputs.image: there is no file"),
        ({"id": "a", "inputs": {"image": ["@scene.png", "@note.txt"]}}, "inputs.image: .*note.txt is no picture"),
        ({"id": "a", "mask": "none.png"}, "mask: there is no file"),
        ({"id": "a", "scene": "."}, "scene: .* cannot be read"),
        ({"output": "first.zarr"}, "is the output of .*jobs.jsonl:1 too"),
    ],
)
def test_what_is_no_job_is_refused_by_line_and_member(folder: Path, line: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"jobs\.jsonl:2: .*{message}"):
        listed(folder, {"id": "first"}, line)


def test_a_list_needs_jobs_in_utf8(folder: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        listed(folder, "", "")
    (folder / "jobs.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_jobs(folder / "jobs.jsonl", folder)


def test_what_is_at_an_output_is_seen(folder: Path) -> None:
    make_trace(folder / "runs/a.zarr")
    (folder / "runs/b.zarr").mkdir()
    (folder / "runs/b.zarr/precious").write_text("")
    (job,) = listed(folder, {"id": "a"})
    assert job.is_complete
    for line, message in (({"id": "a", "seed": 4}, "seed None, not 4"), ({"id": "b"}, "is not a trace")):
        with pytest.raises(TraceExistsError, match=message):
            listed(folder, line)
    assert issubclass(TraceExistsError, AttraceError)
