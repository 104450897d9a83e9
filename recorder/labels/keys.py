"""Labels of keys: which are patches and on what grid, which are text and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attrace.recorder.labels.call import PipelineCall
from attrace.recorder.labels.profile import KeyContext, Profile
from attrace.schemas import Context, InputError, KeySegment

Grid = tuple[int, int]

_LONGEST_PROMPT = 10**6
"""Tokens; a tokenizer that takes any number says a larger one."""


@dataclass(frozen=True)
class KeyLabels:
    """What the keys of one site are."""

    context: Context
    """Name of the context."""
    segments: tuple[KeySegment, ...]
    """Kinds and grids, in order."""
    guess: str | None = None
    """Why the labels may be wrong; None where they are known."""


def label_keys(
    path: str,
    keys: int,
    *,
    profile: Profile,
    context: Context | None = None,
    queries: int = 0,
    query_grid: Grid | None = None,
    key_grid: Grid | None = None,
) -> KeyLabels:
    """Label the keys of one site.

    Parameters
    ----------
    path
        The site.
    keys
        Number of keys.
    profile
        What is known of the pipeline.
    context
        What the model's structure tells that they are (self-attention, IP-Adapter).
    queries
        Number of queries.
    query_grid
        Rows and columns of the queries.
    key_grid
        Rows and columns of the keys, if the user gave them.

    Raises
    ------
    InputError
        If `key_grid` does not fit the number of keys.
    """
    rule = _rule(path, profile, context)
    if rule.keys == "text":
        return KeyLabels(rule.context, (KeySegment(kind="text", count=keys),))
    if rule.keys in ("query-grid", "replaced") and query_grid is not None and math.prod(query_grid) == keys:
        return KeyLabels(rule.context, _patches(query_grid))
    if rule.keys == "resampler":
        patches = _patches_by_number(keys - queries, rule)
        return replace(patches, segments=(*patches.segments, KeySegment(kind="other", count=queries)))
    if key_grid is not None and rule.context != "self":
        return KeyLabels(rule.context, _given_grid(path, keys, key_grid))
    return _patches_by_number(keys, rule)


def _rule(path: str, profile: Profile, context: Context | None) -> KeyContext:
    if context == "self":
        return KeyContext("self", "query-grid")
    if context is not None:
        return KeyContext(context, "class-and-patches")
    rule = profile.rule_of(path)
    if rule is None:
        raise InputError(
            f"the profile {profile.name!r} says nothing of {path}: leave it out with layers=, or add a rule"
        )
    return rule


def _patches_by_number(keys: int, rule: KeyContext) -> KeyLabels:
    """Keys whose number alone tells what they are: a square of patches, a class token before them, or it alone."""
    known = rule.keys != "guess"
    if keys == 1:
        return KeyLabels(rule.context, (KeySegment(kind="cls", count=1),))
    for cls in (True,) if rule.keys == "class-and-patches" else (False, True):
        side = math.isqrt(keys - cls)
        if side**2 == keys - cls:
            guess = f"took {keys} keys for {side} x {side} patches{' after a class token' * cls} (pass key_grid=)"
            return KeyLabels(rule.context, _patches((side, side), cls=cls), None if known else guess)
    unknown = f"could not tell on what grid {keys} keys lie (pass key_grid=)"
    return KeyLabels(rule.context, (KeySegment(kind="other", count=keys),), None if known else unknown)


def _given_grid(path: str, keys: int, grid: Grid) -> tuple[KeySegment, ...]:
    if keys - math.prod(grid) not in (0, 1):
        raise InputError(
            f"key_grid={grid} holds {math.prod(grid)} keys, or {math.prod(grid) + 1} with a class token; {path} has "
            f"{keys}"
        )
    return _patches(grid, cls=keys > math.prod(grid))


def _patches(grid: Grid, *, cls: bool = False) -> tuple[KeySegment, ...]:
    patches = KeySegment(kind="patch", count=math.prod(grid), grid=grid)
    return (KeySegment(kind="cls", count=1), patches) if cls else (patches,)


@dataclass(frozen=True)
class TokenTexts:
    """The tokens of one prompt."""

    texts: tuple[str, ...]
    """Of every key."""
    segments: tuple[KeySegment, ...]
    """The kinds of the keys."""

    def __add__(self, other: TokenTexts) -> TokenTexts:
        return TokenTexts(self.texts + other.texts, self.segments + other.segments)


def _token_texts(texts: Sequence[str], padding: int = 0) -> TokenTexts:
    """Tokens of which so many at the end are padding."""
    counts = (("text", len(texts) - padding), ("pad", padding))
    segments = tuple(KeySegment(kind=kind, count=count) for kind, count in counts if count)  # type: ignore[arg-type]
    return TokenTexts(tuple(texts), segments)


class Tokens:
    """The tokens of the prompts of a call, for each sample and branch.

    Parameters
    ----------
    pipeline
        Whose tokenizers made them; None for a bare denoiser.
    call
        The pipeline's call, with its prompts.
    samples
        Samples in the batch.
    given
        Token texts that the user gave, which hold for every sample and branch.
    profile
        Which tokenizers there are.
    """

    def __init__(
        self, pipeline: Any, call: PipelineCall, samples: int, given: Sequence[str] | None, profile: Profile
    ) -> None:
        self._pipeline = pipeline
        # the refiner of Stable Diffusion XL has a second tokenizer alone
        there = [name for name in profile.tokenizers if getattr(pipeline, name, None) is not None]
        self._tokenizers = there if profile.joint else there[:1]
        self._joint = profile.joint is not None
        self._arguments: Mapping[str, Any] = call.arguments
        self._samples = samples
        self._given = None if given is None else _token_texts(given)

    def of(self, sample: int, branch: str, keys: int) -> TokenTexts | None:
        """Tokens of a sample in a branch; None where they are not known or do not have that number.

        Raises
        ------
        InputError
            If the tokens that the user gave do not have that number.
        """
        if self._given is not None:
            if len(self._given.texts) != keys:
                raise InputError(f"tokens= has {len(self._given.texts)} texts; the text context has {keys} keys")
            return self._given
        if self._arguments.get("prompt") is None:
            return None  # the pipeline was given embeddings
        tokens = TokenTexts((), ())
        for name in self._tokenizers:
            tokens += self._tokenize(name, self._prompt(sample, branch, name.removeprefix("tokenizer")))
        return tokens if tokens.texts and len(tokens.texts) == keys else None

    def _prompt(self, sample: int, branch: str, suffix: str) -> str:
        name = "prompt" if branch == "conditional" else "negative_prompt"
        own = self._arguments.get(name + suffix) if self._joint else None  # a prompt for this tokenizer alone
        prompts = own or self._arguments.get(name) or ""
        if isinstance(prompts, str):
            return prompts
        images_each = max(1, self._samples // len(prompts))
        return str(prompts[min(sample // images_each, len(prompts) - 1)])

    def _tokenize(self, name: str, prompt: str) -> TokenTexts:
        tokenizer = getattr(self._pipeline, name)
        convert = getattr(self._pipeline, "maybe_convert_prompt", None)  # textual inversion
        if convert is not None:
            prompt = convert(prompt, tokenizer)
        longest = tokenizer.model_max_length
        if self._joint and name != "tokenizer":  # of T5, which takes any length
            longest = int(self._arguments.get("max_sequence_length") or longest)
        if longest > _LONGEST_PROMPT:  # the tokenizer knows of no limit, so there is nothing to fill up
            encoded = tokenizer(prompt)
        else:
            encoded = tokenizer(prompt, padding="max_length", max_length=longest, truncation=True)
        texts = list(map(str, tokenizer.convert_ids_to_tokens(encoded["input_ids"])))
        return _token_texts(texts, padding=len(texts) - sum(encoded["attention_mask"]))
