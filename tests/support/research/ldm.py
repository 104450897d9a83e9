"""Small networks with the names and calls of the original latent diffusion code and of what was built on it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Attention by einsum; keeps its probabilities, (row, head, query, key), for tests to compare with."""

    def __init__(self, query_dim: int, context_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.scale, self.heads = dim_head**-0.5, heads
        self.to_q = nn.Linear(query_dim, heads * dim_head, bias=False)
        self.to_k = nn.Linear(context_dim, heads * dim_head, bias=False)
        self.to_v = nn.Linear(context_dim, heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, query_dim), nn.Dropout(0.0))
        self.probabilities: list[Tensor] = []

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        context = x if context is None else context
        query, key, value = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        shares = (torch.einsum("bhid,bhjd->bhij", query, key) * self.scale).softmax(dim=-1)
        self.probabilities.append(shares.detach())
        out: Tensor = self.to_out(torch.einsum("bhij,bhjd->bhid", shares, value).transpose(1, 2).flatten(2))
        return out


class MemoryEfficientCrossAttention(CrossAttention):
    """As the original makes it for xformers: heads folded into the rows, no `scale`."""

    def __init__(self, query_dim: int, context_dim: int, heads: int, dim_head: int) -> None:
        super().__init__(query_dim, context_dim, heads, dim_head)
        self.dim_head = dim_head
        del self.scale

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        context = x if context is None else context
        query, key, value = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
            for one in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(query, key, value).unflatten(0, (-1, self.heads))
        result: Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return result


class BasicTransformerBlock(nn.Module):
    """Attention to itself, then to the context."""

    def __init__(self, dim: int, context_dim: int, heads: int, kind: type[CrossAttention]) -> None:
        super().__init__()
        self.attn1 = kind(dim, dim, heads, dim // heads)
        self.attn2 = kind(dim, context_dim, heads, dim // heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        out: Tensor = self.attn2(self.norm2(x), context=context) + x
        return out


class SpatialTransformer(nn.Module):
    """A picture as tokens, and back."""

    def __init__(
        self, channels: int, context_dim: int, heads: int = 2, kind: type[CrossAttention] = CrossAttention
    ) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, context_dim, heads, kind)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context=context)
        out: Tensor = tokens.transpose(1, 2).unflatten(2, x.shape[2:]) + x
        return out


class CustomSpatialTransformer(SpatialTransformer):
    """StableVITON's: the context is a picture of the same size; its loss comes back too."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        assert context is not None
        return super().forward(x, context.flatten(2).transpose(1, 2)), 0.0


class TimestepEmbedSequential(nn.Sequential):
    """Gives the context to the layers that take it."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


class UNetModel(nn.Module):
    """Four sites: at full size, at half of it, in the middle, and at full size again."""

    def __init__(self, in_channels: int = 9, width: int = 8, context_dim: int = 12, **transformer: Any) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList(
            [
                TimestepEmbedSequential(nn.Conv2d(in_channels, width, 3, padding=1)),
                TimestepEmbedSequential(nn.Identity(), SpatialTransformer(width, context_dim, **transformer)),
                TimestepEmbedSequential(nn.Conv2d(width, width, 3, stride=2, padding=1)),
                TimestepEmbedSequential(nn.Identity(), SpatialTransformer(width, context_dim, **transformer)),
            ]
        )
        self.middle_block = TimestepEmbedSequential(
            nn.Identity(), SpatialTransformer(width, context_dim, **transformer), nn.Identity()
        )
        self.output_blocks = nn.ModuleList(
            [
                TimestepEmbedSequential(nn.Upsample(scale_factor=2)),
                TimestepEmbedSequential(nn.Identity(), SpatialTransformer(width, context_dim, **transformer)),
            ]
        )
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        assert timesteps is not None
        hidden = x * (1 + timesteps[:, None, None, None] / 1000)
        for block in (*self.input_blocks, self.middle_block, *self.output_blocks):
            hidden = block(hidden, context)
        out: Tensor = self.out(hidden)
        return out


class WarpUNetModel(UNetModel):
    """StableVITON's: the cloth's features, which the control network makes anew in each step, are attended to."""

    def __init__(self, **transformer: Any) -> None:
        super().__init__(in_channels=9, **transformer)
        self.warp_flow_blks = nn.ModuleList([CustomSpatialTransformer(8, 8, **transformer) for _ in range(2)])

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, context: Tensor, control: list[Tensor]
    ) -> Tensor:
        hidden = x * (1 + timesteps[:, None, None, None] / 1000)
        for block in (*self.input_blocks, self.middle_block):
            hidden = block(hidden, context)
        hidden, _ = self.warp_flow_blks[0](hidden, control.pop())
        hidden = self.output_blocks[0](hidden, context)
        hidden, _ = self.warp_flow_blks[1](hidden, control.pop())
        out: Tensor = self.out(self.output_blocks[1](hidden, context))
        return out


class ControlNet(UNetModel):
    """The encoder of the cloth: its features at both sizes, the finer first."""

    def __init__(self, in_channels: int, **transformer: Any) -> None:
        super().__init__(in_channels, **transformer)
        del self.middle_block, self.output_blocks, self.out

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:  # type: ignore[override]
        hidden, features = x * (1 + timesteps[:, None, None, None] / 1000), []
        for block in self.input_blocks:
            hidden = block(hidden, context)
            features.append(hidden)
        return [features[1], features[3]]


class DiffusionWrapper(nn.Module):
    """Holds the denoiser."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model


class LatentDiffusion(nn.Module):
    """Calls the denoiser as the samplers of the original code do."""

    def __init__(self, **transformer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = DiffusionWrapper(UNetModel(**transformer))

    def apply_model(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.model.diffusion_model(x, timesteps, context=context)
        return out

    def decode_first_stage(self, latent: Tensor) -> Tensor:
        return _decode(latent)


class ControlLDM(nn.Module):
    """StableVITON's model: a control network of the cloth beside the denoiser."""

    def __init__(self, **transformer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = DiffusionWrapper(WarpUNetModel(**transformer))
        self.control_model = ControlNet(in_channels=4, **transformer)

    def apply_model(self, x: Tensor, timesteps: Tensor, cond: dict[str, Any]) -> tuple[Tensor, None]:
        """The conditioning as its scripts give it, and the noise with what comes beside it in training."""
        context = torch.cat(cond["c_crossattn"], 1)
        control = self.control_model(cond["c_concat"][0], timesteps, context)
        given = torch.cat([x, cond["first_stage_cond"]], dim=1)
        return self.model.diffusion_model(given, timesteps, context=context, control=control), None

    def decode_first_stage(self, latent: Tensor) -> Tensor:
        return _decode(latent)


def _decode(latent: Tensor) -> Tensor:
    """A picture, in [-1, 1], in place of the autoencoder's."""
    return F.interpolate(latent[:, :3].tanh(), scale_factor=8)
