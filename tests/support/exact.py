"""What the maps are by definition, in float64 and plain NumPy, one layer and head at a time; and traces to compare."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from attrace.analysis.maps.masks import coverage
from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.schemas import Manifest, ModelIdentity, SiteClass

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CountedTokens:
    """How much each query and key of a class counts, by masks over the pictures; all alike where there is no mask."""

    of_queries: Array
    of_keys: Array
    """0 off the grid."""
    patches: slice
    """The keys that lie on the grid."""
    grids: dict[str, tuple[int, int]]
    """Of the map of each direction."""

    @classmethod
    def of(cls, one: SiteClass, queries: NDArray[Any] | None, keys: NDArray[Any] | None) -> CountedTokens:
        segment = one.key_segments[-1]
        patches = slice(one.keys - segment.count, one.keys)
        assert one.query_grid is not None
        assert segment.grid is not None
        of_keys = np.zeros(one.keys)
        of_keys[patches] = 1 if keys is None else coverage(keys, segment.grid).ravel()
        of_queries = np.ones(one.queries) if queries is None else coverage(queries, one.query_grid).ravel()
        return cls(of_queries, of_keys, patches, {"r2g": one.query_grid, "g2r": segment.grid})


def softmax(scores: Array, axis: int) -> Array:
    """Softmax; 0 along a line of -inf alone."""
    largest = scores.max(axis=axis, keepdims=True)
    powers = np.exp(scores - np.where(np.isinf(largest), 0, largest))
    total = powers.sum(axis=axis, keepdims=True)
    shares: Array = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
    return shares


def exact_marginals(
    scores: Array, query_weights: Array, key_weights: Array, *, lse: Array | None = None
) -> tuple[Array, Array]:
    """R2G (head, query) and G2R (head, key) of scores (head, query, key)."""
    over_keys = softmax(scores, 2) if lse is None else np.exp(scores - lse[..., None])
    return softmax(scores, 1) @ key_weights, np.einsum("q,hqk->hk", query_weights, over_keys)


def exact_contributions(scores: Array, value: Array, output: Array, *, lse: Array | None = None) -> Array:
    """Part of each head and key in what a layer gives a query, along it: (head, query, key), of either sign.

    Each key and query in turn, as wide as the output: scores (head, query, key), value (head, key, feature), output
    (head, feature, channel).
    """
    over_keys = softmax(scores, 2) if lse is None else np.exp(scores - lse[..., None])
    seen = np.isfinite(scores).any(axis=(0, 1))
    given = np.stack(
        [(of_head - of_head[seen].mean(axis=0)) @ rows for of_head, rows in zip(value, output, strict=True)]
    )
    parts = np.zeros_like(scores)
    for query in range(scores.shape[1]):
        whole = sum(over_keys[head, query] @ given[head] for head in range(len(given)))
        length = np.linalg.norm(whole)
        if length > 0:
            parts[:, query] = over_keys[:, query] * (given @ (whole / length))
    return parts


def bicubic(image: Array, size: tuple[int, int]) -> Array:
    """Cubic convolution (a = -0.75) with half-pixel centres and repeated edges, cell by cell."""
    rows, columns = image.shape
    out = np.zeros(size)
    for row, column in itertools.product(range(size[0]), range(size[1])):
        for (i, in_row), (j, in_column) in itertools.product(
            _taps(row, rows, size[0]), _taps(column, columns, size[1])
        ):
            out[row, column] += in_row * in_column * image[i, j]
    return out


def _taps(place: int, length: int, new_length: int) -> list[tuple[int, float]]:
    centre = (place + 0.5) * length / new_length - 0.5
    first = math.floor(centre)
    return [(min(max(first + tap, 0), length - 1), _cubic(abs(centre - (first + tap)))) for tap in (-1, 0, 1, 2)]


def _cubic(x: float) -> float:
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0


@dataclass
class LayerMaps:
    """Marginals of one layer on their grid, before anything is averaged."""

    path: str
    order: int
    values: Array
    """(time, head, row, column); NaN in a gap."""


def level_of(maps: Sequence[LayerMaps], level: str, size: tuple[int, int], groups: Sequence[slice] = ()) -> Array:
    """The map of a level by its definition."""
    maps = sorted(maps, key=lambda one: one.order)
    if level == "tlam":
        return np.stack([level_of([_steps(one, group) for one in maps], "ulam", size) for group in groups])
    if level == "llam":
        return np.stack([level_of([one], "ulam", size) for one in maps])
    if level == "hlam":
        heads = max(one.values.shape[1] for one in maps)
        having = [[_head(one, head) for one in maps if one.values.shape[1] > head] for head in range(heads)]
        return np.stack([level_of(some, "ulam", size) for some in having])
    found = []
    for one in maps:
        for head in range(one.values.shape[1]):
            called = [step for step in one.values[:, head] if not np.isnan(step).all()]
            if called:
                found.append(np.maximum(bicubic(np.mean(called, axis=0), size), 0))
    return np.mean(found, axis=0) if found else np.full(size, np.nan)


def _steps(one: LayerMaps, steps: slice) -> LayerMaps:
    return LayerMaps(one.path, one.order, one.values[steps])


def _head(one: LayerMaps, head: int) -> LayerMaps:
    return LayerMaps(one.path, one.order, one.values[:, head : head + 1])


@dataclass
class Call:
    """What one site saw in one step."""

    query: NDArray[Any]
    key: NDArray[Any]
    bias: NDArray[np.float32] | None = None
    lse: NDArray[np.float32] | None = None
    value: NDArray[Any] | None = None
    stored_at: int | None = None
    """The step in which key and value are stored; None for the call's own."""

    def scores(self, scale: float) -> Array:
        """(head, query, key), in float64."""
        scores: Array = scale * self.query.astype(np.float64) @ self.key.astype(np.float64).swapaxes(1, 2)
        return scores if self.bias is None else scores + self.bias


Calls = Mapping[tuple[str, int, int], Call]
"""By group, step and layer; one that is not there is a gap."""


def random_calls(classes: Iterable[SiteClass], steps: int, *, seed: int = 0, spread: float = 1.5) -> dict[Any, Call]:
    """Random queries and keys for every site and step."""
    random = np.random.default_rng(seed)
    calls = {}
    for one in classes:
        for step, layer in itertools.product(range(steps), range(len(one.sites))):
            query, key = (
                (spread * random.normal(size=(one.heads, length, one.features))).astype(one.dtype)
                for length in (one.queries, one.keys)
            )
            calls[one.group, step, layer] = Call(query, key)
    return calls


def write_calls(
    path: Path,
    classes: tuple[SiteClass, ...],
    calls: Calls,
    *,
    steps: int,
    status: str | None = "complete",
    images: Mapping[str, NDArray[np.uint8]] | None = None,
    outputs: Mapping[str, NDArray[Any]] | None = None,
    **members: Any,
) -> Path:
    """A trace of these calls; `outputs` are the weights of output projections, by group."""
    manifest = Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made"), **members)
    store = TraceStore(path, manifest, steps=steps)
    store.add_classes(classes)
    for group, weights in (outputs or {}).items():
        for layer, of_layer in enumerate(weights):
            store.write_output(group, layer, of_layer)
    for step in range(steps):
        for one in classes:
            for layer in range(len(one.sites)):
                call = calls.get((one.group, step, layer))
                if call is not None:
                    _write_call(store, one, call, step, layer)
        store.finish_step(step, call=step, timestep=float(1000 - step))
    for name, image in (images or {}).items():
        store.write_image(name, image)
    if status is not None:
        store.close(status)  # type: ignore[arg-type]
    return path


def _write_call(store: TraceStore, one: SiteClass, call: Call, step: int, layer: int) -> None:
    stored_at = step if call.stored_at is None else call.stored_at
    is_scores = one.encoding == "scores"
    values: dict[str, NDArray[Any] | None] = {
        "scores": call.scores(one.scale).astype(one.dtype) if is_scores else None,
        "query_vector": None if is_scores else call.query,
        "key_vector": None if is_scores or stored_at != step else call.key,
        "value_vector": call.value if stored_at == step else None,
        "key_step": None if is_scores and call.value is None else np.array(stored_at, np.int32),
        "bias": None if is_scores else call.bias,
        "lse": call.lse,
    }
    for name, value in values.items():
        if value is not None:
            store.write(one.group, name, step=step, layer=layer, values=value)


def with_values(
    classes: Iterable[SiteClass], calls: Mapping[tuple[str, int, int], Call], *, static: bool, seed: int = 0
) -> tuple[dict[Any, Call], dict[str, NDArray[Any]]]:
    """Calls with random values, or keys and values that are the same in every step; and output weights, by group."""
    random = np.random.default_rng(seed)
    described = {one.group: one for one in classes}
    outputs = {
        one.group: random.normal(size=(len(one.sites), one.heads, one.features, one.channels or 0)).astype(one.dtype)
        for one in described.values()
    }
    found: dict[Any, Call] = {}
    first: dict[tuple[str, int], int] = {}
    for (group, step, layer), call in calls.items():
        value = random.normal(size=call.key.shape).astype(described[group].dtype)
        stored_at = first.setdefault((group, layer), step)
        of_first = found.get((group, stored_at, layer))
        if static and of_first is not None:
            call = replace(call, key=of_first.key, value=of_first.value, stored_at=stored_at)
        else:
            call = replace(call, value=value)
        found[group, step, layer] = call
    return found, outputs


@contextmanager
def no_computing() -> Iterator[None]:
    """Fails where dask computes anything."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        yield


@contextmanager
def counted_reads(monkeypatch: Any) -> Iterator[list[str]]:
    """Keys of the chunks that are read on this machine, in the order of reading."""
    from attrace.analysis.storage.files import LocalFiles

    keys: list[str] = []
    read = LocalFiles.read

    def noted(self: LocalFiles, name: str = "", *args: Any, **kwargs: Any) -> bytes | None:
        if "/c/" in name:
            keys.append(name)
        return read(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "read", noted)
        yield keys
