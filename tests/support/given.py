"""The models that pages of the documentation record, with what they are called with: small, on random weights."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from diffusers import FluxTransformer2DModel
from support import models, transformers
from support.pages import ROOT
from support.research.restoration import UNet2DConditionModel
from torch import Tensor

from attrace.demo.pictures import load_pictures
from attrace.demo.pipeline import to_mask, to_tensor
from attrace.demo.run import load_pipeline

SMALL: Final = {"prompt": "a cat", "height": 16, "width": 16, "num_inference_steps": 2}


def given_names(model: str) -> dict[str, Any]:
    """The names that blocks with this model use."""
    return MODELS[model]()


def _demo() -> dict[str, Any]:
    pictures = load_pictures()
    two = {
        "scenes": to_tensor(pictures.scene),
        "masks": to_mask(pictures.mask),
        "references": to_tensor(pictures.reference),
    }
    return {
        "pipe": load_pipeline(),
        "scene": pictures.scene,
        "mask": pictures.mask,
        "reference": pictures.reference,
        **{name: torch.cat([one, one]) for name, one in two.items()},
    }


def _controlnet() -> dict[str, Any]:
    return {"pipe": models.controlnet(), "arguments": SMALL | {"image": models.picture(16, 16)}}


def _restorer() -> dict[str, Any]:
    def restore(unet: Any) -> Tensor:
        text, pixels = torch.randn(2, 9, 10), tuple(torch.randn(2, 8, 6 * size, 8 * size) for size in (1, 2))
        with torch.no_grad():
            restored: Tensor = unet(
                torch.randn(2, 4, 12, 16), torch.tensor(999.0), text, pixels, torch.randn(2, 145, 6)
            )
        return restored

    return {"unet": UNet2DConditionModel("pasd-light"), "restore": restore}


def _flux() -> dict[str, Any]:
    """With as many blocks as a glob of the page needs."""
    pipe = transformers.flux()
    pipe.transformer = FluxTransformer2DModel.from_config({**pipe.transformer.config, "num_layers": 12}).eval()
    return {"pipe": pipe, "arguments": SMALL | {"max_sequence_length": transformers.TEXT_TOKENS}}


def _transformer() -> dict[str, Any]:
    pipe = transformers.stable_diffusion_3()
    return {"pipe": pipe, "arguments": SMALL | {"max_sequence_length": transformers.TEXT_TOKENS}}


def _reference_network() -> dict[str, Any]:
    pipe = models.stable_diffusion()
    example = runpy.run_path(str(ROOT / "examples/reference_network.py"))
    example["join_reference"](pipe, models.picture(16, 16), (16, 16))
    return {"pipe": pipe, "arguments": SMALL}


MODELS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "demo": _demo,
    "controlnet": _controlnet,
    "restorer": _restorer,
    "flux": _flux,
    "transformer": _transformer,
    "reference-network": _reference_network,
}
"""By the name that a page gives."""
