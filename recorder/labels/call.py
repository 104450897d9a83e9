"""What can be read from the call of a pipeline that is under way: its arguments, its guidance, its steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from pydantic import JsonValue

from attrace.recorder.labels.profile import Profile

_LONGEST = 1000
"""Items of a list that is still an argument and not data."""

_SEPARATE = "do_true_cfg"
"""Variable of the pipelines of diffusers that call their denoiser once for each branch."""

_SAMPLER = ("unconditional_guidance_scale", "unconditional_conditioning")
"""Arguments of every sampler of the original latent diffusion code; without the second there is no guidance."""


@dataclass(frozen=True)
class PipelineCall:
    """A pipeline's `__call__` as it stands when it calls its denoiser; empty for a bare denoiser.

    Holds plain values only: a reference to a tensor would keep it alive for the whole run.
    """

    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    """The arguments that are plain JSON."""
    guided: bool | None = None
    """Whether it uses classifier-free guidance; None where that cannot be told."""
    denoiser_calls: int | None = None
    """Calls of the denoiser that are planned: one for each step of the schedule and each tile of the picture, if it is
    made in tiles; those of one step's branches count as one."""
    counts_tiles: bool = True
    """Whether all tiles are in `denoiser_calls`, or one only, as their number is not known."""
    separate_branches: bool = False
    """Guidance calls the denoiser once for each branch, the conditional one first."""
    by_sampler: bool = False
    """The samplers of the latent diffusion code do so too (StableVITON's), or give both branches in one batch; the
    batch tells."""
    guess_mode: bool = False
    """A ControlNet is called for the conditional branch alone."""

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale that was asked for."""
        # the models that were distilled from guidance (Flux) have a `guidance_scale` that is something else
        scale = self.arguments.get("true_cfg_scale" if self.separate_branches else "guidance_scale")
        return float(scale) if _is_number(scale) else None  # type: ignore[arg-type]

    def span(self, steps: int | None) -> str:
        """For a message: what an estimate over that many recorded calls is of."""
        return ("each step" if steps is None else f"{steps} steps") + " of one tile" * (not self.counts_tiles)

    def without_prompts(self) -> PipelineCall:
        """The call with nothing that was written by a person."""
        kept = {name: value for name, value in self.arguments.items() if "prompt" not in name or _is_number(value)}
        return replace(self, arguments=kept)


def read_call(pipeline: Any, profile: Profile | None = None) -> PipelineCall:
    """Read the call of a pipeline from the stack: only while it waits for its denoiser."""
    frame = next((one for one in _frames() if _is_call_of(pipeline, one)), None)
    if frame is None:
        return _read_sampler(pipeline)
    variables, names = frame.f_locals, _argument_names(frame)
    arguments = {name: variables[name] for name in names if name in variables and _is_plain(variables[name])}
    planned, number = _planned_calls(pipeline, variables), _number_of_tiles(variables, profile)
    return PipelineCall(
        arguments,
        _is_guided(pipeline, variables),
        planned if planned is None or number is None else planned * number,
        counts_tiles=number is not None,
        separate_branches=variables.get(_SEPARATE) is True,
        guess_mode=variables.get("guess_mode") is True,
    )


def read_tile(pipeline: Any, names: tuple[str, str]) -> tuple[int, int] | None:
    """Row and column of the tile that a pipeline works at, from its variables of these names; None if it makes none."""
    frame = next((one for one in _frames() if _is_call_of(pipeline, one)), None)
    return None if frame is None else _integers(frame.f_locals, names)


def _number_of_tiles(variables: Mapping[str, Any], profile: Profile | None) -> int | None:
    """Tiles of a picture, 1 if it is made whole; None where they are not known."""
    if profile is None or profile.tile is None or _integers(variables, profile.tile) is None:
        return 1
    counts = None if profile.tile_counts is None else _integers(variables, profile.tile_counts)
    return None if counts is None else math.prod(counts)


def _integers(variables: Mapping[str, Any], names: tuple[str, str]) -> tuple[int, int] | None:
    row, column = (variables.get(name) for name in names)
    return (row, column) if isinstance(row, int) and isinstance(column, int) else None


def _read_sampler(model: Any) -> PipelineCall:
    """The call of a model of the latent diffusion code, which a sampler makes; nothing is known of any other."""
    sampler = next((one for one in _frames() if set(_SAMPLER) <= set(_argument_names(one))), None)
    if sampler is None:
        return PipelineCall(guided=_is_guided(model, {}), denoiser_calls=_planned_calls(model, {}))
    scale, without = (sampler.f_locals[name] for name in _SAMPLER)
    if not _is_number(scale):
        return PipelineCall()
    return PipelineCall({"guidance_scale": scale}, without is not None and scale != 1, by_sampler=True)


def _frames() -> Iterator[FrameType]:
    """The functions that wait, from the innermost on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_call_of(pipeline: Any, frame: FrameType) -> bool:
    return frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipeline


def _argument_names(frame: FrameType) -> tuple[str, ...]:
    """Names of the arguments, without `self`."""
    code = frame.f_code
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def _is_guided(pipeline: Any, variables: Mapping[str, Any]) -> bool | None:
    if _SEPARATE in variables:
        return bool(variables[_SEPARATE])
    guided = getattr(pipeline, "do_classifier_free_guidance", None)
    if guided is None:
        guided = variables.get("do_classifier_free_guidance")
    if guided is None and _is_number(variables.get("guidance_scale")):
        guided = variables["guidance_scale"] > 1
    return None if guided is None else bool(guided)


def _planned_calls(pipeline: Any, variables: Mapping[str, Any]) -> int | None:
    scheduler = getattr(pipeline, "scheduler", None)
    # image-to-image pipelines keep the part of the schedule that they run in a variable of that name
    for timesteps in (variables.get("timesteps"), getattr(scheduler, "timesteps", None)):
        if isinstance(timesteps, Sized):
            return len(timesteps)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST and all(map(_is_plain, value))
    if isinstance(value, dict):
        return len(value) <= _LONGEST and all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or isinstance(value, bool | int | float | str)
