"""What is known of a pipeline by its class: what its keys are, and how guidance lies in its batches. Data, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Literal

from attrace.schemas import Context, InputError

KeyRule = Literal["text", "patches", "class-and-patches", "resampler", "query-grid", "joined", "replaced", "guess"]
"""How to label keys: text tokens; patches on a square grid, perhaps after a class token, or that token alone; the same
with the class token, or else tokens without a place (IP-Adapter's 4 or 16); such patches and then the
queries themselves; patches on the grid of the queries; the
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
    """Attribute of the pipeline that holds the denoiser, perhaps with dots; None to look for it."""
    joint: TokenOrder | None = None
    """Order of the tokens where the denoiser attends jointly to text and pictures; `contexts` is of no use there."""
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")
    """Attributes of the pipeline that hold the tokenizers of its prompts. The text is that of the first that there is;
    of joint attention that of each, one after the other."""
    modules: tuple[str, ...] = ()
    """Glob patterns of module paths that only a denoiser of this family has: it is known by them, whatever the class
    of its pipeline."""
    tile: tuple[str, str] | None = None
    """Variables of the pipeline's call that hold the row and column of a tile in the latent, where a large picture is
    made in tiles."""
    tile_counts: tuple[str, str] | None = None
    """Variables of that call that hold how many rows and columns of tiles there are: without, only the size of one tile
    can be estimated."""
    note: str | None = None
    """What a reader of the trace should know of the family."""
    guess: str | None = None
    """Why all this may be wrong; None where it is known."""

    @property
    def holds_several_contexts(self) -> bool:
        """Whether one attention call may attend to several contexts."""
        return self.joint is not None or any(one.keys in JOINED_RULES for one in self.contexts)


# an IP-Adapter that makes its tokens by attention to the patches of its picture does so inside the denoiser
_TEXT = (KeyContext("image-prompt", "resampler", "encoder_hid_proj.*"), KeyContext("text", "text"))

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

_BY_CHANNELS = (
    "its {picture} comes in by the channels of the latent, so there is no attention to it to record: the keys are text"
)
_THREE_BRANCHES = MappingProxyType({1: ("conditional",), 3: ("conditional", "image", "unconditional")})
"""The text and the picture, the picture alone, neither (InstructPix2Pix, section 3.2.1)."""

_LATENT_DIFFUSION = "model.diffusion_model"
"""Where the original latent diffusion code keeps the denoiser of a model."""

_TILE, _TILE_COUNTS = ("input_start_y", "input_start_x"), ("grid_rows", "grid_cols")
"""As the pipelines of PASD and SeeSR name them."""

FAMILIES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        one.name: one
        for one in (
            Profile("paint-by-example-ldm", (KeyContext("reference", "patches"),), denoiser=_LATENT_DIFFUSION),
            Profile("dci-vton", (KeyContext("reference", "patches"),), denoiser=_LATENT_DIFFUSION),
            Profile(
                "stableviton",
                # the cloth's features, on the grid of the queries; everywhere else one CLIP vector of the cloth
                (KeyContext("reference", "query-grid", "*warp_flow_blks.*"), KeyContext("image-prompt", "patches")),
                guidance=_ONE_BRANCH,  # its sampler calls the denoiser for each branch
                denoiser=_LATENT_DIFFUSION,
                modules=("*warp_flow_blks.*",),
            ),
            Profile(
                "pasd",
                (
                    KeyContext("reference", "query-grid", "*.pixel_attentions.*"),
                    KeyContext("reference", "query-grid", "*.attn2_plus"),
                    *_TEXT,
                ),
                modules=("*.pixel_attentions.*", "*.attn2_plus"),
                tile=_TILE,
                tile_counts=_TILE_COUNTS,
                note="of a picture made in tiles, each tile is a call of its own, in the order of the pipeline",
            ),
            Profile(
                "seesr",
                (KeyContext("reference", "class-and-patches", "*.image_attentions.*"), *_TEXT),
                modules=("*.image_attentions.*",),
                tile=_TILE,
                tile_counts=_TILE_COUNTS,
            ),
        )
    }
)
"""Profiles of research code, by their names."""

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "StableDiffusionPipeline",
                "StableDiffusionImg2ImgPipeline",
                "StableDiffusionDepth2ImgPipeline",
                "StableDiffusionAdapterPipeline",
                "StableDiffusionControlNetPipeline",
                "StableDiffusionControlNetImg2ImgPipeline",
                "LatentConsistencyModelPipeline",
                "LatentConsistencyModelImg2ImgPipeline",
            ),
            _STABLE_DIFFUSION,
        ),
        **dict.fromkeys(
            (
                "StableDiffusionXLPipeline",
                "StableDiffusionXLImg2ImgPipeline",
                "StableDiffusionXLAdapterPipeline",
                "StableDiffusionXLControlNetPipeline",
                "StableDiffusionXLControlNetImg2ImgPipeline",
            ),
            Profile("stable-diffusion-xl", _TEXT),
        ),
        **dict.fromkeys(
            (
                "StableDiffusionInpaintPipeline",
                "StableDiffusionControlNetInpaintPipeline",
                "StableDiffusionXLInpaintPipeline",
                "StableDiffusionXLControlNetInpaintPipeline",
            ),
            Profile("inpainting", _TEXT, note=_BY_CHANNELS.format(picture="scene (where its U-Net takes 9 channels)")),
        ),
        "StableDiffusionUpscalePipeline": Profile(
            "upscaler", _TEXT, note=_BY_CHANNELS.format(picture="low-resolution picture")
        ),
        **dict.fromkeys(
            ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
            Profile(
                "instruct-pix2pix", _TEXT, guidance=_THREE_BRANCHES, note=_BY_CHANNELS.format(picture="input picture")
            ),
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
        **dict.fromkeys(
            ("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "Flux2Transformer2DModel"),
            replace(_FLUX, name="flux-2", tokenizers=()),
        ),
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
    """The profile of a pipeline or denoiser; None if none is known.

    It is that of the family whose modules the denoiser has, or its class's, or the nearest parent's.
    """
    denoiser = model if hasattr(model, "named_modules") else getattr(model, "unet", None)
    paths = [] if denoiser is None else [path for path, _ in denoiser.named_modules()]
    for family in FAMILIES.values():
        if any(fnmatchcase(path, pattern) for path in paths for pattern in family.modules):
            return family
    names = (parent.__name__ for parent in type(model).__mro__)
    return next((PROFILES[name] for name in names if name in PROFILES), None)


def named_profile(name: str) -> Profile:
    """The profile of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    known = {one.name: one for one in PROFILES.values()} | dict(FAMILIES)
    if name not in known:
        raise InputError(f"profile={name!r}: expected a Profile, or the name of one: {', '.join(sorted(known))}")
    return known[name]


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
    # what its text encoder is given may be a template, or the end of one: no texts are better than wrong ones
    tokenizers = () if profile.name == "none" else profile.tokenizers
    return replace(profile, joint="text-first", tokenizers=tokenizers, guess=guess)


def rule_of(profile: Profile, path: str) -> KeyContext | None:
    """What the profile says of the keys of a site; None where it says nothing."""
    return next((one for one in profile.contexts if fnmatchcase(path, one.layers)), None)


def with_context(profile: Profile, context: Context) -> Profile:
    """A profile whose keys are what the user said they are."""
    rule: KeyRule = "text" if context == "text" else "guess"
    return replace(profile, contexts=(KeyContext(context, rule),))
