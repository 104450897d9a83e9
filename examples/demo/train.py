"""Train the demo's models on made samples: `python -m attrace.demo.train OUTPUT`.

Two CPU cores are enough. The learning rate is warmed up, held, and falls to zero over the last steps, so a run can be
continued with another number of steps (`--resume`). Weights are averaged exponentially; the average is what is saved.
With `--objects` (see `attrace.demo.objects`) the samples show objects that people recognise, turned and mirrored; with
`--coarse-steps` the first steps are trained on pictures of half the size, which costs a quarter.

Beside the model of the demo there are variants of it, to study what the scores tell (`attrace.demo.study`):
`no-positions`, whose tokens do not know their places in the reference; `coarse`, with attention at 8 x 8 patches only;
and `supervised`, whose first and last layer are told in training where each patch comes from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrace.demo.data import SampleMaker, Samples
from attrace.demo.model import PATCH, scene_condition
from attrace.demo.objects import Objects
from attrace.demo.pipeline import InpaintPipeline
from attrace.demo.settings import MODELS, Settings, Variant
from attrace.demo.supervision import AttentionSupervision

PHOTOGRAPHS = ("astronaut", "rocket", "hubble_deep_field", "brick", "grass", "gravel")
"""Public-domain pictures of scikit-image that textures are cut from in training."""

HELD_OUT_PHOTOGRAPHS = ("chelsea", "coffee")
"""Public-domain pictures of scikit-image that are never seen in training."""

LONGEST_UNSAVED = 600.0
"""Seconds of training after which all is saved, whatever the step."""


def load_photographs(names: Sequence[str]) -> list[Tensor]:
    """Pictures that scikit-image ships, as float32 (3, row, column) in [-1, 1]."""
    import skimage.data  # only training needs it

    pictures = [torch.from_numpy(getattr(skimage.data, name)()) for name in names]
    colour = [picture if picture.ndim == 3 else picture[..., None].expand(-1, -1, 3) for picture in pictures]
    return [picture[..., :3].permute(2, 0, 1).float() / 127.5 - 1 for picture in colour]


def masked_error(
    prediction: Tensor, scene: Tensor, mask: Tensor, outside_weight: float = 0.0, edge_weight: float = 0.0
) -> Tensor:
    """Mean squared error inside the mask, in units of [-1, 1] pixels.

    The weighted error outside the mask is added, and that of the differences between neighbours inside it.
    """
    difference = F.pixel_shuffle(prediction, PATCH) - scene
    error = difference**2
    inside = (error * mask).sum() / (3 * mask.sum())
    outside = (error * (1 - mask)).sum() / (3 * (1 - mask).sum()).clamp(min=1)
    edges = sum(
        ((difference.diff(dim=dim) ** 2) * mask.narrow(dim, 1, mask.shape[dim] - 1)).sum() for dim in (2, 3)
    ) / (3 * mask.sum())
    return inside + outside_weight * outside + edge_weight * edges


def predict(
    pipeline: InpaintPipeline, samples: Samples, timesteps: Tensor, noise: Tensor, kept: Tensor | None = None
) -> Tensor:
    """The clean patches that a model predicts from samples noised to the given timesteps.

    `kept` (sample) is 0 where the reference is dropped; by default none is.
    """
    noisy = pipeline.scheduler.add_noise(F.pixel_unshuffle(samples.scene, PATCH), noise, timesteps)
    condition = scene_condition(samples.masked_scene, samples.mask, samples.placement, pipeline.frequencies)
    tokens = pipeline.encode(samples.reference)
    if kept is not None:
        tokens = tokens * kept[:, None, None]
    return pipeline.predict(noisy, timesteps, condition, tokens)


class Trainer:
    """A pipeline in training, its optimiser and its averaged weights."""

    def __init__(
        self, settings: Settings, seed: int, *, objects: Objects | None = None, compiled: bool = False
    ) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.pipeline = settings.build()
        self.averaged = settings.build()
        self.networks, self.averaged_networks = (_networks(one) for one in (self.pipeline, self.averaged))
        self.averaged_networks.load_state_dict(deepcopy(self.networks.state_dict()))
        self.optimiser = torch.optim.AdamW(self.networks.parameters(), lr=settings.learning_rate, weight_decay=1e-3)
        self.step = 0
        self._samples = self._make_samples(seed, objects)
        self.supervision = AttentionSupervision(self.pipeline.denoiser, settings.supervised_layers)
        if compiled:
            self.pipeline.denoiser.compile()

    def train_step(self) -> float:
        """One optimiser step on new samples; the masked error."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        samples = next(self._samples)
        timesteps = self._timesteps(len(samples.scene))
        kept = (torch.rand(len(timesteps)) >= self.settings.drop_reference).float()
        noise = torch.randn_like(F.pixel_unshuffle(samples.scene, PATCH))
        with self.supervision as supervision:
            prediction = predict(self.pipeline, samples, timesteps, noise, kept)
        weights = (self.settings.outside_weight, self.settings.edge_weight)
        loss = masked_error(prediction, samples.scene, samples.mask, *weights)
        loss = loss + self.settings.attention_weight * supervision.error(samples, kept)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimiser.step()
        self._average()
        self.step += 1
        return float(masked_error(prediction.detach(), samples.scene, samples.mask))

    def _make_samples(self, seed: int, objects: Objects | None) -> Iterator[Samples]:
        """Batches for one step after the other, of the size of the step."""
        photographs, maker, size = load_photographs(PHOTOGRAPHS), None, 0
        while True:
            if maker is None or size != self.settings.size_at(self.step):
                size = self.settings.size_at(self.step)
                sprites = objects.select(held_out=False).sprites(size) if objects else None
                share = self.settings.object_share
                maker = SampleMaker(seed + self.step, photographs, sprites=sprites, object_share=share, size=size)
            yield maker.make(self.settings.batch_at(self.step))

    def _timesteps(self, count: int) -> Tensor:
        noisy = torch.rand(count) < self.settings.noisy_share
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
        noise = torch.randn(F.pixel_unshuffle(samples.scene, PATCH).shape, generator=torch.Generator().manual_seed(0))
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
        torch.save(state, folder / "state.part")
        (folder / "state.part").replace(folder / "state.pt")

    def resume(self, folder: Path) -> None:
        """Continue from what `save` left; samples and noise are drawn anew, from the step added to the seed."""
        state = torch.load(folder / "state.pt", weights_only=True)
        self.step = state["step"]
        self.networks.load_state_dict(state["networks"])
        self.averaged_networks.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.manual_seed(self.step)


def _networks(pipeline: InpaintPipeline) -> nn.ModuleList:
    return nn.ModuleList([part for part in pipeline.components.values() if isinstance(part, nn.Module)])


def held_out_samples(count: int, seed: int, size: int, objects: Objects | None = None) -> Samples:
    """Samples of objects and photographs that training never sees."""
    sprites = objects.select(held_out=True).sprites(size) if objects else None
    return SampleMaker(seed, load_photographs(HELD_OUT_PHOTOGRAPHS), sprites=sprites, size=size).make(count)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", type=click.Choice(list(MODELS)), default="bundled", help="Whose settings.")
@click.option("--steps", type=int, help="Optimiser steps in all, if not the model's own.")
@click.option("--decay-steps", type=int, help="Last steps, over which the learning rate falls to zero.")
@click.option("--coarse-steps", type=int, help="First steps, on pictures of half the size.")
@click.option("--variant", type=click.Choice(get_args(Variant)), help="A variant of the bundled model.")
@click.option("--objects", type=click.Path(exists=True, path_type=Path), help="Of `attrace.demo.objects`.")
@click.option("--seed", default=1, help="Of weights, samples and noise.")
@click.option("--save-every", default=500, help="Steps between two saves; ten minutes are the most.")
@click.option("--keep", is_flag=True, help="Keep the pipeline of every save, as OUTPUT/steps/STEP.")
@click.option("--resume", is_flag=True, help="Continue the run that is in OUTPUT.")
@click.option(
    "--compiled", is_flag=True, help="Compile the network first: minutes at the start, a quarter faster after."
)
def main(
    output: Path,
    model: str,
    objects: Path | None,
    seed: int,
    save_every: int,
    keep: bool,
    resume: bool,
    compiled: bool,
    **changed: Any,
) -> None:
    """Train, log and save."""
    settings = replace(MODELS[model], **{name: value for name, value in changed.items() if value is not None})
    shown = Objects.load(objects) if objects else None
    trainer = Trainer(settings, seed, objects=shown, compiled=compiled)
    validation = {
        size: held_out_samples(32, 10_000 + seed, size, shown) for size in {settings.size_at(0), settings.size}
    }
    output.mkdir(parents=True, exist_ok=True)
    if resume:
        trainer.resume(output)
    start = saved = time.monotonic()
    losses = []
    with (output / "log.jsonl").open("a" if resume else "w") as log:
        while trainer.step < settings.steps:
            losses.append(trainer.train_step())
            done = trainer.step == settings.steps
            if trainer.step % 100 == 0 or done:
                row = {
                    "step": trainer.step,
                    "loss": sum(losses) / len(losses),
                    "held_out_error": trainer.validation_error(validation[settings.size_at(trainer.step)]),
                    "seconds": time.monotonic() - start,
                }
                losses.clear()
                log.write(json.dumps(row) + "\n")
                log.flush()
                click.echo(json.dumps(row), err=True)
            due = done or trainer.step % save_every == 0
            if due or time.monotonic() - saved > LONGEST_UNSAVED:
                trainer.save(output, also=output / "steps" / f"{trainer.step:05d}" if keep and due else None)
                saved = time.monotonic()


if __name__ == "__main__":
    main()
