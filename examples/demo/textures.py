"""Made and photographed textures, from one source of random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Textures:
    """Draws textures: float32 (3, size, size) in [-1, 1].

    Parameters
    ----------
    random
        The source.
    photographs
        float32 pictures in [-1, 1], each (3, rows, columns), to cut from; none is allowed.
    size
        Rows and columns of a texture.
    """

    def __init__(self, random: torch.Generator, photographs: Sequence[Tensor], size: int) -> None:
        self._random = random
        self._photographs = list(photographs)
        self._size = size

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Evenly distributed numbers."""
        return low + (high - low) * torch.rand(shape, generator=self._random)

    def integer(self, low: int, high: int) -> int:
        """An integer, the higher end excluded."""
        return int(torch.randint(low, high, (1,), generator=self._random))

    def mixed(self) -> Tensor:
        """Blocks, natural-image noise, stripes, or a crop of a photograph."""
        makers = [self.blocks, self.natural_noise, self.stripes]
        if self._photographs:
            makers += [self.photograph, self.photograph]
        return makers[self.integer(0, len(makers))]()

    def natural(self) -> Tensor:
        """A crop of a photograph, or natural-image noise."""
        return self.photograph() if self._photographs and self.integer(0, 2) else self.natural_noise()

    def blocks(self) -> Tensor:
        """Squares of random colours."""
        cells = self.integer(3, 10)
        shape = (self._size, self._size)
        return F.interpolate(self.uniform(1, 3, cells, cells, low=-1), size=shape, mode="nearest")[0]

    def natural_noise(self, low: float = 1.0, high: float = 2.0, contrast: float = 0.35) -> Tensor:
        """Noise whose spectrum falls as 1 / frequency ** a, as that of natural images does (a near 1)."""
        size = self._size
        frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :])
        frequency[0, 0] = 1
        steepness = float(self.uniform(1, low=low, high=high))
        white = torch.fft.rfft2(torch.randn(3, size, size, generator=self._random))
        noise = torch.fft.irfft2(white / frequency**steepness, s=(size, size))
        noise = noise / noise.std(dim=(1, 2), keepdim=True)
        colours = torch.randn(3, 3, generator=self._random) * contrast
        mean = self.uniform(3, 1, 1, low=-0.5, high=0.5)
        return (torch.einsum("dc,cij->dij", colours, noise) + mean).clamp(-1, 1)

    def stripes(self) -> Tensor:
        """Waves between two colours, of any direction."""
        angle, phase = float(self.uniform(1, high=math.pi)), float(self.uniform(1, high=2 * math.pi))
        waves = float(self.uniform(1, low=2, high=7))
        position = torch.linspace(0, 1, self._size)
        wave = torch.sin(
            2 * math.pi * waves * (math.cos(angle) * position[None] + math.sin(angle) * position[:, None]) + phase
        )
        wave = torch.tanh(wave * float(self.uniform(1, low=1, high=6)))
        first, second = self.uniform(2, 3, 1, 1, low=-1)
        tilt = self.uniform(3, 1, 1, low=-0.5, high=0.5) * (position[:, None] - 0.5)
        stripes: Tensor = first + (second - first) * (wave + 1) / 2 + tilt
        return stripes.clamp(-1, 1)

    def photograph(self) -> Tensor:
        """A crop of a photograph, perhaps mirrored, its channels exchanged and its contrast changed."""
        photograph = self._photographs[self.integer(0, len(self._photographs))]
        rows, columns = photograph.shape[1:]
        side = self.integer(self._size, max(self._size + 1, min(rows, columns) * 3 // 4))
        top, left = self.integer(0, rows - side + 1), self.integer(0, columns - side + 1)
        crop = photograph[:, top : top + side, left : left + side]
        crop = F.interpolate(crop[None], size=(self._size, self._size), mode="bilinear", antialias=True)[0]
        if self.integer(0, 2):
            crop = crop.flip(2)
        crop = crop[torch.randperm(3, generator=self._random)]
        gain = self.uniform(3, 1, 1, low=0.8, high=1.3)
        return (crop * gain + self.uniform(3, 1, 1, low=-0.2, high=0.2)).clamp(-1, 1)
