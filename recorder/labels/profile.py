"""What is known of a pipeline beforehand: what its keys are, and how guidance lies in its batches. Data, no code.

The profiles of known families are the TOML files in `profiles/`, one a family; `docs/models.md` tells how to write one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from attrace.schemas import Context, InputError

KeyRule = Literal["text", "patches", "class-and-patches", "resampler", "query-grid", "joined", "replaced", "guess"]
"""How to label keys: text tokens; patches on a square grid, perhaps after a class token, or that token alone; the same
with the class token, or else tokens without a place (IP-Adapter's 4 or 16); such patches and then the
queries themselves; patches on the grid of the queries; the
picture's own patches and then those of references, which a reference network joined to its self-attention; patches of
another picture in place of its own; or patches if their number allows it, noted as a guess."""

TokenOrder = Literal["text-first", "image-first"]
"""Order of the tokens of joint attention: text before the pictures, or after them. Pictures: generated, references."""

Generates = Literal["first", "all-but-last"]
"""Which of the pictures among the tokens of joint attention are generated, where not the first alone."""

JOINED_RULES: Final = ("joined", "replaced")
"""Of self-attention whose keys come, in part or all, from another picture."""

TWO_BRANCHES: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType(
    {1: ("conditional",), 2: ("unconditional", "conditional")}
)
"""Guidance of most pipelines: one batch, the unconditional half first."""

_STRICT = ConfigDict(extra="forbid")


class LabelWarning(UserWarning):
    """A label of the trace is a guess: nothing that is recorded is wrong, but what it is called may be."""


@dataclass(frozen=True, config=_STRICT)
class KeyContext:
    """What the keys of some of the sites are."""

    context: Context
    """Name of the context."""
    keys: KeyRule
    """How to label them."""
    layers: str = "*"
    """The sites it holds for: a glob pattern of module paths."""


@dataclass(frozen=True, config=_STRICT)
class Profile:
    """What the recorder knows of a pipeline beforehand."""

    name: str
    """In the manifest."""
    contexts: tuple[KeyContext, ...] = ()
    """The first whose pattern matches a site holds for it."""
    guidance: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: TWO_BRANCHES)
    """Branches in the order of their blocks in the batch, by the number of blocks."""
    denoiser: str | None = None
    """Attribute of the pipeline that holds the denoiser, perhaps with dots; None for its `unet` or `transformer`."""
    joint: TokenOrder | None = None
    """Order of the tokens where the denoiser attends jointly to text and pictures; `contexts` is of no use there."""
    generates: Generates = "first"
    """Which pictures of joint attention are generated; the others are references."""
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")
    """Attributes of the pipeline that hold the tokenizers of its prompts. The text is that of the first that there is;
    of joint attention that of each, one after the other."""
    pipelines: tuple[str, ...] = ()
    """Classes of pipelines and denoisers that are of this family; a subclass has its parent's profile."""
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

    def rule_of(self, path: str) -> KeyContext | None:
        """What the profile says of the keys of a site; None where it says nothing."""
        return next((one for one in self.contexts if fnmatchcase(path, one.layers)), None)


_PROFILE: Final = TypeAdapter(Profile)


@cache
def known_profiles() -> Mapping[str, Profile]:
    """The profiles of known families, by name."""
    folder = files("attrace.recorder.labels") / "profiles"
    texts = (one.read_text(encoding="utf-8") for one in folder.iterdir() if one.name.endswith(".toml"))
    profiles = (_PROFILE.validate_python(tomllib.loads(text)) for text in texts)
    return MappingProxyType({one.name: one for one in sorted(profiles, key=lambda one: one.name)})


def find_profile(model: Any) -> Profile | None:
    """The profile of a pipeline or denoiser; None if none is known.

    It is that of the family whose modules the denoiser has, or its class's, or the nearest parent's.
    """
    denoiser = model if hasattr(model, "named_modules") else getattr(model, "unet", None)
    paths = [] if denoiser is None else [path for path, _ in denoiser.named_modules()]
    profiles = known_profiles().values()
    for family in profiles:
        if any(fnmatchcase(path, pattern) for path in paths for pattern in family.modules):
            return family
    by_class = {name: one for one in profiles for name in one.pipelines}
    return next((by_class[one.__name__] for one in type(model).__mro__ if one.__name__ in by_class), None)


def named_profile(name: str) -> Profile:
    """The profile of that name, or the one in that TOML file.

    Raises
    ------
    InputError
        If there is none, or the file does not hold one.
    """
    if name.endswith(".toml"):
        return _read_profile(Path(name))
    known = known_profiles()
    if name not in known:
        raise InputError(f"profile={name!r}: expected a Profile, a .toml file, or the name of one: {', '.join(known)}")
    return known[name]


def _read_profile(path: Path) -> Profile:
    try:
        return _PROFILE.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
    except (OSError, ValueError) as error:
        found = str(error)
    raise InputError(f"profile={str(path)!r}: expected a profile as docs/models.md describes it, found {found}")


def guess_profile(model: Any, context: Context | None) -> Profile:
    """A profile for what has none; `context` is what the user said the keys are."""
    guess = None
    if context is None:
        context = "text" if getattr(model, "tokenizer", None) is not None else "reference"
        guess = f"nothing is known of {type(model).__name__}: took its keys for {context} (pass context=)"
    return with_context(Profile("none", guess=guess), context)


def guess_joint(profile: Profile, model: Any) -> Profile:
    """A profile for joint attention of which nothing is known."""
    guess = (
        f"nothing is known of {type(model).__name__}: took the tokens of its joint attention for text, then the "
        "generated picture, then references (pass profile=)"
    )
    # what its text encoder is given may be a template, or the end of one: no texts are better than wrong ones
    tokenizers = () if profile.name == "none" else profile.tokenizers
    return replace(profile, joint="text-first", tokenizers=tokenizers, guess=guess)


def with_context(profile: Profile, context: Context) -> Profile:
    """A profile whose keys are what the user said they are."""
    return replace(profile, contexts=(KeyContext(context, "text" if context == "text" else "guess"),))


REFERENCE_NETWORK: Final = known_profiles()["reference-network"]
"""A U-Net whose self-attention a reference network joins keys to (IDM-VTON, Leffa, reference-only control)."""

MUTUAL_ATTENTION: Final = known_profiles()["mutual-attention"]
"""A U-Net whose self-attention takes the keys of another picture in place of its own (MasaCtrl)."""
