"""Reading the data of a site class, one (step, layer) at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.kernels.values import Factors, Scores, SiteValues
from attrace.analysis.storage.store import StoredArray, StoredTrace
from attrace.schemas import InputError, SiteClass, TraceFormatError
from attrace.schemas.layout import KEY_STEP


@dataclass(frozen=True)
class ClassSource:
    """The stored arrays of a site class."""

    site_class: SiteClass
    arrays: dict[str, StoredArray]
    """By name: `scores`, or `query`, `key` and `key_step`; `bias` and `lse` where the class has them."""

    @classmethod
    def of(cls, stored: StoredTrace, site_class: SiteClass) -> ClassSource:
        """The arrays of a class, of which no data is read.

        Raises
        ------
        InputError
            If the trace is a copy without scores.
        """
        require_scores(stored)
        names = ["scores"] if site_class.encoding == "scores" else ["query", "key", KEY_STEP]
        if site_class.has_bias and site_class.encoding == "factors":
            names.append("bias")
        if site_class.has_lse:
            names.append("lse")
        return cls(site_class, {name: stored.array(f"{site_class.group}/{name}") for name in names})

    def read(self, steps: Iterable[int], layer: int) -> Iterator[SiteValues | None]:
        """The values of one layer in several steps, read one by one; None where it was not called, or a step is -1.

        A key that several steps share is read once.
        """
        if self.site_class.encoding == "scores":
            return self._read_scores(steps, layer)
        return self._read_factors(list(steps), layer)

    def key_steps(self, steps: list[int], layer: int) -> list[int]:
        """For every step the step in which its key is stored; -1 where the site was not called, or the step is -1."""
        if max(steps, default=-1) < 0:
            return [-1] * len(steps)
        first = min(step for step in steps if step >= 0)
        array = self.arrays[KEY_STEP]
        stored = array[first : max(steps) + 1, layer]
        if (stored < -1).any() or (stored > np.arange(first, first + len(stored))).any():
            raise TraceFormatError(
                f"trace {array.trace_path}: array {array.name!r}: expected steps from -1 to the step itself, found "
                f"{stored.tolist()[:8]} from step {first} on"
            )
        return [int(stored[step - first]) if step >= 0 else -1 for step in steps]

    def _read_scores(self, steps: Iterable[int], layer: int) -> Iterator[Scores | None]:
        for step in steps:
            scores = self.arrays["scores"][step, layer] if step >= 0 else None
            if scores is None or _is_gap(scores):
                yield None
            else:
                yield Scores(scores, lse=self._optional("lse", step, layer))

    def _read_factors(self, steps: list[int], layer: int) -> Iterator[Factors | None]:
        key_at, key = -1, None
        for step, stored_at in zip(steps, self.key_steps(steps, layer), strict=True):
            if stored_at < 0:
                yield None
                continue
            if key is None or stored_at != key_at:
                key_at, key = stored_at, self.arrays["key"][stored_at, layer]
            yield Factors(
                self.arrays["query"][step, layer],
                key,
                self.site_class.scale,
                bias=self._optional("bias", step, layer),
                lse=self._optional("lse", step, layer),
            )

    def _optional(self, name: str, step: int, layer: int) -> NDArray[np.float32] | None:
        return self.arrays[name][step, layer] if name in self.arrays else None


def require_scores(stored: StoredTrace) -> None:
    """Refuse a copy that holds the marginals alone.

    Raises
    ------
    InputError
        If the trace is one.
    """
    if not stored.manifest.has_scores:
        raise InputError(
            f"trace {stored.path} was packed with its derived maps only, and this needs its scores: draw maps of all "
            "queries and the default keys, or ask for the whole trace"
        )


def _is_gap(values: NDArray[Any]) -> bool:
    """Whether nothing was written: every value is the fill value NaN."""
    return bool(np.isnan(values.flat[0]) and np.isnan(values).all())
