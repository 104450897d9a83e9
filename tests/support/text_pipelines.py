"""Pipelines of diffusers' own classes whose prompts are read by a language model, tiny and with random weights."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPriorReduxPipeline,
    QwenImagePipeline,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from support import text_encoders, transformers
from support.models import quiet
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel


def qwen_image(pipeline: Any = QwenImagePipeline, **added: Any) -> Any:
    """Qwen-Image, or an editing pipeline of it; `added` is what that has beside."""
    without_text = transformers.qwen_image_edit()
    return quiet(
        pipeline(
            scheduler=without_text.scheduler,
            vae=without_text.vae,
            text_encoder=text_encoders.qwen_vl(),
            tokenizer=text_encoders.byte_tokenizer(),
            transformer=without_text.transformer,
            **added,
        )
    )


def flux_2(tokenizer: Any = None) -> Flux2Pipeline:
    """Flux 2; by default with a tokenizer alone in place of the processor that holds it, which needs torchvision."""
    encoder = text_encoders.mistral(_encoder_layers(Flux2Pipeline))
    return quiet(Flux2Pipeline(text_encoder=encoder, **_flux_2_parts(tokenizer)))


def flux_2_klein(*, is_distilled: bool, pipeline: Any = Flux2KleinPipeline) -> Any:
    encoder = text_encoders.qwen3(_encoder_layers(pipeline))
    return quiet(pipeline(text_encoder=encoder, is_distilled=is_distilled, **_flux_2_parts()))


def flux_redux() -> FluxPriorReduxPipeline:
    """It makes 3 x 3 tokens of a picture, and has no text encoder of its own, as it is published."""
    torch.manual_seed(0)
    side, patch, width = 24, 8, 16
    vision = SiglipVisionConfig(
        hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=side, patch_size=patch,
    )  # fmt: skip
    return quiet(
        FluxPriorReduxPipeline(
            image_encoder=SiglipVisionModel(vision).eval(),
            feature_extractor=SiglipImageProcessorPil(size={"height": side, "width": side}),
            image_embedder=ReduxImageEncoder(redux_dim=width, txt_in_features=32).eval(),
        )
    )


def _encoder_layers(pipeline: Any) -> int:
    """Layers that a text encoder must have, as those of some in the middle are taken."""
    return int(max(signature(pipeline.__call__).parameters["text_encoder_out_layers"].default))


def _flux_2_parts(tokenizer: Any = None) -> dict[str, Any]:
    described = dict(transformers.flux2_transformer().config) | {"joint_attention_dim": 3 * text_encoders.WIDTH}
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae.eval(),
        "tokenizer": tokenizer or text_encoders.byte_tokenizer(),
        "transformer": Flux2Transformer2DModel.from_config(described).eval(),
    }
