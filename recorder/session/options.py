"""What to record and how, as the recorder passes it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from attrace.recorder.capture.methods import CaptureName
from attrace.recorder.labels.keys import Grid
from attrace.recorder.labels.profile import Profile
from attrace.recorder.session.select import StepSelection
from attrace.recorder.writing.encode import EncodingChoice
from attrace.schemas import Context


@dataclass(frozen=True)
class RunOptions:
    """What to record and how: the arguments of `record` that matter while the model runs."""

    profile: Profile
    samples: int
    steps: StepSelection
    encoding: EncodingChoice = "auto"
    capture: CaptureName = "auto"
    guidance: tuple[str, ...] | None = None
    branch: str | tuple[str, ...] = "conditional"
    contexts: tuple[Context, ...] | None = None
    """What to record of attention over several contexts at once; None for the references, else the text."""
    key_grid: Grid | None = None
    tokens: tuple[str, ...] | None = None
    self_attention: bool = False
    values: bool = False
    allow_gaps: bool = False
    selection: Mapping[str, JsonValue] = field(default_factory=dict)
    """The layers and steps that were asked for, for the manifest."""
    limit_bytes: int | None = None
    prompts: bool = True
