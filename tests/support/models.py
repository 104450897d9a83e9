"""Pipelines of diffusers' own classes, tiny and with random weights: what the recorder's tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    PaintByExamplePipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from attrace.demo.pipeline import build_pipeline
from attrace.recorder import record

TOKENS = 16
"""Tokens of a prompt."""

LONG = 80
"""Steps of a recording that is killed on the way."""


def tiny_unet(**members: Any) -> UNet2DConditionModel:
    """A U-Net with four cross-attention sites in two shapes: 4 x 4 (and 2 x 2) queries of 16 x 16 pixel pictures."""
    described: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,  # diffusers reads this name as the number of heads
        "cross_attention_dim": 32,
        "norm_num_groups": 4,
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(**(described | members)).eval()


def stable_diffusion(**unet: Any) -> StableDiffusionPipeline:
    return quiet(
        StableDiffusionPipeline(
            **_text_parts(),
            unet=tiny_unet(**unet),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def stable_diffusion_2() -> StableDiffusionPipeline:
    """Linear projections, and heads of one width, more of them in deeper layers."""
    return stable_diffusion(use_linear_projection=True, attention_head_dim=(2, 4))


def instruct_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    return quiet(
        StableDiffusionInstructPix2PixPipeline(
            **_text_parts(),
            unet=tiny_unet(in_channels=8),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def inpainting() -> StableDiffusionInpaintPipeline:
    return quiet(
        StableDiffusionInpaintPipeline(
            **_text_parts(),
            unet=tiny_unet(in_channels=9),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def upscaler() -> StableDiffusionUpscalePipeline:
    unet = tiny_unet(in_channels=7, num_class_embeds=100, only_cross_attention=(True, False))
    parts = _text_parts()
    parts["vae"].register_to_config(scaling_factor=0.08333)
    return quiet(
        StableDiffusionUpscalePipeline(**parts, unet=unet, low_res_scheduler=DDPMScheduler(), max_noise_level=90)
    )


def controlnet() -> StableDiffusionControlNetPipeline:
    unet = tiny_unet()
    torch.manual_seed(1)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for convolution in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(convolution.weight, std=0.1)  # made as zeros, they would change nothing
    return quiet(
        StableDiffusionControlNetPipeline(
            **_text_parts(),
            unet=unet,
            controlnet=network,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    unet = tiny_unet(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        transformer_layers_per_block=(1, 2),
    )
    parts = _text_parts()
    return quiet(
        StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=CLIPTextModelWithProjection(clip_text_config()).eval(),
            tokenizer_2=parts["tokenizer"],
            unet=unet,
            add_watermarker=False,
        )
    )


def paint_by_example() -> PaintByExamplePipeline:
    torch.manual_seed(0)
    encoder = PaintByExampleImageEncoder(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=37,
            projection_dim=32,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
        ),
        proj_size=32,
    ).eval()
    return quiet(
        PaintByExamplePipeline(
            vae=_autoencoder(),
            image_encoder=encoder,
            unet=tiny_unet(in_channels=9),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        )
    )


def demo() -> Any:
    """The demo's pipeline, with fewer channels."""
    torch.manual_seed(0)
    return quiet(build_pipeline((32, 32), token_channels=32, heads=2))


def picture(rows: int = 32, columns: int = 32, seed: int = 0) -> PIL.Image.Image:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def box_mask(rows: int = 32, columns: int = 32) -> PIL.Image.Image:
    """White in the middle."""
    pixels = np.zeros((rows, columns), np.uint8)
    pixels[rows // 4 : rows // 2, columns // 4 : columns // 2] = 255
    return PIL.Image.fromarray(pixels)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def record_for_long(path: str | Path) -> None:
    """Record `LONG` steps of a tiny U-Net, always the same."""
    unet, random = tiny_unet(), noise()
    context = torch.randn(1, 16, 32, generator=random)
    with torch.no_grad(), record(unet, path, context="text", encoding="factors"):
        for step in range(LONG):
            unet(torch.randn(1, 4, 8, 8, generator=random), LONG - step, encoder_hidden_states=context)


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "vae": _autoencoder(),
        "text_encoder": CLIPTextModel(clip_text_config()).eval(),
        "tokenizer": letter_tokenizer(),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def clip_text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def letter_tokenizer() -> CLIPTokenizer:
    """Every letter is a token."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocabulary[letter] = len(vocabulary)
        vocabulary[f"{letter}</w>"] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
