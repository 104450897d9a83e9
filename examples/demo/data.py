"""Samples whose true correspondence is known: an object, a scene it was pasted into, and where every pixel came from.

A sample is made, not photographed: a textured object (random blocks, natural-image noise, stripes or a crop of a
photograph) with a random silhouette is the reference; the same object, moved and scaled, is painted into a scene;
the mask is its silhouette there. The model sees the scene without the object. Because the placement is an axis
aligned box, the reference position of every pixel in the mask is known exactly: `Samples.reference_position`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64
"""Rows and columns of every picture, in pixels."""

FINE = 2
"""Pictures are painted this many times finer, then averaged: antialiasing."""


@dataclass(frozen=True)
class Samples:
    """A batch of made samples; pictures are float32 in [-1, 1] with dims (sample, channel, row, column)."""

    reference: Tensor
    """The object on a plain backdrop, filling the frame: (sample, 3, SIZE, SIZE)."""
    scene: Tensor
    """The truth: the object painted into the scene, (sample, 3, SIZE, SIZE)."""
    mask: Tensor
    """1 where the object covers the scene, else 0: (sample, 1, SIZE, SIZE)."""
    box: Tensor
    """Where the frame of the reference lies in the scene, in pixels: int64 (sample, 4) as left, top, right, bottom."""
    object_mask: Tensor
    """1 where the object covers the reference, else 0: (sample, 1, SIZE, SIZE)."""

    @property
    def masked_scene(self) -> Tensor:
        """The scene with mid grey (0) under the mask: what the model may see of it."""
        return self.scene * (1 - self.mask)

    def part(self, which: slice) -> Samples:
        """Some of the samples."""
        return Samples(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def reference_position(box: Tensor, size: int = SIZE) -> Tensor:
    """Reference position of every scene pixel centre, -1 at the frame's left and top edge and 1 at the opposite one.

    Parameters
    ----------
    box
        Left, top, right, bottom in pixels of the scene: (sample, 4).
    size
        Rows and columns of the scene.

    Returns
    -------
    Tensor
        float32 (sample, 2, size, size); channel 0 is the column position, channel 1 the row position. Pixels outside
        the box lie outside [-1, 1].
    """
    left, top, right, bottom = box.to(torch.float32).unbind(1)
    centre = torch.arange(size, dtype=torch.float32, device=box.device) + 0.5
    column = 2 * (centre - left[:, None]) / (right - left)[:, None] - 1
    row = 2 * (centre - top[:, None]) / (bottom - top)[:, None] - 1
    return torch.stack([column[:, None, :].expand(-1, size, -1), row[:, :, None].expand(-1, -1, size)], dim=1)


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


class SampleMaker:
    """Makes batches of samples from a seed.

    Parameters
    ----------
    seed
        Same seed, same samples.
    photographs
        float32 pictures in [-1, 1], each (3, rows, columns), to take natural textures from; none is allowed.
    """

    def __init__(self, seed: int, photographs: Sequence[Tensor] = ()) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._photographs = list(photographs)

    def make(self, count: int) -> Samples:
        """`count` samples."""
        textures = self._textures(count)
        return self.place(textures, silhouette=self._silhouettes(count), box=self._boxes(count))

    def place(self, textures: Tensor, *, silhouette: Tensor, box: Tensor) -> Samples:
        """Samples with the given textures (sample, 3, SIZE, SIZE), silhouettes and placement boxes."""
        count = textures.shape[0]
        backdrop = self._uniform(count, 3, 1, 1, low=0.55, high=0.95).expand(-1, -1, SIZE, SIZE)
        frame = torch.tensor([[0, 0, SIZE, SIZE]]).expand(count, -1)
        object_cover = _cover(silhouette, frame)
        reference = object_cover * textures + (1 - object_cover) * backdrop
        cover = _cover(silhouette, box)
        scene = cover * _paint(textures, box) + (1 - cover) * self._backgrounds(count)
        return Samples(reference, scene, (cover > 0).float(), box, (object_cover > 0.5).float())

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._random)

    def _integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self._random))

    def _boxes(self, count: int) -> Tensor:
        width = torch.randint(26, 53, (count,), generator=self._random)
        aspect = self._uniform(count, low=0.8, high=1.25)
        height = (width * aspect).round().long().clamp(24, 54)
        left = (self._uniform(count) * (SIZE - width + 1)).long()
        top = (self._uniform(count) * (SIZE - height + 1)).long()
        return torch.stack([left, top, left + width, top + height], dim=1)

    def _silhouettes(self, count: int) -> Tensor:
        """Parameters of the silhouettes: exponent of a superellipse, and depth and number of its dents.

        The dents leave the outline on the axes, so that a silhouette always touches the four sides of its frame.
        """
        exponent = torch.tensor([2.0, 3.0, 6.0, 40.0])[torch.randint(0, 4, (count,), generator=self._random)]
        depth = self._uniform(count, high=0.3) * (self._uniform(count) < 0.5)
        dents = torch.tensor([4.0, 8.0])[torch.randint(0, 2, (count,), generator=self._random)]
        return torch.stack([exponent, depth, dents], dim=1)

    def _textures(self, count: int) -> Tensor:
        makers = [self._blocks, self._natural_noise, self._stripes]
        if self._photographs:
            makers += [self._photograph, self._photograph]
        return torch.stack([makers[self._integer(0, len(makers))]() for _ in range(count)])

    def _blocks(self) -> Tensor:
        cells = self._integer(3, 10)
        return F.interpolate(self._uniform(1, 3, cells, cells, low=-1), size=(SIZE, SIZE), mode="nearest")[0]

    def _natural_noise(self, low: float = 1.0, high: float = 2.0, contrast: float = 0.35) -> Tensor:
        """Noise whose spectrum falls as 1 / frequency ** a, as that of natural images does (a near 1)."""
        frequency = torch.hypot(torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None, :])
        frequency[0, 0] = 1
        steepness = float(self._uniform(1, low=low, high=high))
        white = torch.fft.rfft2(torch.randn(3, SIZE, SIZE, generator=self._random))
        noise = torch.fft.irfft2(white / frequency**steepness, s=(SIZE, SIZE))
        noise = noise / noise.std(dim=(1, 2), keepdim=True)
        colours = torch.randn(3, 3, generator=self._random) * contrast
        mean = self._uniform(3, 1, 1, low=-0.5, high=0.5)
        return (torch.einsum("dc,cij->dij", colours, noise) + mean).clamp(-1, 1)

    def _stripes(self) -> Tensor:
        angle, phase = float(self._uniform(1, high=math.pi)), float(self._uniform(1, high=2 * math.pi))
        waves = float(self._uniform(1, low=2, high=7))
        position = torch.linspace(0, 1, SIZE)
        wave = torch.sin(
            2 * math.pi * waves * (math.cos(angle) * position[None] + math.sin(angle) * position[:, None]) + phase
        )
        wave = torch.tanh(wave * float(self._uniform(1, low=1, high=6)))
        first, second = self._uniform(2, 3, 1, 1, low=-1)
        tilt = self._uniform(3, 1, 1, low=-0.5, high=0.5) * (position[:, None] - 0.5)
        stripes: Tensor = first + (second - first) * (wave + 1) / 2 + tilt
        return stripes.clamp(-1, 1)

    def _photograph(self) -> Tensor:
        photograph = self._photographs[self._integer(0, len(self._photographs))]
        rows, columns = photograph.shape[1:]
        side = self._integer(SIZE, max(SIZE + 1, min(rows, columns) * 3 // 4))
        top, left = self._integer(0, rows - side + 1), self._integer(0, columns - side + 1)
        crop = photograph[:, top : top + side, left : left + side]
        crop = F.interpolate(crop[None], size=(SIZE, SIZE), mode="bilinear", antialias=True)[0]
        if self._integer(0, 2):
            crop = crop.flip(2)
        crop = crop[torch.randperm(3, generator=self._random)]
        gain = self._uniform(3, 1, 1, low=0.8, high=1.3)
        return (crop * gain + self._uniform(3, 1, 1, low=-0.2, high=0.2)).clamp(-1, 1)

    def _backgrounds(self, count: int) -> Tensor:
        return torch.stack([self._natural_noise(1.6, 2.4, contrast=0.12) for _ in range(count)])


def _cover(silhouette: Tensor, box: Tensor) -> Tensor:
    """Share of each pixel that the silhouette covers when its frame is the box: float32 (sample, 1, SIZE, SIZE)."""
    position = reference_position(box * FINE, SIZE * FINE)
    exponent, depth, dents = silhouette[:, :, None, None].unbind(1)
    column, row = position.unbind(1)
    radius = (column.abs() ** exponent + row.abs() ** exponent) ** (1 / exponent)
    edge = 1 - depth * (0.5 - 0.5 * torch.cos(dents * torch.atan2(row, column)))
    inside = (radius <= edge).float()[:, None]
    return F.avg_pool2d(inside, FINE)


def _paint(textures: Tensor, box: Tensor) -> Tensor:
    """The textures, stretched over their boxes with antialiasing: (sample, 3, SIZE, SIZE)."""
    grid = reference_position(box * FINE, SIZE * FINE).permute(0, 2, 3, 1)
    fine_scene = F.grid_sample(textures, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(fine_scene, FINE)
