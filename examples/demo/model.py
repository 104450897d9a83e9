"""The demo's networks beside diffusers' own: an encoder of the reference, and features of positions in it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from attrace.demo.placement import reference_position

PATCH = 4
"""Rows and columns of pixels in one patch; pixel-unshuffle by this factor stands in for a VAE."""

FREQUENCIES = 4
"""Octaves in the features of positions, unless a model has another number of its own."""


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
    def __init__(self, channels: int = 96, frequencies: int = FREQUENCIES, positions: bool = True) -> None:  # noqa: ARG002 read from the configuration
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
        content = self.content(self.patches(reference)).flatten(2).transpose(1, 2)
        if self.config.positions:
            features = own_position_features(reference, self.config.frequencies)
            content = content + self.position(features.flatten(2).transpose(1, 2))
        tokens: Tensor = self.norm(content)
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


def own_position_features(reference: Tensor, frequencies: int) -> Tensor:
    """Features of the centre of every patch of a reference: (1, feature, row / PATCH, column / PATCH)."""
    whole = torch.eye(2, 3, device=reference.device)[None]
    centres = reference_position(whole, reference.shape[-1] // PATCH).to(reference.dtype)
    return position_features(centres, frequencies)


def condition_channels(frequencies: int) -> int:
    """Number of channels that `scene_condition` gives."""
    return 4 * PATCH**2 + position_feature_count(frequencies) + 4


def scene_condition(masked_scene: Tensor, mask: Tensor, placement: Tensor, frequencies: int = FREQUENCIES) -> Tensor:
    """What a denoiser is told beside the noisy picture: masked scene, mask, and how the reference lies.

    Parameters
    ----------
    masked_scene
        (sample, 3, row, column) in [-1, 1], 0 under the mask.
    mask
        (sample, 1, row, column), 1 where to paint.
    placement
        How the reference lies in the scene: (sample, 2, 3), see `frame_placement`.
    frequencies
        Octaves in the features of the reference position.

    Returns
    -------
    Tensor
        (sample, channel, row / PATCH, column / PATCH): the pixels of the masked scene and of the mask, and inside the
        mask the features of the reference position of the patch and the linear part of the placement.
    """
    position = F.avg_pool2d(reference_position(placement, mask.shape[-1]).to(mask.dtype), PATCH)
    linear = placement[:, :, :2].to(mask.dtype).flatten(1)[:, :, None, None].expand(-1, -1, *position.shape[2:])
    told = torch.cat([position_features(position, frequencies), linear], dim=1) * F.max_pool2d(mask, PATCH)
    return torch.cat([F.pixel_unshuffle(masked_scene, PATCH), F.pixel_unshuffle(mask, PATCH), told], dim=1)
