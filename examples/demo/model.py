"""The demo's networks: an encoder of the reference and the placement features that tell the U-Net where it belongs."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

PATCH = 4
"""Rows and columns of pixels in one patch; pixel-unshuffle by this factor stands in for a VAE."""


class ReferenceEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Turns a reference picture into one token for each patch, with its position.

    Parameters
    ----------
    channels
        Size of a token.
    frequencies
        Number of octaves in the position features.
    positions
        Whether a token knows its place in the reference.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: int = 96, frequencies: int = 4, positions: bool = True) -> None:  # noqa: ARG002 read from the configuration
        super().__init__()
        self.patches = nn.PixelUnshuffle(PATCH)
        self.content = nn.Sequential(
            nn.Conv2d(3 * PATCH**2, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1),
        )
        self.position = nn.Linear(position_feature_count(frequencies), channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, reference: Tensor) -> Tensor:
        """Tokens of a reference.

        Parameters
        ----------
        reference
            float (sample, 3, row, column) in [-1, 1]; rows and columns are multiples of PATCH.

        Returns
        -------
        Tensor
            (sample, token, channels); tokens run over the rows of the patch grid.
        """
        content = self.content(self.patches(reference))
        if not self.config.positions:
            without_positions: Tensor = self.norm(content.flatten(2).transpose(1, 2))
            return without_positions
        rows, columns = content.shape[2:]
        row, column = (
            (torch.arange(count, device=reference.device, dtype=reference.dtype) + 0.5) * 2 / count - 1
            for count in (rows, columns)
        )
        centres = torch.stack([column[None, :].expand(rows, -1), row[:, None].expand(-1, columns)])[None]
        position = self.position(position_features(centres, self.config.frequencies).flatten(2).transpose(1, 2))
        tokens: Tensor = self.norm(content.flatten(2).transpose(1, 2) + position)
        return tokens


def position_feature_count(frequencies: int) -> int:
    """Number of channels that `position_features` gives."""
    return 2 + 4 * frequencies


def position_features(position: Tensor, frequencies: int) -> Tensor:
    """The position and its sines and cosines over octaves (as in NeRF, arXiv 2003.08934, section 5.1).

    Parameters
    ----------
    position
        (sample, 2, row, column) in [-1, 1].
    frequencies
        Number of octaves.

    Returns
    -------
    Tensor
        (sample, 2 + 4 * frequencies, row, column).
    """
    scaled = [position * (math.pi * 2**octave) for octave in range(frequencies)]
    return torch.cat([position, *(wave(angle) for angle in scaled for wave in (torch.sin, torch.cos))], dim=1)
