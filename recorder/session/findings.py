"""What is found out while the model runs, for its user and for readers of the trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attrace.recorder.labels.call import read_tile
from attrace.schemas import AttraceError

logger = logging.getLogger("attrace")


@dataclass
class Findings:
    """Problems, oddities and numbers of a recording."""

    problem: AttraceError | None = None
    """What stopped the recording."""
    estimated_bytes: int = 0
    """What the recording is expected to take."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the trace should know: guesses, oddities."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Attention calls of which something is not recorded, or nothing, by the reason."""
    tiles: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Row and column in the latent of the tile that a call worked at, by the number of the call."""
    _schedule: Any = None

    def note(self, note: str) -> None:
        """Tell the user, and readers of the trace."""
        logger.warning("%s", note)
        self.notes.append(note)

    def note_tile(self, call: int, model: Any, names: tuple[str, str] | None) -> None:
        """Note the tile that a call works at, from variables of these names."""
        tile = None if names is None else read_tile(model, names)
        if tile is not None:
            self.tiles[str(call)] = tile

    def watch_schedule(self, model: Any, step: int) -> None:
        """Note when the scheduler was set anew: most likely a second picture in a trace that holds one."""
        schedule = getattr(getattr(model, "scheduler", None), "timesteps", None)
        if self._schedule is not None and schedule is not self._schedule:
            self.note(
                f"the schedule was set anew before recorded step {step}, so the steps may be of several pictures: use "
                "one record() for each call of the pipeline"
            )
        self._schedule = schedule
