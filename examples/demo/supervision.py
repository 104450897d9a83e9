"""Attention that is told where each patch comes from: its error, and what the truth is in tokens of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from attrace.demo.data import Samples
from attrace.demo.model import PATCH
from attrace.demo.placement import reference_position


class AttentionSupervision:
    """Cross-entropy of attention layers with the true places, of the patches inside the mask.

    Used as a context around the call of the U-Net.

    Parameters
    ----------
    denoiser
        Whose layers.
    patterns
        Of the module paths of cross-attention modules of diffusers whose queries are a grid as fine as the keys'.
    """

    def __init__(self, denoiser: nn.Module, patterns: Sequence[str]) -> None:
        self._layers: list[Attention] = [
            module
            for name, module in denoiser.named_modules()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
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
        errors = [samples.scene.new_zeros(())]
        for layer in self._layers:
            query, key = (
                self._projected[part].unflatten(2, (layer.heads, -1)).transpose(1, 2)
                for part in (layer.to_q, layer.to_k)
            )
            logarithms = F.log_softmax(query @ key.transpose(2, 3) * layer.scale, dim=-1).mean(1)
            errors.append(F.nll_loss(logarithms[inside], places[inside], reduction="sum"))
        return torch.stack(errors).sum() / (len(self._layers) * inside.sum()).clamp(min=1)


def true_tokens(samples: Samples) -> tuple[Tensor, Tensor]:
    """For each patch of the scene, the token of the reference that it comes from, and whether it lies in the mask.

    Returns
    -------
    places
        int64 (sample, patch).
    inside
        bool (sample, patch): wholly inside the mask.
    """
    position = F.avg_pool2d(reference_position(samples.placement, samples.size), PATCH)
    count = position.shape[-1]
    column, row = ((position + 1) / 2 * count).long().clamp(0, count - 1).unbind(1)
    inside = F.avg_pool2d(samples.mask, PATCH)[:, 0] == 1
    return (row * count + column).flatten(1), inside.flatten(1)
