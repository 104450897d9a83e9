from __future__ import annotations

import numpy as np
import pytest
import torch

from attrace.analysis.scores.ground_truth import places_of_box, places_on_grid
from attrace.demo.data import SIZE, SampleMaker, mask_box, reference_position


def test_the_same_seed_makes_the_same_samples() -> None:
    first, second = SampleMaker(3).make(4), SampleMaker(3).make(4)
    assert torch.equal(first.scene, second.scene)
    assert not torch.equal(first.scene, SampleMaker(4).make(4).scene)


def test_the_reference_position_is_where_the_painted_pixel_comes_from() -> None:
    """A texture whose colours are its own coordinates shows, in the scene, the position every pixel came from."""
    position = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    texture = torch.stack([position.expand(SIZE, SIZE), position[:, None].expand(SIZE, SIZE), torch.zeros(SIZE, SIZE)])
    box = torch.tensor([[10, 4, 50, 60], [3, 3, 61, 60], [30, 20, 60, 46]])
    rectangle = torch.tensor([[40.0, 0.0, 4.0]]).expand(3, -1)
    samples = SampleMaker(0).place(texture.expand(3, -1, -1, -1), silhouette=rectangle, box=box)
    inside = torch.nn.functional.max_pool2d(1 - samples.mask, 5, stride=1, padding=2) == 0  # off the softened edge
    assert inside.sum() > 1000
    error = (samples.scene[:, :2] - reference_position(box)).abs()[inside.expand(-1, 2, -1, -1)]
    assert error.max() < 0.02


def test_the_box_of_the_mask_is_the_box_of_the_placement() -> None:
    samples = SampleMaker(1).make(64)
    assert torch.equal(mask_box(samples.mask), samples.box)


def test_the_model_does_not_see_the_object() -> None:
    samples = SampleMaker(2).make(2)
    assert samples.masked_scene[samples.mask.expand(-1, 3, -1, -1) == 1].abs().max() == 0


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="covers at least one pixel"):
        mask_box(torch.zeros(1, 1, 8, 8))


def test_the_true_places_are_those_that_scores_take() -> None:
    evaluate = pytest.importorskip("attrace.demo.evaluate")
    samples = SampleMaker(5).make(3)
    expected = evaluate.true_places(samples, (16, 16), (8, 8)).numpy()
    for mask, box, truth in zip(samples.mask[:, 0].numpy() > 0, samples.box.tolist(), expected, strict=True):
        left, top, right, bottom = box
        places = places_on_grid(places_of_box((top, left, bottom, right), (SIZE, SIZE), mask), (16, 16), (8, 8))
        np.testing.assert_allclose(places, truth, atol=1e-5)
