"""How the reference lies in the scene: an affine map, so that the true place of every painted pixel is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_placement(box: Tensor, size: int, *, angle: Tensor | float = 0.0, mirrored: Tensor | bool = False) -> Tensor:
    """Placement of a reference whose frame lies on a box of the scene, mirrored and turned about the box's centre.

    Parameters
    ----------
    box
        Left, top, right, bottom in pixels of the scene: (sample, 4).
    size
        Rows and columns of the scene.
    angle
        Clockwise turn in degrees, one for all samples or (sample).
    mirrored
        Whether left and right of the reference are exchanged before the turn, one for all samples or (sample).

    Returns
    -------
    Tensor
        float32 (sample, 2, 3): the column and row position in the reference as affine functions of the column
        position, the row position and 1 in the scene; every position is -1 at one edge and 1 at the opposite one
        (as `torch.nn.functional.affine_grid` takes it).
    """
    left, top, right, bottom = box.to(torch.float32).unbind(1)
    centre = torch.stack([left + right, top + bottom], dim=1) / size - 1
    turn = torch.deg2rad(torch.as_tensor(angle, dtype=torch.float32, device=box.device)).expand_as(left)
    side = 1 - 2 * torch.as_tensor(mirrored, device=box.device).float()
    across, down = side * size / (right - left), size / (bottom - top)
    linear = torch.stack(
        [across * turn.cos(), across * turn.sin(), -down * turn.sin(), down * turn.cos()], dim=1
    ).unflatten(1, (2, 2))
    return torch.cat([linear, -linear @ centre[:, :, None]], dim=2)


def reference_position(placement: Tensor, size: int) -> Tensor:
    """Reference position of every scene pixel centre, -1 at the frame's left and top edge and 1 at the opposite one.

    Parameters
    ----------
    placement
        (sample, 2, 3), as `frame_placement` gives it.
    size
        Rows and columns of the scene.

    Returns
    -------
    Tensor
        float32 (sample, 2, size, size); channel 0 is the column position, channel 1 the row position. Pixels outside
        the frame lie outside [-1, 1].
    """
    shape = [placement.shape[0], 1, size, size]
    return F.affine_grid(placement.float(), shape, align_corners=False).permute(0, 3, 1, 2)


def mask_box(mask: Tensor) -> Tensor:
    """Bounding box of each mask, in pixels: int64 (sample, 4) as left, top, right, bottom (ends excluded).

    Raises
    ------
    ValueError
        If a mask is empty.
    """
    covered = mask[:, 0] > 0.5
    if not bool(covered.flatten(1).any(1).all()):
        raise ValueError("expected a mask that covers at least one pixel, found an empty one: paint white what to fill")
    columns, rows = covered.any(1).int(), covered.any(2).int()

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return line.argmax(1), line.shape[1] - line.flip(1).argmax(1)

    (left, right), (top, bottom) = ends(columns), ends(rows)
    return torch.stack([left, top, right, bottom], dim=1)
