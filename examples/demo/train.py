"""Train the demo's model on made samples: `python -m attrace.demo.train OUTPUT`.

Two CPU cores are enough. The learning rate is warmed up, held, and falls to zero over the last steps, so a run can be
continued with another number of steps (`--resume`). Weights are averaged exponentially; the average is what is saved.

Beside the model of the demo there are variants of it, to study what the scores tell (`attrace.demo.study`):
`no-positions`, whose tokens do not know their places in the reference; `coarse`, with attention at 8 x 8 patches only;
and `supervised`, whose first and last layer are told in training where each patch comes from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import click
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from attrace.demo.data import SampleMaker, Samples, reference_position
from attrace.demo.model import PATCH
from attrace.demo.pipeline import ReferenceInpaintPipeline, build_pipeline, scene_condition

Variant = Literal["plain", "no-positions", "coarse", "supervised"]

PHOTOGRAPHS = ("astronaut", "rocket", "hubble_deep_field", "brick", "grass", "gravel")
"""Public-domain pictures of scikit-image that textures are cut from in training."""

HELD_OUT_PHOTOGRAPHS = ("chelsea", "coffee")
"""Public-domain pictures of scikit-image that are never seen in training."""


@dataclass(frozen=True)
class Settings:
    """What a training run depends on, beside the samples."""

    steps: int
    """Optimiser steps in all."""
    decay_steps: int
    """The last steps, over which the learning rate falls to zero."""
    warmup_steps: int = 200
    """The first steps, over which it rises."""
    learning_rate: float = 2e-3
    """AdamW's, at its highest."""
    batch: int = 16
    """Samples in a step."""
    drop_reference: float = 0.05
    """Share of samples trained without their reference, for classifier-free guidance."""
    average: float = 0.998
    """Decay of the exponential moving average of the weights."""
    outside_weight: float = 0.02
    """Weight of the error outside the mask, where the scene is given."""
    noisy_share: float = 0.5
    """Share of samples drawn from the noisiest fifth of the timesteps, where only the reference can help."""
    variant: Variant = "plain"
    """What is different from the demo's model."""
    attention_weight: float = 0.02
    """Weight of the attention's cross-entropy with the true places, where that is supervised."""

    def build(self) -> ReferenceInpaintPipeline:
        """The untrained pipeline."""
        return build_pipeline(positions=self.variant != "no-positions", fine_attention=self.variant != "coarse")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        fall = min(1.0, (self.steps - step) / self.decay_steps)
        return self.learning_rate * rise * fall


def load_photographs(names: Sequence[str]) -> list[Tensor]:
    """Pictures that scikit-image ships, as float32 (3, row, column) in [-1, 1]."""
    import skimage.data  # only training needs it

    pictures = [torch.from_numpy(getattr(skimage.data, name)()) for name in names]
    colour = [picture if picture.ndim == 3 else picture[..., None].expand(-1, -1, 3) for picture in pictures]
    return [picture[..., :3].permute(2, 0, 1).float() / 127.5 - 1 for picture in colour]


def masked_error(prediction: Tensor, scene: Tensor, mask: Tensor, outside_weight: float = 0.0) -> Tensor:
    """Mean squared error inside the mask, plus the weighted one outside, in units of [-1, 1] pixels."""
    error = (F.pixel_shuffle(prediction, 4) - scene) ** 2
    inside = (error * mask).sum() / (3 * mask.sum())
    outside = (error * (1 - mask)).sum() / (3 * (1 - mask).sum())
    return inside + outside_weight * outside


def predict(pipeline: ReferenceInpaintPipeline, samples: Samples, timesteps: Tensor, noise: Tensor) -> Tensor:
    """The clean patches that the U-Net predicts from samples noised to the given timesteps."""
    noisy = pipeline.scheduler.add_noise(F.pixel_unshuffle(samples.scene, 4), noise, timesteps)
    condition = scene_condition(samples.masked_scene, samples.mask, samples.box)
    tokens = pipeline.reference_encoder(samples.reference)
    prediction: Tensor = pipeline.unet(
        torch.cat([noisy, condition], dim=1), timesteps, encoder_hidden_states=tokens
    ).sample
    return prediction


class AttentionSupervision:
    """Cross-entropy of attention layers with the true places, of the patches inside the mask.

    Used as a context around the call of the U-Net.

    Parameters
    ----------
    layers
        Cross-attention modules of diffusers whose queries are a grid as fine as the keys'.
    """

    def __init__(self, layers: Sequence[Attention]) -> None:
        self._layers = layers
        self._projected: dict[nn.Module, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for layer in self._layers:
            self._hooks += [part.register_forward_hook(self._keep) for part in (layer.to_q, layer.to_k)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _keep(self, module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._projected[module] = output

    def error(self, samples: Samples, kept: Tensor) -> Tensor:
        """Mean over layers, heads and patches; `kept` (sample) is 0 where the reference was dropped."""
        places, inside = true_tokens(samples)
        inside = inside & (kept[:, None] > 0)
        errors = []
        for layer in self._layers:
            query, key = (
                self._projected[part].unflatten(2, (layer.heads, -1)).transpose(1, 2)
                for part in (layer.to_q, layer.to_k)
            )
            logarithms = F.log_softmax(query @ key.transpose(2, 3) * layer.scale, dim=-1).mean(1)
            errors.append(F.nll_loss(logarithms[inside], places[inside]))
        return torch.stack(errors).mean()


def true_tokens(samples: Samples) -> tuple[Tensor, Tensor]:
    """For each patch of the scene, the token of the reference that it comes from, and whether it lies in the mask.

    Returns
    -------
    places
        int64 (sample, patch).
    inside
        bool (sample, patch): wholly inside the mask.
    """
    position = F.avg_pool2d(reference_position(samples.box), PATCH)
    count = position.shape[-1]
    column, row = ((position + 1) / 2 * count).long().clamp(0, count - 1).unbind(1)
    inside = F.avg_pool2d(samples.mask, PATCH)[:, 0] == 1
    return (row * count + column).flatten(1), inside.flatten(1)


class Trainer:
    """A pipeline in training, its optimiser and its averaged weights."""

    def __init__(self, settings: Settings, seed: int, *, compiled: bool = False) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.pipeline = settings.build()
        self.averaged = settings.build()
        self.networks = nn.ModuleList([self.pipeline.unet, self.pipeline.reference_encoder])
        self.averaged_networks = nn.ModuleList([self.averaged.unet, self.averaged.reference_encoder])
        self.averaged_networks.load_state_dict(deepcopy(self.networks.state_dict()))
        self.optimiser = torch.optim.AdamW(self.networks.parameters(), lr=settings.learning_rate, weight_decay=1e-3)
        self.maker = SampleMaker(seed, load_photographs(PHOTOGRAPHS))
        self.step = 0
        unet = self.pipeline.unet
        supervised = [unet.down_blocks[0], unet.up_blocks[-1]] if settings.variant == "supervised" else []
        self.supervision = AttentionSupervision(
            [block.attentions[-1].transformer_blocks[0].attn2 for block in supervised]
        )
        if compiled:
            unet.compile()

    def train_step(self) -> float:
        """One optimiser step on new samples; the masked error."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        samples = self.maker.make(self.settings.batch)
        timesteps = self._timesteps()
        keep = (torch.rand(self.settings.batch) >= self.settings.drop_reference).float()
        encoder = self.pipeline.reference_encoder
        with_gaps = encoder.register_forward_hook(lambda _module, _inputs, tokens: tokens * keep[:, None, None])
        noise = torch.randn(self.settings.batch, 48, 16, 16)
        with self.supervision as supervision:
            prediction = predict(self.pipeline, samples, timesteps, noise)
        with_gaps.remove()
        painted = masked_error(prediction, samples.scene, samples.mask, self.settings.outside_weight)
        loss = painted
        if self.settings.variant == "supervised":
            loss = painted + self.settings.attention_weight * supervision.error(samples, keep)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimiser.step()
        self._average()
        self.step += 1
        return float(painted.detach())

    def _timesteps(self) -> Tensor:
        noisy = torch.rand(self.settings.batch) < self.settings.noisy_share
        return torch.where(noisy, torch.randint(800, 1000, noisy.shape), torch.randint(0, 1000, noisy.shape))

    def _average(self) -> None:
        rate = min(self.settings.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.averaged_networks.parameters(), self.networks.parameters(), strict=True):
                mean.lerp_(value, 1 - rate)

    @torch.no_grad()
    def validation_error(self, samples: Samples) -> float:
        """Masked error of the averaged weights on samples that are pure noise, where only the reference can help."""
        timesteps = torch.full((len(samples.scene),), 999)
        noise = torch.randn(len(samples.scene), 48, 16, 16, generator=torch.Generator().manual_seed(0))
        return float(masked_error(predict(self.averaged, samples, timesteps, noise), samples.scene, samples.mask))

    def save(self, folder: Path, *, also: Path | None = None) -> None:
        """Save the averaged pipeline (half precision), `also` in a second place, and all that is needed to continue."""
        half = deepcopy(self.averaged).to(torch.float16)
        for place in filter(None, [folder / "pipeline", also]):
            half.save_pretrained(place)
        state = {
            "step": self.step,
            "networks": self.networks.state_dict(),
            "averaged": self.averaged_networks.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, folder / "state.pt")

    def resume(self, folder: Path) -> None:
        """Continue from what `save` left; samples and noise are drawn anew from the step's own seed."""
        state = torch.load(folder / "state.pt", weights_only=True)
        self.step = state["step"]
        self.networks.load_state_dict(state["networks"])
        self.averaged_networks.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.manual_seed(self.step)
        self.maker = SampleMaker(self.step, load_photographs(PHOTOGRAPHS))


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=3500, help="Optimiser steps in all.")
@click.option("--decay-steps", default=1200, help="Last steps, over which the learning rate falls to zero.")
@click.option("--seed", default=1, help="Of weights, samples and noise.")
@click.option("--save-every", default=500, help="Steps between two saves.")
@click.option("--variant", type=click.Choice(get_args(Variant)), default="plain", help="Which model.")
@click.option("--keep", is_flag=True, help="Keep the pipeline of every save, as OUTPUT/steps/STEP.")
@click.option("--resume", is_flag=True, help="Continue the run that is in OUTPUT.")
@click.option("--compiled", is_flag=True, help="Compile the U-Net first: minutes at the start, a quarter faster after.")
def main(
    output: Path,
    steps: int,
    decay_steps: int,
    seed: int,
    save_every: int,
    variant: Variant,
    keep: bool,
    resume: bool,
    compiled: bool,
) -> None:
    """Train, log and save."""
    trainer = Trainer(Settings(steps=steps, decay_steps=decay_steps, variant=variant), seed, compiled=compiled)
    validation = SampleMaker(10_000 + seed, load_photographs(HELD_OUT_PHOTOGRAPHS)).make(64)
    output.mkdir(parents=True, exist_ok=True)
    if resume:
        trainer.resume(output)
    start, losses = time.monotonic(), []
    with (output / "log.jsonl").open("a" if resume else "w") as log:
        while trainer.step < steps:
            losses.append(trainer.train_step())
            if trainer.step % 100 == 0 or trainer.step == steps:
                row = {
                    "step": trainer.step,
                    "loss": sum(losses) / len(losses),
                    "held_out_error": trainer.validation_error(validation),
                    "seconds": time.monotonic() - start,
                }
                losses.clear()
                log.write(json.dumps(row) + "\n")
                log.flush()
                click.echo(json.dumps(row), err=True)
            if trainer.step % save_every == 0 or trainer.step == steps:
                trainer.save(output, also=output / "steps" / f"{trainer.step:05d}" if keep else None)


if __name__ == "__main__":
    main()
