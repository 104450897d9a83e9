"""Reading the data of a site class, one (step, layer) at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.kernels.values import Factors, Scores, SiteValues
from attrace.analysis.storage.store import StoredTrace
from attrace.analysis.storage.stored_array import StoredArray
from attrace.schemas import InputError, SiteClass, TraceFormatError
from attrace.schemas.layout import CALLED, KEY, KEY_STEP, OUTPUT, QUERY, SCORES, VALUE, is_of_keys, stored_name

Queries = NDArray[np.int64] | slice
"""Positions of queries; a slice stands for all of them."""

_ALL: Final = slice(None)

GAP_OR_LOSS: Final = "a trace of format 1.0 does not tell a call that was skipped from a chunk that was lost"
"""What a reader of such a trace must know."""


@dataclass(frozen=True)
class ClassSource:
    """The stored arrays of a site class."""

    site_class: SiteClass
    arrays: dict[str, StoredArray]
    """By their names in the latest version: `scores` and, but for version 1 of the format, `called`; or `query_vector`,
    `key_vector` and `key_step`, which says as much; `bias`, `lse`, `value_vector` (with `key_step`) and `output` where
    the class has them."""

    @classmethod
    def of(cls, stored: StoredTrace, site_class: SiteClass) -> ClassSource:
        """The arrays of a class, of which no data is read.

        Raises
        ------
        InputError
            If the trace is a copy without scores.
        """
        require_scores(stored)
        major = stored.manifest.major
        names = [SCORES] if site_class.encoding == "scores" else [QUERY, KEY, KEY_STEP]
        names += [CALLED] if site_class.encoding == "scores" and major > 1 else []
        names += ["bias"] if site_class.has_bias and site_class.encoding == "factors" else []
        names += ["lse"] if site_class.has_lse else []
        names += [VALUE, OUTPUT, KEY_STEP] if site_class.channels is not None else []
        return cls(site_class, {name: stored.array(f"{site_class.group}/{stored_name(name, major)}") for name in names})

    @property
    def steps_in_chunk(self) -> int:
        """Steps that one chunk of the data holds: reading one of them decodes all."""
        return self.arrays[SCORES if self.site_class.encoding == "scores" else QUERY].array.chunks[0]

    def read(self, steps: Sequence[int], layer: int, queries: Queries = _ALL) -> Iterator[SiteValues | None]:
        """The values of one layer in several steps, in turn; None where it was not called, or a step is -1.

        A key that several steps share is read once, and so are steps that lie in one chunk. Where `queries` are given
        the values are of those alone, and only the chunks that hold them are read.
        """
        if self.site_class.encoding == "scores":
            return self._read_scores(steps, layer, queries)
        return self._read_factors(steps, layer, queries)

    def read_values(self, steps: Sequence[int], layer: int) -> Iterator[NDArray[Any] | None]:
        """The value vectors of one layer in several steps, (head, key, feature), in turn; None as for `read`."""
        read, value_at, value = self._reader(VALUE, layer), -1, None
        for stored_at in self._key_steps(steps, layer):
            if stored_at >= 0 and stored_at != value_at:
                value_at, value = stored_at, read(stored_at)
            yield value if stored_at >= 0 else None

    def read_output(self, layer: int) -> NDArray[Any]:
        """The weights of the output projection of one layer: (head, feature, channel)."""
        return self.arrays[OUTPUT][layer]

    def stored(self, name: str, step: int, layer: int) -> NDArray[Any] | None:
        """One (step, layer) of an array, of keys and values those that the step used; None where it was not called."""
        by_key_step = KEY_STEP in self.arrays
        (place,) = self._key_steps([step], layer) if by_key_step else self._called([step], layer)
        return None if place < 0 else self.arrays[name][place if is_of_keys(name) else step, layer]

    def _key_steps(self, steps: Sequence[int], layer: int) -> list[int]:
        """For every step the step in which its key is stored; -1 where the site was not called, or the step is -1."""
        expected = "steps from -1 to the step itself"
        return self._numbers(KEY_STEP, steps, layer, expected, lambda found, step: (found >= -1) & (found <= step))

    def _called(self, steps: Sequence[int], layer: int) -> list[int]:
        """The steps, -1 in place of those in which the site was not called, where `called` says so."""
        if CALLED not in self.arrays:
            return list(steps)
        called = self._numbers(CALLED, steps, layer, "0 or 1", lambda found, _: found <= 1)
        return [step if one == 1 else -1 for step, one in zip(steps, called, strict=True)]

    def _numbers(
        self,
        name: str,
        steps: Sequence[int],
        layer: int,
        expected: str,
        fits: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]],
    ) -> list[int]:
        """The number that an array (time, layer) has for every step, checked; -1 where the step is."""
        if max(steps, default=-1) < 0:
            return [-1] * len(steps)
        first, array = min(step for step in steps if step >= 0), self.arrays[name]
        found = array[first : max(steps) + 1, layer]
        if not fits(found, np.arange(first, first + len(found))).all():
            raise TraceFormatError(
                f"trace {array.trace_path}: array {array.name!r}: expected {expected}, found {found.tolist()[:8]} "
                f"from step {first} on"
            )
        return [int(found[step - first]) if step >= 0 else -1 for step in steps]

    def _read_scores(self, steps: Sequence[int], layer: int, queries: Queries) -> Iterator[Scores | None]:
        scores_of, lse_of = (self._reader(name, layer, queries) for name in (SCORES, "lse"))
        gaps = []
        for step, called_at in zip(steps, self._called(steps, layer), strict=True):
            if called_at < 0 <= step:
                self.arrays[SCORES].require_absent(step, layer)
            scores = scores_of(step) if called_at >= 0 else None
            if scores is not None and CALLED not in self.arrays and _is_gap(scores):
                gaps.append(step)
                scores = None
            yield None if scores is None else Scores(scores, lse=lse_of(step))
        if gaps:
            warnings.warn(
                f"layer {self.site_class.sites[layer].path}: no scores in step {', '.join(map(str, gaps))}, which are "
                f"left out: {GAP_OR_LOSS}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _read_factors(self, steps: Sequence[int], layer: int, queries: Queries) -> Iterator[Factors | None]:
        query_of, lse_of = (self._reader(name, layer, queries) for name in (QUERY, "lse"))
        read_key, bias_of = (self._reader(name, layer) for name in (KEY, "bias"))
        key_at, key = -1, None
        for step, stored_at in zip(steps, self._key_steps(steps, layer), strict=True):
            if stored_at < 0:
                if step >= 0:
                    self.arrays[QUERY].require_absent(step, layer)
                yield None
                continue
            if key is None or stored_at != key_at:
                key_at, key = stored_at, read_key(stored_at)
            yield Factors(query_of(step), key, self.site_class.scale, bias=bias_of(step), lse=lse_of(step))

    def _reader(self, name: str, layer: int, queries: Queries = _ALL) -> Callable[[int], Any]:
        """A function of a step that reads an array of one layer; it gives None where the class has no such array."""
        array = self.arrays.get(name)
        if array is None:
            return lambda _: None
        length, of_queries = array.array.chunks[0], () if isinstance(queries, slice) else (slice(None), queries)
        if length == 1:
            return lambda step: array[(step, layer, *of_queries)]

        @lru_cache(maxsize=1)
        def steps_of_chunk(chunk: int) -> NDArray[Any]:
            return array[(slice(chunk * length, (chunk + 1) * length), layer, *of_queries)]

        return lambda step: steps_of_chunk(step // length)[step % length]


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
    """Whether nothing was written: every value is the fill value NaN. How version 1 of the format marks a gap."""
    return bool(np.isnan(values.flat[0]) and np.isnan(values).all())
