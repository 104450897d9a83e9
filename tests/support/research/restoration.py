"""Small U-Nets with the names and calls of PASD and SeeSR: diffusers' own attention where diffusers has none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import PIL.Image
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

WIDTH, HEADS = 8, 2


class Block(nn.Module):
    """Self-attention and cross-attention; in PASD's light variant another to the control picture."""

    def __init__(self, context_dim: int, *, plus: bool = False) -> None:
        super().__init__()
        of: dict[str, Any] = {"query_dim": WIDTH, "heads": HEADS, "dim_head": WIDTH // HEADS}
        self.attn1 = Attention(**of)
        self.attn2 = Attention(**of, cross_attention_dim=context_dim)
        self.attn2_plus = Attention(**of, cross_attention_dim=WIDTH) if plus else None

    def forward(self, hidden: Tensor, context: Tensor, pixels: Tensor | None = None) -> Tensor:
        hidden = hidden + self.attn1(hidden, encoder_hidden_states=None)
        hidden = hidden + self.attn2(hidden, encoder_hidden_states=context)
        if self.attn2_plus is not None:
            hidden = hidden + self.attn2_plus(hidden, encoder_hidden_states=pixels)
        return hidden


class Transformer2DModel(nn.Module):
    """A picture as tokens, and back."""

    def __init__(self, context_dim: int, *, plus: bool = False) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block(context_dim, plus=plus)])

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, pixels: Tensor | None = None) -> Tensor:
        tokens = hidden_states.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states, pixels)
        out: Tensor = tokens.transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        return out


class UpBlock(nn.Module):
    """`attentions`, and beside them what the family adds."""

    def __init__(self, text_dim: int, family: str) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Transformer2DModel(text_dim, plus=family == "pasd-light")])
        if family == "pasd":
            self.pixel_attentions = nn.ModuleList([Transformer2DModel(WIDTH)])
        if family == "seesr":
            self.image_attentions = nn.ModuleList([Transformer2DModel(6)])

    def forward(self, hidden: Tensor, text: Tensor, reference: Tensor) -> Tensor:
        hidden = self.attentions[0](hidden, text, reference)
        for added in (*getattr(self, "pixel_attentions", ()), *getattr(self, "image_attentions", ())):
            hidden = added(hidden, reference)
        return hidden


class UNet2DConditionModel(nn.Module):
    """Two up blocks: at half the size, and at full size."""

    def __init__(self, family: str, text_dim: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.family = family
        self.conv_in = nn.Conv2d(4, WIDTH, 3, stride=2, padding=1)
        self.up_blocks = nn.ModuleList([UpBlock(text_dim, family), UpBlock(text_dim, family)])
        self.conv_out = nn.Conv2d(WIDTH, 4, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pixelwise_hidden_states: tuple[Tensor, ...] = (),
        image_encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        hidden = self.conv_in(sample) * (1 + timestep / 1000)
        for place, block in enumerate(self.up_blocks):
            if place:
                hidden = nn.functional.interpolate(hidden, scale_factor=2.0)
            if self.family == "seesr":
                reference = image_encoder_hidden_states
            else:
                reference = pixelwise_hidden_states[place].flatten(2).transpose(1, 2)
            hidden = block(hidden, encoder_hidden_states, reference)
        out: Tensor = self.conv_out(hidden)
        return out


class StableDiffusionControlNetPipeline:
    """Calls its networks as the pipelines of PASD and SeeSR do: for each tile of a large picture, in guess mode the
    control network for the conditional branch alone."""

    def __init__(self, family: str) -> None:
        self.unet, self.controlnet = UNet2DConditionModel(family), UNet2DConditionModel(family)
        self.scheduler: Any = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,  # noqa: ARG002
        image: PIL.Image.Image,
        num_inference_steps: int = 2,
        guidance_scale: float = 5.0,
        guess_mode: bool = False,
        tile_size: int | None = None,
    ) -> SimpleNamespace:
        do_classifier_free_guidance = guidance_scale > 1
        rows, columns = image.height // 8, image.width // 8
        random = torch.Generator().manual_seed(0)
        latents, text = torch.randn(1, 4, rows, columns, generator=random), torch.randn(2, 9, 10, generator=random)
        for t in torch.linspace(999, 1, num_inference_steps):
            noise = torch.zeros_like(latents)
            tile = tile_size or max(rows, columns)
            if tile_size is not None:
                grid_rows, grid_cols = -(-rows // tile), -(-columns // tile)  # noqa: F841
            for top in range(0, rows, tile):
                for left in range(0, columns, tile):
                    if tile_size is not None:
                        input_start_y, input_start_x = top, left  # noqa: F841
                    part = latents[:, :, top : top + tile, left : left + tile]
                    both = torch.cat([part] * 2) if do_classifier_free_guidance else part
                    of_control = part if guess_mode else both
                    self._call(self.controlnet, of_control, t, text)
                    out = self._call(self.unet, both, t, text)
                    noise[:, :, top : top + tile, left : left + tile] = out.mean(0, keepdim=True)
            latents = latents - 0.1 * noise
        pixels = nn.functional.interpolate(latents[:, :3].sigmoid(), scale_factor=8.0)[0]
        array = (255 * pixels).byte().permute(1, 2, 0).numpy()
        return SimpleNamespace(images=[PIL.Image.fromarray(array)])

    def _call(self, network: UNet2DConditionModel, sample: Tensor, t: Tensor, text: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(int(t))
        count, (rows, columns) = len(sample), sample.shape[2:]
        pixels = tuple(torch.randn(count, WIDTH, rows // size, columns // size, generator=random) for size in (2, 1))
        out: Tensor = network(sample, t, text[-count:], pixels, torch.randn(count, 145, 6, generator=random))
        return nn.functional.interpolate(out, size=(rows, columns))
