"""What a trace is, in one number: an identifier computed from its content, however it is packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.storage.store import StoredTrace
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.schemas import Manifest, class_arrays, derived_arrays
from attrace.schemas.layout import DATA_ARRAYS, DERIVED, IMAGES, KEY_STEP, OUTPUT, TIME, TIMESTEP, is_of_keys

VOLATILE: Final = ("id", "created", "finished", "status", "software", "licence", "citation")
"""Members of the manifest that say when, by what and under which terms it was written, and not what was recorded."""


def content_id(trace: Trace) -> str:
    """Identifier of the content of a trace: two traces of the same values have the same, one flipped bit another.

    SHA-256 over the manifest as JSON with sorted keys, without the members of `VOLATILE`, and over each array: its
    path, data type, dims and the little-endian bytes of its decoded values in the finished steps, one (step, layer)
    at a time. Covered are `time`, `timestep`, the data arrays of every class, and the pictures; not covered are
    coordinates (the manifest implies them), the cache of marginals of a trace that has its scores, and how bytes are
    stored: codecs, chunks, folder or zip file. Memory does not grow with the trace.

    Parameters
    ----------
    trace
        The trace; what is selected of it does not matter.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    TraceFormatError
        If a part of it cannot be read.
    """
    require_trace(trace)
    stored = trace.stored
    digest = ContentDigest(stored.manifest, len(stored.finished_steps))
    for path in covered_arrays(stored):
        array = stored.array(path)
        digest.begin(path, array.dtype.name, array.shape[1:])
        for _, values in blocks(stored, path):
            digest.add(values)
    return digest.hexdigest()


class ContentDigest:
    """The identifier while it is computed: the arrays of `covered_arrays` in their order, each with its `blocks`.

    Parameters
    ----------
    manifest
        The manifest of the trace.
    steps
        Its finished steps.
    """

    def __init__(self, manifest: Manifest, steps: int) -> None:
        members = {name: value for name, value in manifest.to_json().items() if name not in VOLATILE}
        members["steps"] = steps
        self._digest = hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode())

    def begin(self, path: str, dtype: str, lengths: Sequence[int]) -> None:
        """Begin an array: its path, data type, and lengths after the first."""
        self._digest.update(f"\n{path} {dtype} {','.join(map(str, lengths))}\n".encode())

    def add(self, values: NDArray[Any]) -> None:
        """Add some of its values."""
        self._digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)

    def hexdigest(self) -> str:
        """The identifier: 64 hexadecimal digits."""
        return self._digest.hexdigest()


def covered_arrays(stored: StoredTrace) -> list[str]:
    """Paths of the arrays that are the content of a trace, in the order in which they count."""
    paths = [TIME, TIMESTEP]
    for one in sorted(stored.manifest.classes, key=lambda one: one.group):
        arrays = class_arrays(one, 0, closed=False, major=stored.manifest.major)
        data = [spec.name for spec in arrays if spec.name in DATA_ARRAYS]
        kept = data if stored.manifest.has_scores else [f"{DERIVED}/{spec.name}" for spec in derived_arrays(one, 0)]
        paths += [f"{one.group}/{name}" for name in sorted(kept)]
    return paths + [f"{IMAGES}/{name}" for name in stored.pictures()]


def blocks(stored: StoredTrace, path: str) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """The values of an array in the finished steps, one (step, layer) at a time, each with its place.

    Of keys and values only those that are stored in their step; an array without steps or layers comes whole.
    """
    array = stored.array(path)
    finished = list(stored.finished_steps)
    if path in (TIME, TIMESTEP):
        yield (), array[:][finished]
    elif has_no_steps(path):
        yield (), array[...]
    elif array.ndim == 2:
        yield (), array[:][finished]
    else:
        own = _stored_keys(stored, path)
        for step in finished:
            for layer in range(array.shape[1]):
                if own is None or own[step, layer]:
                    yield (step, layer), array[step, layer]


def has_no_steps(path: str) -> bool:
    """Whether an array of the content is the same in all steps: a picture, or weights of output projections."""
    return path.startswith(f"{IMAGES}/") or path.endswith(f"/{OUTPUT}")


def _stored_keys(stored: StoredTrace, path: str) -> NDArray[np.bool_] | None:
    """Of keys and values, whether a step and layer has some of its own: (time, layer); None of other arrays."""
    group, _, name = path.rpartition("/")
    if not is_of_keys(name, stored.manifest.major):
        return None
    steps = stored.array(f"{group}/{KEY_STEP}")[:]
    return np.asarray(steps == np.arange(len(steps))[:, None])
