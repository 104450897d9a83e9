"""Reference-guided inpainting as a diffusers pipeline: fill a masked region with the object of a reference picture."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from attrace.demo.data import SIZE, mask_box, reference_position
from attrace.demo.model import PATCH, ReferenceEncoder, position_feature_count, position_features

Picture = PIL.Image.Image | np.ndarray | Tensor
"""A PIL image, a uint8 (row, column, channel) array, or a float (sample, channel, row, column) tensor in [-1, 1]."""

PLACEMENT_FREQUENCIES = 4
"""Octaves in the features that tell the U-Net where the reference belongs."""

UNET_CHANNELS = 2 * 3 * PATCH**2 + PATCH**2 + position_feature_count(PLACEMENT_FREQUENCIES)
"""Input channels of the U-Net: noisy patches, masked scene, mask, placement."""


class ReferenceInpaintPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Paints the object of a reference picture into the masked region of a scene, moved and scaled to the mask.

    The frame of the reference is laid on the bounding box of the mask. The U-Net works on 16 x 16 patches of 4 x 4
    pixels (pixel-unshuffle in place of a VAE), predicts the clean picture, and attends to one token for each patch
    of the reference: the context of every cross-attention layer is the reference and nothing else.

    Parameters
    ----------
    unet
        Denoiser with `UNET_CHANNELS` input and 48 output channels.
    reference_encoder
        Makes the tokens.
    scheduler
        Any diffusers scheduler with `prediction_type="sample"`.
    """

    unet: UNet2DConditionModel
    reference_encoder: ReferenceEncoder
    scheduler: SchedulerMixin

    def __init__(
        self, unet: UNet2DConditionModel, reference_encoder: ReferenceEncoder, scheduler: SchedulerMixin
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, reference_encoder=reference_encoder, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture,
        mask_image: Picture,
        reference_image: Picture,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
    ) -> ImagePipelineOutput:
        """Fill the masked region of a scene.

        Parameters
        ----------
        image
            The scene; what lies under the mask is not seen. Resized to 64 x 64.
        mask_image
            White where to paint.
        reference_image
            The object, filling its frame.
        num_inference_steps
            Steps of the scheduler.
        guidance_scale
            Above 1: classifier-free guidance against an empty reference, batch order [unconditional, conditional].
        generator
            Source of the noise.
        output_type
            PIL images, a float array (sample, row, column, channel) in [0, 1], or a float tensor in [-1, 1].

        Returns
        -------
        ImagePipelineOutput
            With `images`.
        """
        scene, reference = (to_tensor(picture).to(self.device, self.unet.dtype) for picture in (image, reference_image))
        mask = to_mask(mask_image).to(self.device, self.unet.dtype)
        condition = scene_condition(scene * (1 - mask), mask, mask_box(mask))
        tokens = self.reference_encoder(reference)
        guided = guidance_scale > 1
        if guided:
            condition = torch.cat([condition, condition])
            tokens = torch.cat([torch.zeros_like(tokens), tokens])

        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        shape = (scene.shape[0], 3 * PATCH**2, SIZE // PATCH, SIZE // PATCH)
        latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        latents = latents * self.scheduler.init_noise_sigma
        for timestep in self.progress_bar(self.scheduler.timesteps):
            noisy = self.scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
            clean = self.unet(torch.cat([noisy, condition], dim=1), timestep, encoder_hidden_states=tokens).sample
            if guided:
                unconditional, conditional = clean.chunk(2)
                clean = unconditional + guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(clean, timestep, latents).prev_sample

        painted = F.pixel_shuffle(latents, PATCH).clamp(-1, 1)
        return ImagePipelineOutput(images=_as_output(torch.where(mask > 0, painted, scene), output_type))


def scene_condition(masked_scene: Tensor, mask: Tensor, box: Tensor) -> Tensor:
    """What the U-Net is told beside the noisy picture: masked scene, mask, and placement features inside the mask.

    Parameters
    ----------
    masked_scene
        (sample, 3, row, column) in [-1, 1], 0 under the mask.
    mask
        (sample, 1, row, column), 1 where to paint.
    box
        Where the reference's frame belongs, in pixels: (sample, 4) as left, top, right, bottom.

    Returns
    -------
    Tensor
        (sample, channel, row / PATCH, column / PATCH).
    """
    position = F.avg_pool2d(reference_position(box, mask.shape[-1]).to(mask.dtype), PATCH)
    placement = position_features(position, PLACEMENT_FREQUENCIES) * F.max_pool2d(mask, PATCH)
    return torch.cat([F.pixel_unshuffle(masked_scene, PATCH), F.pixel_unshuffle(mask, PATCH), placement], dim=1)


def build_pipeline(
    channels: tuple[int, int] = (64, 96),
    *,
    token_channels: int = 96,
    heads: int = 4,
    positions: bool = True,
    fine_attention: bool = True,
) -> ReferenceInpaintPipeline:
    """The demo's pipeline with untrained weights, drawn from torch's global generator.

    Parameters
    ----------
    channels
        Of the two levels of the U-Net: 16 x 16 and 8 x 8 patches.
    token_channels
        Size of a token of the reference.
    heads
        Attention heads of every layer.
    positions
        Whether the tokens of the reference know their places.
    fine_attention
        Whether the 16 x 16 level has attention, too.
    """
    down_block, up_block = (
        ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if fine_attention else ("DownBlock2D", "UpBlock2D")
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // PATCH,
        in_channels=UNET_CHANNELS,
        out_channels=3 * PATCH**2,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=(down_block, "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", up_block),
        attention_head_dim=heads,  # diffusers reads this name as the number of heads
        cross_attention_dim=token_channels,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return ReferenceInpaintPipeline(unet, ReferenceEncoder(token_channels, positions=positions), scheduler)


def to_tensor(picture: Picture) -> Tensor:
    """A picture as a float32 tensor (sample, 3, SIZE, SIZE) in [-1, 1]; PIL images are resized."""
    if isinstance(picture, Tensor):
        return picture
    if isinstance(picture, PIL.Image.Image):
        picture = np.asarray(picture.convert("RGB").resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS))
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def to_mask(picture: Picture) -> Tensor:
    """A mask as a float32 tensor (sample, 1, SIZE, SIZE) of 0 and 1, from a picture that is white where it holds."""
    if isinstance(picture, Tensor):
        return (picture > 0.5).to(picture.dtype)
    if isinstance(picture, PIL.Image.Image):
        picture = np.asarray(picture.convert("L").resize((SIZE, SIZE), PIL.Image.Resampling.NEAREST))
    return torch.from_numpy((picture > 127).astype(np.float32))[None, None]


def _as_output(images: Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return images
    array = ((images + 1) / 2).permute(0, 2, 3, 1).float().cpu().numpy()
    if output_type == "np":
        return array
    return [PIL.Image.fromarray((sample * 255).round().astype(np.uint8)) for sample in array]
