"""What differs between two traces: manifest, shapes, values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.integrity.content import VOLATILE, blocks, covered_arrays, has_no_steps
from attrace.analysis.storage.store import StoredTrace, open_store

_ABSENT: Final = "nothing"


@dataclass(frozen=True)
class Difference:
    """One thing in which two traces differ."""

    kind: Literal["manifest", "array", "shape", "values"]
    """A member of the manifest, an array that only one has, its dtype or shape, or its values."""
    place: str
    """Path of the member or array."""
    message: str
    """What the first and the second have."""
    values: int = 0
    """How many values differ."""
    largest: float | None = None
    """Largest absolute difference of two values; None where one of them is not finite, and of all other kinds."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def diff(first: str | Path, second: str | Path) -> Iterator[Difference]:
    """What differs between the content of two traces, found one after the other as it is asked for.

    Nothing differs exactly where both have one `content_id`: when and by what they were written, how they are packed
    and compressed do not count. One (step, layer) of each is in memory at a time.

    Parameters
    ----------
    first, second
        Folders, `.zip` files or addresses.

    Raises
    ------
    TraceNotFoundError, TraceFormatError
        If one cannot be read.
    """
    one, other = open_store(first), open_store(second)
    yield from _manifest_differences(_content(one), _content(other), "manifest")
    own, others = covered_arrays(one), covered_arrays(other)
    for path in dict.fromkeys([*own, *others]):
        if path in own and path in others:
            yield from _array_differences(one, other, path)
        else:
            yield Difference("array", path, f"only in the {'first' if path in own else 'second'}")


def _content(stored: StoredTrace) -> dict[str, Any]:
    plain = {name: value for name, value in stored.manifest.to_json().items() if name not in VOLATILE}
    return plain | {"steps": len(stored.finished_steps)}


def _manifest_differences(one: Any, other: Any, place: str) -> Iterator[Difference]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            yield from _manifest_differences(one.get(name, _ABSENT), other.get(name, _ABSENT), f"{place}.{name}")
    elif isinstance(one, list) and isinstance(other, list):
        for number, (left, right) in enumerate(zip_longest(one, other, fillvalue=_ABSENT)):
            yield from _manifest_differences(left, right, f"{place}.{number}")
    elif one != other or type(one) is not type(other):
        yield Difference("manifest", place, f"{_short(one)} and {_short(other)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _array_differences(one: StoredTrace, other: StoredTrace, path: str) -> Iterator[Difference]:
    left, right = one.array(path), other.array(path)
    steps = [len(trace.finished_steps) for trace in (one, other)]
    timed = not has_no_steps(path)
    if left.dtype != right.dtype or left.shape[timed:] != right.shape[timed:] or (timed and steps[0] != steps[1]):
        shapes = [
            (count, *array.shape[1:]) if timed else array.shape
            for count, array in zip(steps, (left, right), strict=True)
        ]
        yield Difference("shape", path, f"{left.dtype} {shapes[0]} and {right.dtype} {shapes[1]}")
        return
    count, largest, first_place = 0, 0.0, None
    for (place, a), (other_place, b) in zip_longest(blocks(one, path), blocks(other, path), fillvalue=((), None)):
        if a is None or b is None or place != other_place:
            yield Difference("values", path, "keys are stored in other steps")
            return
        differing = _differing(a, b)
        if differing.any():
            first_place = first_place or (*place, *map(int, np.argwhere(differing)[0]))
            count += int(differing.sum())
            largest = max(largest, _largest(a[differing], b[differing]))
    if count:
        finite = bool(np.isfinite(largest))
        how = f"by {largest:g} at most" if finite else "some of them not finite"
        message = f"values that differ: {count}, {how}, the first at {first_place}"
        yield Difference("values", path, message, count, largest if finite else None)


def _differing(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Where bits differ: two NaN of the same bits are the same, 0 and -0 are not."""
    integers = f"u{one.dtype.itemsize}"
    return np.asarray(np.ascontiguousarray(one).view(integers) != np.ascontiguousarray(other).view(integers))


def _largest(one: NDArray[Any], other: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(distance.max()) if np.isfinite(distance).all() else float("inf")
