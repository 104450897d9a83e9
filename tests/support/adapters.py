"""IP-Adapters on a tiny U-Net, of the three kinds of image projection, with diffusers' own classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
    MultiIPAdapterImageProjection,
)
from torch import Tensor

EMBEDDING = 12


def add_ip_adapter(unet: Any, tokens: int) -> Tensor:
    """Give a U-Net an adapter that makes so many tokens (4, 16 or 257); embeddings of a picture for both branches."""
    torch.manual_seed(4)
    width = unet.config.cross_attention_dim
    if tokens == 4:
        projection: Any = ImageProjection(EMBEDDING, width, num_image_text_embeds=4)
        shape: tuple[int, ...] = (2, 1, EMBEDDING)
    elif tokens == 16:
        projection = IPAdapterPlusImageProjection(EMBEDDING, width, 8, depth=2, dim_head=4, heads=2, num_queries=16)
        shape = (2, 1, 257, EMBEDDING)
    else:
        projection = IPAdapterFullImageProjection(EMBEDDING, width)
        shape = (2, 1, tokens, EMBEDDING)
    widths = dict(zip(("down", "mid", "up"), (unet.config.block_out_channels[0], unet.config.block_out_channels[-1])))  # noqa: B905
    widths["up"] = widths["down"]
    unet.set_attn_processor(
        {
            name: IPAdapterAttnProcessor2_0(widths[name.split("_")[0]], width, num_tokens=(tokens,))
            if name.endswith("attn2.processor")
            else processor
            for name, processor in unet.attn_processors.items()
        }
    )
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    return torch.randn(shape)


def adapter_weights(unet: Any, embedding: int) -> dict[str, Tensor]:
    """Weights of an adapter of 4 tokens, as they are published: numbered in the order of the attention modules."""
    width = unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.randn(4 * width, embedding),
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            out, _ = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
            for part in ("k", "v"):
                weights[f"ip_adapter.{number}.to_{part}_ip.weight"] = torch.randn(out, width)
            number += 2
    return weights
