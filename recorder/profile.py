"""What is known of a pipeline by its class: what its keys are, and how guidance lies in its batches. Data, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Literal

from attrace.schemas import Context

KeyRule = Literal["text", "patches", "class-and-patches", "query-grid", "joined", "replaced", "guess"]
"""How to label keys: text tokens; patches on a square grid, perhaps after a class token, or that token alone; the same
with the class token, or else tokens without a place (IP-Adapter's 4 or 16); patches on the grid of the queries; the
picture's own patches and then those of references, which a reference network joined to its self-attention; patches of
another picture in place of its own; or patches if their number allows it, noted as a guess."""

TokenOrder = Literal["text-first", "image-first"]
"""Order of the tokens of joint attention: text before the pictures, or after them. Pictures: generated, references."""

JOINED_RULES: Final = ("joined", "replaced")
"""Of self-attention whose keys come, in part or all, from another picture."""


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
    joint: TokenOrder | None = None
    """Order of the tokens where the denoiser attends jointly to text and pictures; `contexts` is of no use there."""
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")
    """Attributes of the pipeline that hold the tokenizers of its prompts. The text is that of the first that there is;
    of joint attention that of each, one after the other."""
    guess: str | None = None
    """Why all this may be wrong; None where it is known."""

    @property
    def holds_several_contexts(self) -> bool:
        """Whether one attention call may attend to several contexts."""
        return self.joint is not None or any(one.keys in JOINED_RULES for one in self.contexts)


_TEXT = (KeyContext("text", "text"),)

REFERENCE_NETWORK: Final = Profile(
    "reference-network", (KeyContext("reference", "joined", layers="*attn1"), *_TEXT), denoiser=None
)
"""A U-Net whose self-attention a reference network joins keys to (IDM-VTON, Leffa, reference-only control)."""

MUTUAL_ATTENTION: Final = Profile(
    "mutual-attention", (KeyContext("reference", "replaced", layers="*attn1"), *_TEXT), denoiser=None
)
"""A U-Net whose self-attention takes the keys of another picture in place of its own (MasaCtrl)."""

_ONE_BRANCH: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType({1: ("conditional",)})

_FLUX = Profile(
    "flux", (), guidance=_ONE_BRANCH, denoiser="transformer", joint="text-first", tokenizers=("tokenizer_2",)
)
_STABLE_DIFFUSION_3 = Profile(
    "stable-diffusion-3", (), denoiser="transformer", joint="image-first", tokenizers=("tokenizer", "tokenizer_3")
)
# the template that its encoder is given is cut off after encoding, so its tokens are not those of the prompt
_QWEN_IMAGE = Profile("qwen-image", (), guidance=_ONE_BRANCH, denoiser="transformer", joint="text-first", tokenizers=())

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
        **dict.fromkeys(
            (
                "StableDiffusion3Pipeline",
                "StableDiffusion3Img2ImgPipeline",
                "StableDiffusion3InpaintPipeline",
                "StableDiffusion3ControlNetPipeline",
                "StableDiffusion3ControlNetInpaintingPipeline",
                "SD3Transformer2DModel",
            ),
            _STABLE_DIFFUSION_3,
        ),
        **dict.fromkeys(
            (
                "FluxPipeline",
                "FluxImg2ImgPipeline",
                "FluxInpaintPipeline",
                "FluxFillPipeline",
                "FluxControlPipeline",
                "FluxControlNetPipeline",
                "FluxTransformer2DModel",
            ),
            _FLUX,
        ),
        # its text encoder is given a template, of which layers in the middle are taken
        **dict.fromkeys(("Flux2Pipeline", "Flux2Transformer2DModel"), replace(_FLUX, name="flux-2", tokenizers=())),
        **dict.fromkeys(("FluxKontextPipeline", "FluxKontextInpaintPipeline"), replace(_FLUX, name="flux-kontext")),
        **dict.fromkeys(("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageTransformer2DModel"), _QWEN_IMAGE),
        **dict.fromkeys(
            ("QwenImageEditPipeline", "QwenImageEditInpaintPipeline", "QwenImageEditPlusPipeline"),
            replace(_QWEN_IMAGE, name="qwen-image-edit"),
        ),
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


def guess_joint(profile: Profile, model: Any) -> Profile:
    """A profile for joint attention of which nothing is known."""
    guess = (
        f"nothing is known of {type(model).__name__}: took the tokens of its joint attention for text, then the "
        "generated picture, then references (pass profile=)"
    )
    return replace(profile, joint="text-first", guess=guess)


def rule_of(profile: Profile, path: str) -> KeyContext | None:
    """What the profile says of the keys of a site; None where it says nothing."""
    return next((one for one in profile.contexts if fnmatchcase(path, one.layers)), None)


def with_context(profile: Profile, context: Context) -> Profile:
    """A profile whose keys are what the user said they are."""
    rule: KeyRule = "text" if context == "text" else "guess"
    return replace(profile, contexts=(KeyContext(context, rule),))
