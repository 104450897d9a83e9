"""Reference-guided inpainting by joint attention: scene and reference in one sequence, as in the models of today."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from attrace.demo.data import SIZE
from attrace.demo.model import FREQUENCIES, PATCH, condition_channels, own_position_features, position_feature_count
from attrace.demo.pipeline import PATCH_CHANNELS, InpaintPipeline, ddim_scheduler

NEIGHBOURHOOD = 2 * PATCH
"""Rows and columns of pixels around a patch of the reference that its token of joint attention holds."""

POSITION_START = PATCH_CHANNELS + 4 * PATCH**2
"""Where the features of reference positions begin among the channels of a token: after the pixels of noisy patch,
masked scene and mask."""


class JointInpaintPipeline(InpaintPipeline):
    """Inpainting by a transformer with the patches of scene and reference in one sequence, as Flux Kontext has them.

    A token of the scene holds its noisy patch and its condition; a token of the reference its patch with the pixels
    around it and the features of its own place, in the channels of the scene's placement features. Positions are
    (0, row, column) in the scene and (1, row, column) in the reference. There is one empty text token.

    Parameters
    ----------
    transformer
        Denoiser of diffusers' Flux classes.
    scheduler
        Any diffusers scheduler with `prediction_type="sample"`.
    size
        Rows and columns of the pictures, in pixels.
    frequencies
        Octaves in the features of reference positions.
    """

    transformer: FluxTransformer2DModel

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        scheduler: SchedulerMixin,
        size: int = 2 * SIZE,
        frequencies: int = FREQUENCIES,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(size=size, frequencies=frequencies)

    @property
    def denoiser(self) -> FluxTransformer2DModel:
        """The transformer."""
        return self.transformer

    @property
    def size(self) -> int:
        """Rows and columns of the pictures, in pixels."""
        return int(self.config.size)

    @property
    def frequencies(self) -> int:
        """Octaves in the features of reference positions."""
        return int(self.config.frequencies)

    def encode(self, reference: Tensor) -> Tensor:
        """Tokens (sample, token, channel) of references (sample, 3, row, column)."""
        around = F.unfold(reference, NEIGHBOURHOOD, padding=(NEIGHBOURHOOD - PATCH) // 2, stride=PATCH)
        places = own_position_features(reference, self.frequencies).flatten(2).expand(len(reference), -1, -1)
        placed = F.pad(places, (0, 0, POSITION_START, 4))
        return torch.cat([placed, around, torch.ones_like(around[:, :1])], dim=1).transpose(1, 2)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        """The clean patches; see the base class."""
        scene = torch.cat([noisy, condition], dim=1).flatten(2).transpose(1, 2)
        scene = F.pad(scene, (0, tokens.shape[2] - scene.shape[2]))
        count, text, (rows, columns) = len(noisy), self.transformer.config.joint_attention_dim, noisy.shape[2:]
        clean: Tensor = self.transformer(
            hidden_states=torch.cat([scene, tokens], dim=1),
            encoder_hidden_states=noisy.new_zeros(count, 1, text),
            pooled_projections=noisy.new_zeros(count, self.transformer.config.pooled_projection_dim),
            timestep=timesteps.expand(count).to(noisy.dtype) / 1000,
            img_ids=torch.cat([_grid_ids(picture, rows, columns, noisy.device) for picture in (0, 1)]),
            txt_ids=noisy.new_zeros(1, 3),
        ).sample
        of_scene: Tensor = clean[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns))
        return of_scene


def build_joint_pipeline(
    *,
    layers: tuple[int, int] = (2, 3),
    heads: int = 4,
    head_channels: int = 32,
    size: int = 2 * SIZE,
    frequencies: int = FREQUENCIES,
) -> JointInpaintPipeline:
    """The demo's pipeline of joint attention with untrained weights, drawn from torch's global generator.

    Queries and keys of each layer start alike, and the features of reference positions start strong: from the first
    step on, what lies at like positions attends to each other, which such a network otherwise takes long to find.

    Parameters
    ----------
    layers
        Double and single blocks.
    heads
        Attention heads of every layer.
    head_channels
        Channels of a head: a multiple of 8.
    size
        Rows and columns of the pictures, in pixels.
    frequencies
        Octaves in the features of reference positions.
    """
    quarter = head_channels // 8 * 2
    transformer = FluxTransformer2DModel(
        in_channels=PATCH_CHANNELS + condition_channels(frequencies) + 3 * NEIGHBOURHOOD**2 + 1,
        out_channels=PATCH_CHANNELS,
        num_layers=layers[0],
        num_single_layers=layers[1],
        num_attention_heads=heads,
        attention_head_dim=head_channels,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(quarter, *2 * [(head_channels - quarter) // 2]),
    )
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        block.attn.to_k.load_state_dict(block.attn.to_q.state_dict())
    with torch.no_grad():
        transformer.x_embedder.weight[:, POSITION_START:].narrow(1, 0, position_feature_count(frequencies)).mul_(6)
    return JointInpaintPipeline(transformer, ddim_scheduler(), size, frequencies)


def _grid_ids(picture: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Position ids of the patches of a picture: (patch, 3) as picture, row, column."""
    axes = [torch.tensor([picture]), torch.arange(rows), torch.arange(columns)]
    return torch.cartesian_prod(*axes).float().to(device)
