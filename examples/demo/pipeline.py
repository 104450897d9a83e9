"""Reference-guided inpainting as diffusers pipelines: fill a masked region with the object of a reference picture."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from attrace.demo.data import SIZE
from attrace.demo.model import (
    FREQUENCIES,
    PATCH,
    ReferenceEncoder,
    condition_channels,
    scene_condition,
)
from attrace.demo.placement import frame_placement, mask_box

Picture = PIL.Image.Image | np.ndarray | Tensor
"""A PIL image, a uint8 (row, column, channel) array, or a float (sample, channel, row, column) tensor in [-1, 1]."""

PATCH_CHANNELS = 3 * PATCH**2
"""Numbers in a patch of a picture."""


class InpaintPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Paints the object of a reference picture into the masked region of a scene.

    The denoiser works on patches of 4 x 4 pixels (pixel-unshuffle in place of a VAE) and predicts the clean picture. It
    is told how the frame of the reference lies in the scene: on the bounding box of the mask, unless a placement is
    given.
    """

    scheduler: SchedulerMixin

    @property
    def denoiser(self) -> ModelMixin:
        """The network that runs once in each step."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Rows and columns of the pictures, in pixels."""
        raise NotImplementedError

    @property
    def frequencies(self) -> int:
        """Octaves in the features of reference positions."""
        raise NotImplementedError

    def encode(self, reference: Tensor) -> Tensor:
        """Tokens (sample, token, channel) of references (sample, 3, row, column)."""
        raise NotImplementedError

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        """The clean patches.

        Parameters
        ----------
        noisy
            Noisy patches: (sample, PATCH_CHANNELS, row, column).
        timesteps
            Of the schedule: one number, or (sample).
        condition
            As `scene_condition` gives it.
        tokens
            As `encode` gives them; 0 is an empty reference.

        Returns
        -------
        Tensor
            The shape of `noisy`.
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self,
        image: Picture,
        mask_image: Picture,
        reference_image: Picture,
        *,
        placement: Tensor | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
    ) -> ImagePipelineOutput:
        """Fill the masked region of a scene.

        Parameters
        ----------
        image
            The scene; what lies under the mask is not seen. Resized to the size of the model.
        mask_image
            White where to paint.
        reference_image
            The object, filling its frame.
        placement
            How the frame of the reference lies in the scene, (sample, 2, 3), see
            `attrace.demo.placement.frame_placement`; by default on the bounding box of the mask.
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
        device, dtype = self.device, self.denoiser.dtype
        scene = to_tensor(image, self.size).to(device, dtype)
        mask = to_mask(mask_image, self.size).to(device, dtype)
        placement = frame_placement(mask_box(mask), self.size) if placement is None else placement.to(device)
        condition = scene_condition(scene * (1 - mask), mask, placement, self.frequencies)
        tokens = self.encode(to_tensor(reference_image, self.size).to(device, dtype))
        guided = guidance_scale > 1
        if guided:
            condition = torch.cat([condition, condition])
            tokens = torch.cat([torch.zeros_like(tokens), tokens])

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        shape = (scene.shape[0], PATCH_CHANNELS, self.size // PATCH, self.size // PATCH)
        latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents * self.scheduler.init_noise_sigma
        for timestep in self.progress_bar(self.scheduler.timesteps):
            noisy = self.scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
            clean = self.predict(noisy, timestep, condition, tokens)
            if guided:
                unconditional, conditional = clean.chunk(2)
                clean = unconditional + guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(clean, timestep, latents).prev_sample

        painted = F.pixel_shuffle(latents, PATCH).clamp(-1, 1)
        return ImagePipelineOutput(images=_as_output(torch.where(mask > 0, painted, scene), output_type))


class ReferenceInpaintPipeline(InpaintPipeline):
    """Inpainting by a U-Net whose cross-attention attends to the reference.

    One token for each patch of the reference: the context of every cross-attention layer is the reference and nothing
    else.

    Parameters
    ----------
    unet
        Denoiser: noisy patches and `scene_condition` in, clean patches out.
    reference_encoder
        Makes the tokens.
    scheduler
        Any diffusers scheduler with `prediction_type="sample"`.
    """

    unet: UNet2DConditionModel
    reference_encoder: ReferenceEncoder

    def __init__(
        self, unet: UNet2DConditionModel, reference_encoder: ReferenceEncoder, scheduler: SchedulerMixin
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, reference_encoder=reference_encoder, scheduler=scheduler)

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """The U-Net."""
        return self.unet

    @property
    def size(self) -> int:
        """Rows and columns of the pictures, in pixels."""
        return int(self.unet.config.sample_size * PATCH)

    @property
    def frequencies(self) -> int:
        """Octaves in the features of reference positions."""
        return int(self.reference_encoder.config.frequencies)

    def encode(self, reference: Tensor) -> Tensor:
        """Tokens (sample, token, channel) of references (sample, 3, row, column)."""
        tokens: Tensor = self.reference_encoder(reference)
        return tokens

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        """The clean patches; see the base class."""
        clean: Tensor = self.unet(torch.cat([noisy, condition], dim=1), timesteps, encoder_hidden_states=tokens).sample
        return clean


def build_pipeline(
    channels: tuple[int, int] = (64, 96),
    *,
    token_channels: int = 96,
    heads: int = 4,
    positions: bool = True,
    fine_attention: bool = True,
    size: int = SIZE,
    frequencies: int = FREQUENCIES,
) -> ReferenceInpaintPipeline:
    """The demo's pipeline with untrained weights, drawn from torch's global generator.

    Parameters
    ----------
    channels
        Of the two levels of the U-Net: patches of 4 x 4 and of 8 x 8 pixels.
    token_channels
        Size of a token of the reference.
    heads
        Attention heads of every layer.
    positions
        Whether the tokens of the reference know their places.
    fine_attention
        Whether the finer level has attention, too.
    size
        Rows and columns of the pictures, in pixels.
    frequencies
        Octaves in the features of reference positions.
    """
    down_block, up_block = (
        ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if fine_attention else ("DownBlock2D", "UpBlock2D")
    )
    unet = UNet2DConditionModel(
        sample_size=size // PATCH,
        in_channels=PATCH_CHANNELS + condition_channels(frequencies),
        out_channels=PATCH_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=(down_block, "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", up_block),
        attention_head_dim=heads,  # diffusers reads this name as the number of heads
        cross_attention_dim=token_channels,
        norm_num_groups=16,
    )
    encoder = ReferenceEncoder(token_channels, frequencies, positions)
    return ReferenceInpaintPipeline(unet, encoder, ddim_scheduler())


def ddim_scheduler() -> DDIMScheduler:
    """The scheduler of every pipeline: the clean picture is predicted, and the first step is of pure noise."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def to_tensor(picture: Picture, size: int = SIZE) -> Tensor:
    """A picture as a float32 tensor (sample, 3, size, size) in [-1, 1]; PIL images are resized."""
    if isinstance(picture, Tensor):
        return picture
    if isinstance(picture, PIL.Image.Image):
        picture = np.asarray(picture.convert("RGB").resize((size, size), PIL.Image.Resampling.LANCZOS))
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def to_mask(picture: Picture, size: int = SIZE) -> Tensor:
    """A mask as a float32 tensor (sample, 1, size, size) of 0 and 1, from a picture that is white where it holds."""
    if isinstance(picture, Tensor):
        return (picture > 0.5).to(picture.dtype)
    if isinstance(picture, PIL.Image.Image):
        picture = np.asarray(picture.convert("L").resize((size, size), PIL.Image.Resampling.NEAREST))
    return torch.from_numpy((picture > 127).astype(np.float32))[None, None]


def _as_output(images: Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return images
    array = ((images + 1) / 2).permute(0, 2, 3, 1).float().cpu().numpy()
    if output_type == "np":
        return array
    return [PIL.Image.fromarray((sample * 255).round().astype(np.uint8)) for sample in array]
