from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from attrace.demo.data import SIZE, SampleMaker
from attrace.recorder.jobs.joblist import read_jobs

samples = pytest.importorskip("attrace.demo.samples")


def test_samples_are_pictures_and_jobs_with_the_truth_beside_them(tmp_path: Path) -> None:
    made = SampleMaker(5).make(2)
    path = samples.write_samples(made, tmp_path / "samples")
    first, second = read_jobs(path, tmp_path / "runs")
    assert (first.output, first.seed, second.seed) == (tmp_path / "runs/000.zarr", 0, 1)
    inputs, pictures = second.load()
    assert set(inputs) == {"image", "mask_image", "reference_image"}
    assert inputs["image"].size == (SIZE, SIZE)
    assert pictures["reference"] is inputs["reference_image"]
    mask = made.mask[1, 0].numpy() > 0
    assert np.array_equal(np.asarray(inputs["mask_image"]) > 127, mask)
    shown = np.asarray(inputs["image"])[mask]
    assert (shown == 128).all()  # what is to be painted is not shown
    with PIL.Image.open(tmp_path / "samples/001-truth.png") as truth:
        expected = (made.scene[1].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(np.asarray(truth) - expected).max() <= 0.5
    with PIL.Image.open(tmp_path / "samples/001-object.png") as found:
        assert np.array_equal(np.asarray(found) > 127, made.object_mask[1, 0].numpy() > 0.5)
