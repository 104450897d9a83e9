"""What is known of a pipeline by its class: what its keys are, and how guidance lies in its batches. Data, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from attrace.schemas import Context

KeyRule = Literal["text", "patches", "class-and-patches", "query-grid", "guess"]
"""How to label keys: text tokens; patches on a square grid, perhaps after a class token, or that token alone; the same
with the class token, or else tokens without a place (IP-Adapter's 4 or 16); patches on the grid of the queries; or
patches if their number allows it, noted as a guess."""


class LabelWarning(UserWarning):
    """A label of the trace is a guess: nothing that is recorded is wrong, but what it is called may be."""


@dataclass(frozen=True)
class KeyContext:
    """What the keys of some of the sites are."""

    context: Context
    """Name of the context."""
    keys: KeyRule
    """How to label them."""
    layers: str = "*"
    """The sites it holds for: a glob pattern of module paths."""


TWO_BRANCHES: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType(
    {1: ("conditional",), 2: ("unconditional", "conditional")}
)
"""Guidance of most pipelines: one batch, the unconditional half first."""


@dataclass(frozen=True)
class Profile:
    """What the recorder knows of a pipeline beforehand."""

    name: str
    """In the manifest."""
    contexts: tuple[KeyContext, ...]
    """The first whose pattern matches a site holds for it."""
    guidance: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: TWO_BRANCHES)
    """Branches in the order of their blocks in the batch, by the number of blocks."""
    denoiser: str | None = "unet"
    """Attribute of the pipeline that holds the denoiser; None to look for it."""
    guess: str | None = None
    """Why all this may be wrong; None where it is known."""


_TEXT = (KeyContext("text", "text"),)

_STABLE_DIFFUSION = Profile("stable-diffusion", _TEXT)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "StableDiffusionPipeline",
                "StableDiffusionImg2ImgPipeline",
                "StableDiffusionInpaintPipeline",
                "StableDiffusionDepth2ImgPipeline",
                "StableDiffusionUpscalePipeline",
                "StableDiffusionAdapterPipeline",
                "StableDiffusionControlNetPipeline",
                "StableDiffusionControlNetImg2ImgPipeline",
                "StableDiffusionControlNetInpaintPipeline",
                "LatentConsistencyModelPipeline",
                "LatentConsistencyModelImg2ImgPipeline",
            ),
            _STABLE_DIFFUSION,
        ),
        **dict.fromkeys(
            (
                "StableDiffusionXLPipeline",
                "StableDiffusionXLImg2ImgPipeline",
                "StableDiffusionXLInpaintPipeline",
                "StableDiffusionXLAdapterPipeline",
                "StableDiffusionXLControlNetPipeline",
                "StableDiffusionXLControlNetImg2ImgPipeline",
                "StableDiffusionXLControlNetInpaintPipeline",
            ),
            Profile("stable-diffusion-xl", _TEXT),
        ),
        "StableDiffusionInstructPix2PixPipeline": Profile(
            "instruct-pix2pix",
            _TEXT,
            # the text and the picture, the picture alone, neither (InstructPix2Pix, section 3.2.1)
            guidance={1: ("conditional",), 3: ("conditional", "image", "unconditional")},
        ),
        "StableDiffusionXLInstructPix2PixPipeline": Profile(
            "instruct-pix2pix-xl",
            _TEXT,
            guidance={1: ("conditional",), 3: ("conditional", "image", "unconditional")},
        ),
        "PaintByExamplePipeline": Profile("paint-by-example", (KeyContext("reference", "patches"),)),
        "StableDiffusionImageVariationPipeline": Profile("image-variation", (KeyContext("reference", "patches"),)),
        "ReferenceInpaintPipeline": Profile("attrace-demo", (KeyContext("reference", "patches"),)),
    }
)
"""Profiles by the name of the pipeline's class; a subclass has its parent's."""


def find_profile(model: Any) -> Profile | None:
    """The profile of a pipeline: its class's, or the nearest parent's; None if none is known."""
    names = (parent.__name__ for parent in type(model).__mro__)
    return next((PROFILES[name] for name in names if name in PROFILES), None)


def guess_profile(model: Any, context: Context | None) -> Profile:
    """A profile for what has none; `context` is what the user said the keys are."""
    guess = None
    if context is None:
        context = "text" if getattr(model, "tokenizer", None) is not None else "reference"
        guess = f"nothing is known of {type(model).__name__}: took its keys for {context} (pass context=)"
    return with_context(Profile("none", (), denoiser=None, guess=guess), context)


def with_context(profile: Profile, context: Context) -> Profile:
    """A profile whose keys are what the user said they are."""
    rule: KeyRule = "text" if context == "text" else "guess"
    return replace(profile, contexts=(KeyContext(context, rule),))
