"""Samples whose true correspondence is known: an object, a scene it was pasted into, and where every pixel came from.

A sample is made, not photographed: an object on a backdrop is the reference; the same object, moved, scaled, turned,
mirrored and partly covered, is painted into a scene; the mask is what can be seen of it there. The model sees the scene
without the object. Because the placement is an affine map, the reference position of every pixel in the mask is known
exactly: `attrace.demo.placement.reference_position`.

Objects are pictures with alpha (`attrace.demo.objects`), or made: a random silhouette filled with random blocks,
natural-image noise, stripes or a crop of a photograph. Without pictures, made objects are only moved and scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from attrace.demo.placement import frame_placement, reference_position
from attrace.demo.textures import Textures

SIZE = 64
"""Rows and columns of the bundled model's pictures, in pixels."""

FINE = 2
"""Pictures are painted this many times finer, then averaged: antialiasing."""

VISIBLE = 0.02
"""Share of a pixel from which on it counts as covered by an object."""


@dataclass(frozen=True)
class Samples:
    """A batch of made samples; pictures are float32 in [-1, 1] with dims (sample, channel, row, column)."""

    reference: Tensor
    """The object on a backdrop, filling the frame: (sample, 3, size, size)."""
    scene: Tensor
    """The truth: the object painted into the scene, (sample, 3, size, size)."""
    mask: Tensor
    """1 where the object covers the scene and nothing covers the object, else 0: (sample, 1, size, size)."""
    placement: Tensor
    """How the reference lies in the scene: float32 (sample, 2, 3), see `frame_placement`."""
    object_mask: Tensor
    """1 where the object covers the reference, else 0: (sample, 1, size, size)."""

    @property
    def masked_scene(self) -> Tensor:
        """The scene with mid grey (0) under the mask: what the model may see of it."""
        return self.scene * (1 - self.mask)

    @property
    def size(self) -> int:
        """Rows and columns of every picture, in pixels."""
        return self.scene.shape[-1]

    def part(self, which: slice) -> Samples:
        """Some of the samples."""
        return Samples(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


class SampleMaker:
    """Makes batches of samples from a seed.

    Parameters
    ----------
    seed
        Same seed, same samples.
    photographs
        float32 pictures in [-1, 1], each (3, rows, columns), to take natural textures from; none is allowed.
    sprites
        Pictures of objects, (object, 4, size, size), as `Objects.sprites` gives them. Without, every object is made.
    object_share
        Share of samples that show one of the pictures, where there are any.
    size
        Rows and columns of every picture.
    """

    def __init__(
        self,
        seed: int,
        photographs: Sequence[Tensor] = (),
        *,
        sprites: Tensor | None = None,
        object_share: float = 1.0,
        size: int = SIZE,
    ) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._textures = Textures(self._random, photographs, size)
        self._sprites = sprites
        self._object_share = object_share
        self._size = size

    def make(self, count: int) -> Samples:
        """`count` samples."""
        if self._sprites is not None:
            return self._arrange(count, self._sprites)
        textures = self._mixed_textures(count)
        silhouette = self._silhouettes(count)
        return self.place(textures, silhouette=silhouette, placement=frame_placement(self._boxes(count), self._size))

    def place(self, textures: Tensor, *, silhouette: Tensor, placement: Tensor) -> Samples:
        """Samples with the given textures (sample, 3, size, size), silhouettes and placements."""
        count = textures.shape[0]
        backdrop = self._uniform(count, 3, 1, 1, low=0.55, high=0.95).expand_as(textures)
        object_cover = _cover(silhouette, _whole_frame(count), self._size)
        reference = object_cover * textures + (1 - object_cover) * backdrop
        cover = _cover(silhouette, placement, self._size)
        backgrounds = torch.stack([self._textures.natural_noise(1.6, 2.4, contrast=0.12) for _ in range(count)])
        scene = cover * _paint(textures, placement) + (1 - cover) * backgrounds
        return Samples(reference, scene, (cover > 0).float(), placement, (object_cover > 0.5).float())

    def _arrange(self, count: int, pictures: Tensor) -> Samples:
        """Objects, most of them turned, many mirrored and some partly covered, over natural and made textures."""
        sprites = self._some_sprites(count, pictures)
        placement = self._placements(count)
        colours, alpha = _paint(sprites, placement, padding="zeros").split([3, 1], dim=1)
        cover = self._covers(alpha)
        scene = colours + (1 - alpha) * self._backgrounds(count)
        scene = cover * self._mixed_textures(count) + (1 - cover) * scene
        reference = sprites[:, :3] + (1 - sprites[:, 3:]) * self._backdrops(count)
        mask = ((alpha > VISIBLE) & (cover == 0)).float()
        return Samples(reference, scene, mask, placement, (sprites[:, 3:] > 0.5).float())

    def _some_sprites(self, count: int, pictures: Tensor) -> Tensor:
        shown = int((self._uniform(count) < self._object_share).sum())
        chosen = pictures[torch.randint(0, len(pictures), (shown,), generator=self._random)]
        if shown == count:
            return chosen
        alpha = _cover(self._silhouettes(count - shown), _whole_frame(count - shown), self._size)
        made = torch.cat([self._mixed_textures(count - shown) * alpha, alpha], dim=1)
        return torch.cat([chosen, made])

    def _placements(self, count: int) -> Tensor:
        """Frames of half to nearly all of the scene's side, three quarters of them turned by up to 45 degrees."""
        width = self._size * self._uniform(count, low=0.5, high=0.95)
        height = (width * self._uniform(count, low=0.85, high=1.18)).clamp(max=self._size)
        left = self._uniform(count) * (self._size - width)
        top = self._uniform(count) * (self._size - height)
        turned = self._uniform(count) < 0.75
        return frame_placement(
            torch.stack([left, top, left + width, top + height], dim=1),
            self._size,
            angle=self._uniform(count, low=-45, high=45) * turned,
            mirrored=(self._uniform(count) < 0.5) & turned,
        )

    def _covers(self, alpha: Tensor) -> Tensor:
        """Share of each pixel that something in front covers, in a third of the samples, never most of the object."""
        count = len(alpha)
        side = self._size * self._uniform(count, 2, low=0.25, high=0.6)
        start = self._uniform(count, 2) * (self._size - side)
        placement = frame_placement(
            torch.cat([start, start + side], dim=1), self._size, angle=self._uniform(count, low=-45, high=45)
        )
        cover = _cover(self._silhouettes(count), placement, self._size)
        visible = (alpha * (1 - cover)).sum((1, 2, 3)) / alpha.sum((1, 2, 3))
        covered = (self._uniform(count) < 1 / 3) & (visible > 0.5)
        return cover * covered[:, None, None, None]

    def _backgrounds(self, count: int) -> Tensor:
        return torch.stack([self._textures.natural() for _ in range(count)])

    def _backdrops(self, count: int) -> Tensor:
        """Plain colours, and soft textures in every third sample."""
        plain = self._uniform(count, 3, 1, 1, low=-0.9, high=0.95).repeat(1, 1, self._size, self._size)
        for number in range(0, count, 3):
            plain[number] = self._textures.natural_noise(1.4, 2.2, contrast=0.2)
        return plain[torch.randperm(count, generator=self._random)]

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._textures.uniform(*shape, low=low, high=high)

    def _boxes(self, count: int) -> Tensor:
        unit = self._size // 64
        width = torch.randint(26 * unit, 53 * unit, (count,), generator=self._random)
        aspect = self._uniform(count, low=0.8, high=1.25)
        height = (width * aspect).round().long().clamp(24 * unit, 54 * unit)
        left = (self._uniform(count) * (self._size - width + 1)).long()
        top = (self._uniform(count) * (self._size - height + 1)).long()
        return torch.stack([left, top, left + width, top + height], dim=1)

    def _silhouettes(self, count: int) -> Tensor:
        """Parameters of the silhouettes: exponent of a superellipse, and depth and number of its dents.

        The dents leave the outline on the axes, so that a silhouette always touches the four sides of its frame.
        """
        exponent = torch.tensor([2.0, 3.0, 6.0, 40.0])[torch.randint(0, 4, (count,), generator=self._random)]
        depth = self._uniform(count, high=0.3) * (self._uniform(count) < 0.5)
        dents = torch.tensor([4.0, 8.0])[torch.randint(0, 2, (count,), generator=self._random)]
        return torch.stack([exponent, depth, dents], dim=1)

    def _mixed_textures(self, count: int) -> Tensor:
        return torch.stack([self._textures.mixed() for _ in range(count)])


def _whole_frame(count: int) -> Tensor:
    """The placement of a reference that is the scene."""
    return torch.eye(2, 3).expand(count, -1, -1)


def _cover(silhouette: Tensor, placement: Tensor, size: int) -> Tensor:
    """Share of each pixel that a silhouette covers: float32 (sample, 1, size, size)."""
    exponent, depth, dents = silhouette[:, :, None, None].unbind(1)
    column, row = reference_position(placement, size * FINE).unbind(1)
    radius = (column.abs() ** exponent + row.abs() ** exponent) ** (1 / exponent)
    edge = 1 - depth * (0.5 - 0.5 * torch.cos(dents * torch.atan2(row, column)))
    inside = (radius <= edge).float()[:, None]
    return F.avg_pool2d(inside, FINE)


def _paint(pictures: Tensor, placement: Tensor, *, padding: str = "border") -> Tensor:
    """Pictures (sample, channel, size, size) as they lie in the scene, with antialiasing; of the same shape."""
    grid = reference_position(placement, pictures.shape[-1] * FINE).permute(0, 2, 3, 1)
    fine_scene = F.grid_sample(pictures, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return F.avg_pool2d(fine_scene, FINE)
