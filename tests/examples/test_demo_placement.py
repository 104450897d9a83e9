from __future__ import annotations

import pytest
import torch

from attrace.demo.placement import frame_placement, mask_box, reference_position


def test_a_quarter_turn_and_a_mirror_image_by_hand() -> None:
    """A frame that fills the scene, turned clockwise: the scene's top right corner shows the reference's top left."""
    whole = torch.tensor([[0, 0, 8, 8]]).expand(4, -1)
    placement = frame_placement(
        whole, 8, angle=torch.tensor([0.0, 90, 0, 90]), mirrored=torch.tensor([False, False, True, True])
    )
    column, row = reference_position(placement, 8)[:, :, 0, 7].T  # at the top right
    edge = 7 / 8
    torch.testing.assert_close(column, edge * torch.tensor([1.0, -1, -1, 1]))
    torch.testing.assert_close(row, edge * torch.tensor([-1.0, -1, -1, -1]))


def test_the_edges_of_the_box_are_those_of_the_frame() -> None:
    position = reference_position(frame_placement(torch.tensor([[2, 1, 6, 7]]), 8), 8)[0]
    torch.testing.assert_close(position[0, 0], (torch.arange(8) + 0.5 - 2) / 2 - 1)
    torch.testing.assert_close(position[1, :, 0], (torch.arange(8) + 0.5 - 1) / 3 - 1)


def test_the_box_of_a_mask() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 2:5, 1] = mask[0, 0, 3, 1:7] = 1
    assert mask_box(mask).tolist() == [[1, 2, 7, 5]]


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="covers at least one pixel"):
        mask_box(torch.zeros(1, 1, 8, 8))
