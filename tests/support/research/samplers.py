"""The samplers of the original latent diffusion code and of StableVITON: their names, arguments and calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PLMSSampler:
    """One call of the denoiser more than steps; both branches of guidance in one batch."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def sample(
        self,
        S: int,  # noqa: N803
        batch_size: int,
        shape: tuple[int, ...],
        conditioning: Any = None,
        x_T: Tensor | None = None,  # noqa: N803
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        latent = torch.randn(batch_size, *shape) if x_T is None else x_T
        first, *others = torch.linspace(981, 1, S).round().tolist()
        for timestep in (first, *others[:1], *others):
            noise = self.p_sample_plms(
                latent,
                conditioning,
                torch.full((len(latent),), timestep),
                unconditional_guidance_scale=unconditional_guidance_scale,
                unconditional_conditioning=unconditional_conditioning,
                **kwargs,
            )
            latent = latent - 0.1 * noise
        return latent, None

    def p_sample_plms(
        self,
        x: Tensor,
        c: Any,
        t: Tensor,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        test_model_kwargs: Any = None,
    ) -> Tensor:
        given = torch.cat([x, test_model_kwargs["rest"]], dim=1)
        if unconditional_conditioning is None or unconditional_guidance_scale == 1.0:
            noise: Tensor = self.model.apply_model(given, t, c)
            return noise
        both = torch.cat([unconditional_conditioning, c])
        without, noise = self.model.apply_model(torch.cat([given] * 2), torch.cat([t] * 2), both).chunk(2)
        guided: Tensor = without + unconditional_guidance_scale * (noise - without)
        return guided


class SeparatePLMSSampler(PLMSSampler):
    """StableVITON's: a call for each branch, the conditional one first."""

    def p_sample_plms(
        self,
        x: Tensor,
        c: Any,
        t: Tensor,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        test_model_kwargs: Any = None,  # noqa: ARG002
    ) -> Tensor:
        noise: Tensor = self.model.apply_model(x, t, c)[0]
        if unconditional_conditioning is None or unconditional_guidance_scale == 1.0:
            return noise
        without: Tensor = self.model.apply_model(x, t, unconditional_conditioning)[0]
        return without + unconditional_guidance_scale * (noise - without)
