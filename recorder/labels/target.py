"""What of a model is watched: its denoiser, the attention calls in it, and the profile of its family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

from torch import nn

from attrace.recorder.capture.sites import Candidate, find_candidates, find_denoiser, find_network
from attrace.recorder.labels.joint import refuse_unknown_layout
from attrace.recorder.labels.profile import (
    JOINED_RULES,
    Profile,
    find_profile,
    guess_joint,
    guess_profile,
    named_profile,
    with_context,
)
from attrace.schemas import Context, InputError


@dataclass(frozen=True)
class Target:
    """The part of a model that is watched."""

    denoiser: nn.Module
    candidates: tuple[Candidate, ...]
    """Every attention call that could be recorded; those whose keys are of several kinds are marked."""
    profile: Profile


def find_target(
    model: Any,
    profile: Profile | str | PathLike[str] | None,
    network: str | None,
    contexts: tuple[Context, ...] | None,
) -> Target:
    """Find the denoiser of a model and the attention in it; arguments and errors are those of `record`."""
    profile = _resolve_profile(model, profile, contexts)
    denoiser = find_network(model, network) if network else find_denoiser(model, profile.denoiser)
    found = find_candidates(denoiser)
    if any(one.joint for one in found):
        refuse_unknown_layout(denoiser)
        profile = profile if profile.joint else guess_joint(profile, model)
    return Target(denoiser, tuple(_mark_joined(one, profile) for one in found), profile)


def _resolve_profile(
    model: Any, profile: Profile | str | PathLike[str] | None, contexts: tuple[Context, ...] | None
) -> Profile:
    if isinstance(profile, str | PathLike):
        profile = named_profile(fspath(profile))
    profile = profile or find_profile(model)
    if profile is None:
        return guess_profile(model, None if contexts is None else contexts[0])
    if contexts is None or profile.holds_several_contexts:
        return profile
    if len(contexts) != 1:
        raise InputError(f"context={contexts}: the keys of {type(model).__name__} are all of one context; name one")
    return with_context(profile, contexts[0])


def _mark_joined(candidate: Candidate, profile: Profile) -> Candidate:
    """A candidate whose keys are of several kinds, by what the profile says, is seen only at the attention call."""
    rule = profile.rule_of(candidate.path)
    is_joint = profile.joint is not None or (rule is not None and rule.keys in JOINED_RULES)
    return replace(candidate, joint=True) if is_joint else candidate
