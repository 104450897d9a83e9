from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attrace.analysis.scores.ground_truth import places_of_box, places_on_grid
from attrace.demo.data import SIZE, SampleMaker
from attrace.demo.placement import frame_placement, mask_box, reference_position

POSITION = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
COORDINATES = torch.stack(
    [POSITION.expand(SIZE, SIZE), POSITION[:, None].expand(SIZE, SIZE), torch.zeros(SIZE, SIZE), torch.ones(SIZE, SIZE)]
)
"""A picture with alpha whose colours are its own coordinates: what is painted shows where every pixel came from."""


def off_the_edge(mask: Tensor) -> Tensor:
    """Where no pixel within two of it lies outside the mask: off the softened edge."""
    return F.max_pool2d(F.pad(1 - mask, (2, 2, 2, 2), value=1), 5, stride=1) == 0


@pytest.mark.parametrize("sprites", [None, COORDINATES[None]], ids=["made", "pictures"])
def test_the_same_seed_makes_the_same_samples(sprites: Tensor | None) -> None:
    first, second, third = (SampleMaker(seed, sprites=sprites).make(4) for seed in (3, 3, 4))
    assert all(torch.equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    assert not torch.equal(first.scene, third.scene)


def test_the_reference_position_is_where_the_painted_pixel_comes_from() -> None:
    box = torch.tensor([[10, 4, 50, 60], [3, 3, 61, 60], [30, 20, 60, 46]])
    placement = frame_placement(box, SIZE)
    rectangle = torch.tensor([[40.0, 0.0, 4.0]]).expand(3, -1)
    texture = COORDINATES[:3].expand(3, -1, -1, -1)
    samples = SampleMaker(0).place(texture, silhouette=rectangle, placement=placement)
    inside = off_the_edge(samples.mask)
    assert inside.sum() > 1000
    error = (samples.scene[:, :2] - reference_position(placement, SIZE)).abs()[inside.expand(-1, 2, -1, -1)]
    assert error.max() < 0.02


def test_turned_mirrored_and_covered_objects_show_where_they_come_from() -> None:
    samples = SampleMaker(0, sprites=COORDINATES[None]).make(64)
    inside = off_the_edge(samples.mask)
    error = (samples.scene[:, :2] - reference_position(samples.placement, SIZE)).abs()[inside.expand(-1, 2, -1, -1)]
    assert error.max() < 0.03
    linear = samples.placement[:, :, :2]
    assert (linear[:, 0, 1].abs() > 0.1).float().mean() > 0.5  # turned
    assert 0.2 < (torch.linalg.det(linear) < 0).float().mean() < 0.6  # mirrored
    whole = (reference_position(samples.placement, SIZE).abs() < 1).all(1, keepdim=True)
    shown = (samples.mask * whole).sum((1, 2, 3)) / whole.sum((1, 2, 3))
    assert shown.min() > 0.45
    assert 0.1 < (shown < 0.95).float().mean() < 0.5  # partly covered


def test_pictures_and_made_objects_are_mixed() -> None:
    samples = SampleMaker(0, sprites=COORDINATES[None], object_share=0.5).make(64)
    is_picture = [torch.equal(reference, COORDINATES[:3]) for reference in samples.reference]
    assert 16 < sum(is_picture) < 48


@pytest.mark.parametrize("size", [64, 128])
def test_the_box_of_the_mask_is_the_box_of_the_placement(size: int) -> None:
    samples = SampleMaker(1, size=size).make(64)
    assert samples.scene.shape[2:] == (size, size)
    torch.testing.assert_close(frame_placement(mask_box(samples.mask), size), samples.placement)


def test_the_model_does_not_see_the_object() -> None:
    samples = SampleMaker(2).make(2)
    assert samples.masked_scene[samples.mask.expand(-1, 3, -1, -1) == 1].abs().max() == 0


def test_the_true_places_are_those_that_scores_take() -> None:
    evaluate = pytest.importorskip("attrace.demo.evaluate")
    samples = SampleMaker(5).make(3)
    expected = evaluate.true_places(samples, (16, 16), (8, 8)).numpy()
    for mask, box, truth in zip(samples.mask[:, 0].numpy() > 0, mask_box(samples.mask).tolist(), expected, strict=True):
        left, top, right, bottom = box
        places = places_on_grid(places_of_box((top, left, bottom, right), (SIZE, SIZE), mask), (16, 16), (8, 8))
        np.testing.assert_allclose(places, truth, atol=1e-5)
