"""Settings of training: what a run depends on beside its samples, and those of each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from attrace.demo.data import SIZE
from attrace.demo.joint import build_joint_pipeline
from attrace.demo.pipeline import InpaintPipeline, build_pipeline

Model = Literal["unet", "joint"]

Variant = Literal["plain", "no-positions", "coarse", "supervised"]

FIRST_AND_LAST: Final = ("down_blocks.0.attentions.0.*.attn2", "up_blocks.1.attentions.1.*.attn2")
"""The cross-attention layers of a U-Net that its supervised variant is told the truth in."""


@dataclass(frozen=True)
class Settings:
    """What a training run depends on, beside the samples."""

    steps: int = 3500
    """Optimiser steps in all."""
    decay_steps: int = 1200
    """The last steps, over which the learning rate falls to zero."""
    model: Model = "unet"
    """Which network."""
    size: int = SIZE
    """Rows and columns of the pictures."""
    coarse_steps: int = 0
    """The first steps, on pictures of half the size."""
    warmup_steps: int = 200
    """The first steps, over which the learning rate rises."""
    learning_rate: float = 2e-3
    """AdamW's, at its highest."""
    batch: int = 16
    """Samples in a step; a quarter of them where pictures are of twice the size of the first step."""
    drop_reference: float = 0.05
    """Share of samples trained without their reference, for classifier-free guidance."""
    average: float = 0.998
    """Decay of the exponential moving average of the weights."""
    outside_weight: float = 0.02
    """Weight of the error outside the mask, where the scene is given."""
    edge_weight: float = 0.0
    """Weight of the error of differences between neighbouring pixels."""
    noisy_share: float = 0.5
    """Share of samples drawn from the noisiest fifth of the timesteps, where only the reference can help."""
    object_share: float = 0.75
    """Share of samples that show one of the given objects, if any are given; the others show made ones."""
    channels: tuple[int, int] = (64, 96)
    """Of the two levels of the U-Net."""
    frequencies: int = 4
    """Octaves in the features of reference positions."""
    variant: Variant = "plain"
    """What is different from the demo's model."""
    supervised: tuple[str, ...] = ()
    """Patterns of module paths: cross-attention layers that are told where each patch comes from."""
    attention_weight: float = 0.02
    """Weight of the cross-entropy of supervised layers with the true places."""

    @property
    def supervised_layers(self) -> tuple[str, ...]:
        """Patterns of the layers that are supervised, by the variant or else by the model."""
        return FIRST_AND_LAST if self.variant == "supervised" else self.supervised

    def build(self) -> InpaintPipeline:
        """The untrained pipeline."""
        if self.model == "joint":
            return build_joint_pipeline(size=self.size, frequencies=self.frequencies)
        return build_pipeline(
            self.channels,
            token_channels=self.channels[1],
            positions=self.variant != "no-positions",
            fine_attention=self.variant != "coarse",
            size=self.size,
            frequencies=self.frequencies,
        )

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        fall = min(1.0, (self.steps - step) / self.decay_steps)
        return self.learning_rate * rise * fall

    def size_at(self, step: int) -> int:
        """Rows and columns of the pictures of a step."""
        return self.size // 2 if step < self.coarse_steps else self.size

    def batch_at(self, step: int) -> int:
        """Samples of a step."""
        return self.batch * self.size_at(0) ** 2 // self.size_at(step) ** 2


MODELS: Final = {
    "bundled": Settings(),
    "unet": Settings(
        steps=4400,
        decay_steps=1000,
        size=128,
        coarse_steps=3400,
        learning_rate=1.5e-3,
        drop_reference=0.1,
        edge_weight=0.25,
        channels=(96, 128),
        frequencies=5,
        supervised=("down_blocks.0.*.attn2", "up_blocks.1.*.attn2"),
    ),
    "joint": Settings(
        steps=3600,
        decay_steps=1000,
        model="joint",
        size=128,
        coarse_steps=2600,
        warmup_steps=100,
        learning_rate=1.2e-3,
        drop_reference=0.1,
        edge_weight=0.25,
        frequencies=5,
    ),
}
"""The settings of each model, by its name."""
