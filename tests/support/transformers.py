"""Transformer pipelines of diffusers' own classes, tiny and with random weights, and what their attention computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models import attention_dispatch, attention_processor
from diffusers.models.transformers import transformer_flux, transformer_flux2, transformer_qwenimage
from numpy.typing import NDArray
from support.models import clip_text_config, letter_tokenizer, noise, quiet
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

TEXT_TOKENS = 12
"""Of T5, as the tests ask for them."""


def flux_transformer() -> FluxTransformer2DModel:
    """One double and two single blocks."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()


def flux_call(rows: int, columns: int, text: int = 7) -> dict[str, Any]:
    """Arguments of that transformer's call for a picture of rows and columns of patches, and that many words."""
    random = noise()
    places = torch.zeros(rows, columns, 3)
    places[..., 1] += torch.arange(rows)[:, None]
    places[..., 2] += torch.arange(columns)
    return {
        "hidden_states": torch.randn(1, rows * columns, 16, generator=random),
        "encoder_hidden_states": torch.randn(1, text, 32, generator=random),
        "pooled_projections": torch.randn(1, 32, generator=random),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": places.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
        "return_dict": False,
    }


def flux(pipeline: Any = FluxPipeline) -> Any:
    """Flux; patches of 8 x 8 pixels in pictures made of 4 latent channels."""
    return quiet(
        pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=_autoencoder(),
            text_encoder=CLIPTextModel(clip_text_config()).eval(),
            tokenizer=letter_tokenizer(),
            text_encoder_2=_t5(),
            tokenizer_2=_t5_tokenizer(),
            transformer=flux_transformer(),
        )
    )


def flux_kontext() -> FluxKontextPipeline:
    return flux(FluxKontextPipeline)


def stable_diffusion_3(*, qk_norm: str | None = "rms_norm") -> StableDiffusion3Pipeline:
    """Two joint blocks, the first with a second attention of the picture to itself, as in SD3.5 medium."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        dual_attention_layers=(0,),
        qk_norm=qk_norm,
    ).eval()
    return quiet(
        StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=_autoencoder(),
            text_encoder=CLIPTextModelWithProjection(clip_text_config()).eval(),
            tokenizer=letter_tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(clip_text_config()).eval(),
            tokenizer_2=letter_tokenizer(),
            text_encoder_3=_t5(64),
            tokenizer_3=_t5_tokenizer(),
            transformer=transformer,
        )
    )


def qwen_image_edit(pipeline: Any = QwenImageEditPipeline) -> Any:
    torch.manual_seed(0)
    latent = 4
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * latent,
        out_channels=latent,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=latent,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * latent,
        latents_std=[1.0] * latent,
    ).eval()
    return quiet(
        pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            processor=None,
            transformer=transformer,
        )
    )


def qwen_prompts(words: int = 9, negative_words: int = 5) -> dict[str, Any]:
    """What its text encoder would give (which needs torchvision), for a prompt and a negative one."""
    random = torch.Generator().manual_seed(3)
    prompts: dict[str, Any] = {"prompt": None}
    for name, count in (("prompt", words), ("negative_prompt", negative_words)):
        prompts[f"{name}_embeds"] = torch.randn(1, count, 16, generator=random)
        prompts[f"{name}_embeds_mask"] = torch.ones(1, count, dtype=torch.long)
    return prompts


def qwen_image_edit_plus() -> QwenImageEditPlusPipeline:
    return qwen_image_edit(QwenImageEditPlusPipeline)


@dataclass
class JointCall:
    """One attention call, as its processor makes it."""

    query: Tensor
    """(row, token, head, feature), in float64."""
    key: Tensor
    mask: Tensor | None
    value: Tensor
    """(row, head, token, feature)."""

    def scores(self, row: int = 0) -> NDArray[np.float64]:
        """(head, query, key)."""
        query, key = self.query[row].transpose(0, 1), self.key[row].transpose(0, 1)
        scores: Tensor = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if self.mask is not None:
            mask = self.mask[row] if self.mask.ndim == 2 else self.mask[row, 0, 0]
            scores = scores.masked_fill(~mask.bool(), -torch.inf)
        return np.asarray(scores)


@dataclass
class JointCalls:
    """The calls of every module, by its path, in their order."""

    by_path: dict[str, list[JointCall]] = field(default_factory=dict)


@contextmanager
def joint_calls(transformer: Any) -> Iterator[JointCalls]:
    """Sees every attention call of a model at the place where its own processor makes it.

    Independent of the recorder: the name by which each module of diffusers knows the function is replaced.
    """
    calls = JointCalls()
    running: list[str] = []
    paths = {
        path: module
        for path, module in transformer.named_modules()
        if hasattr(module, "to_q") or path.endswith(".attn")
    }
    handles = [
        handle
        for path, module in paths.items()
        for handle in (
            module.register_forward_pre_hook(lambda *_, path=path: running.append(path)),
            module.register_forward_hook(lambda *_: running.pop() and None),
        )
    ]

    def note(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        if not running:  # of the autoencoder
            return
        query, key, value = (one.double().clone() for one in (query, key, value))
        calls.by_path.setdefault(running[-1], []).append(JointCall(query, key, mask, value.transpose(1, 2)))

    def dispatched(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Any:
        note(query, key, value, attn_mask)
        return attention_dispatch.dispatch_attention_fn(query, key, value, attn_mask=attn_mask, **rest)

    class Functional:
        """torch.nn.functional, as the processor of SD3 knows it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch.nn.functional, name)

        def scaled_dot_product_attention(self, query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Any:
            note(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None)
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, **rest)

    places = [
        (transformer_flux, "dispatch_attention_fn", dispatched),
        (transformer_flux2, "dispatch_attention_fn", dispatched),
        (transformer_qwenimage, "dispatch_attention_fn", dispatched),
        (attention_processor, "F", Functional()),
    ]
    originals = [getattr(module, name) for module, name, _ in places]
    for module, name, function in places:
        setattr(module, name, function)
    try:
        yield calls
    finally:
        for (module, name, _), original in zip(places, originals, strict=True):
            setattr(module, name, original)
        for handle in handles:
            handle.remove()


def _autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()


def _t5(width: int = 32) -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def _t5_tokenizer() -> T5Tokenizer:
    """Every letter is a token."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def flux2_transformer() -> Flux2Transformer2DModel:
    """One double block, and one single block whose projections are one."""
    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()
