"""Writes a trace while a pipeline runs. The only place that knows torch and diffusers.

`attrace.recorder.store` needs neither; what does is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attrace.recorder.profile import MUTUAL_ATTENTION, REFERENCE_NETWORK, KeyContext, LabelWarning, Profile
    from attrace.recorder.recording import Recording, RecordingWarning, Statistics, record

__all__ = [
    "MUTUAL_ATTENTION",
    "REFERENCE_NETWORK",
    "KeyContext",
    "LabelWarning",
    "Profile",
    "Recording",
    "RecordingWarning",
    "Statistics",
    "record",
]

_HOMES = {
    "MUTUAL_ATTENTION": "profile",
    "REFERENCE_NETWORK": "profile",
    "KeyContext": "profile",
    "LabelWarning": "profile",
    "Profile": "profile",
    "Recording": "recording",
    "RecordingWarning": "recording",
    "Statistics": "recording",
    "record": "recording",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
