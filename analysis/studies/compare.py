"""Two models or settings over the same inputs: paired differences of scores, maps, layers and heads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.scores.perceptual import PictureSets, SetDistance, set_distance
from attrace.analysis.studies.aggregate import WAITING_PER_WORKER, Moments, Progress, engine, workers
from attrace.analysis.studies.contribution import SCORES, Arrays, Settings
from attrace.analysis.studies.labelled import laid_out, statistic_dims
from attrace.analysis.studies.pair_values import PairValues, pair_values
from attrace.analysis.studies.pairing import Pair, PairBy, pair_traces
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.schemas import AttraceError, InputError
from attrace.schemas.words import DIRECTIONS

if TYPE_CHECKING:
    import os

    import xarray as xr

SIDES: Final = ("a", "b")

RANKED: Final = ("layer_distance", "head_distance", "entropy", "inside", "agreement")
"""What the changes of layers and heads are ranked by, each in both directions."""


@dataclass(frozen=True)
class Comparison:
    """What differs between two sets of traces, b - a throughout."""

    dataset: xr.Dataset
    """`score_a`, `score_b` (score, pair), `score_difference` (score), `score_interval` (bound, score), `score_pairs`
    (score); `<map>_a`, `<map>_b`, `<map>_difference`, `<map>_deviation` (over pairs, divided by n - 1) and
    `<map>_count`; of each statistic of layers and heads `_a`, `_b`, `_difference` and `_interval`; `layer_distance_*`
    and `head_distance_*` with `_interval`."""
    unpaired: Mapping[str, str]
    """Why each trace without a partner has none, by where it lies."""
    broken: Mapping[str, str]
    """Why each trace whose pair is left out could not be read."""
    only: Mapping[str, tuple[str, ...]]
    """Layers that no trace of the other set has, by side: `a`, `b`."""
    sets: Mapping[str, SetDistance] = field(default_factory=dict)
    """How far the pictures of each side, `a` and `b`, are from the true ones as sets; empty where it was not asked."""


class Change(NamedTuple):
    """How a layer or head, or a head of a layer, changed."""

    score: str
    """`layer_distance_r2g` and the like, `entropy_g2r`, `inside_r2g`, `agreement_r2g`."""
    of: str
    """The layer, the head, or both."""
    difference: float
    """Mean over pairs of b - a, or of the distance between a and b."""
    low: float
    high: float
    """Its bootstrap interval."""


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    by: PairBy = "name",
    settings: Settings | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
    sets: bool = False,
) -> Comparison:
    """Compare two sets of traces of the same inputs, pair by pair; only the pairs at work are in memory.

    Parameters
    ----------
    a, b
        As for `pair_traces`.
    by
        How traces are paired: `name` or `inputs`.
    settings
        What is computed of each trace, as for `aggregate`.
    executor
        What runs the pairs: `engine()` by default. The result is the same on each, to the last bit.
    seed
        Of the bootstrap, which draws pairs.
    progress
        Called after every pair.
    storage_options
        As for `open_trace`.
    sets
        Compute FID and KID of the pictures of each side against the true ones, too.

    Raises
    ------
    InputError
        If nothing can be paired, or no pair could be read; for sets also what `set_distance` raises.
    """
    settings = settings or Settings()
    pairing = pair_traces(a, b, by=by, storage_options=storage_options)
    usable, labels, only, broken = _readable(pairing.pairs, settings, storage_options)
    broken = dict(pairing.broken) | broken
    collected, compared = _Collected(settings, labels), list[Pair]()
    if sets:
        PictureSets()  # refuses what is missing before the long part
    with engine() if executor is None else nullcontext(executor) as pool:
        results = _in_order(pool, usable, settings, storage_options)
        for done, (pair, values) in enumerate(zip(usable, results, strict=True), 1):
            if isinstance(values, PairValues):
                collected.add(pair, values)
                compared.append(pair)
            else:
                broken[values[0]] = values[1]
            if progress is not None:
                progress(done, len(usable))
    if not collected.names:
        path, reason = next(iter(broken.items()))
        raise InputError(f"no pair can be compared; {path}: {reason}")
    distances = {
        side: set_distance([getattr(pair, side) for pair in compared], storage_options=storage_options)
        for side in SIDES
        if sets
    }
    return Comparison(collected.dataset(seed), pairing.unpaired, broken, only, distances)


def ranked_changes(dataset: xr.Dataset) -> dict[str, list[Change]]:
    """Changes of layers and heads that a pair has, by what they are measured by, the largest first."""
    found = {}
    names = [f"{start}_{direction}" for start in RANKED for direction in DIRECTIONS]
    for score in (name for name in names if f"{name}_interval" in dataset):
        means = dataset[score] if score in dataset else dataset[f"{score}_difference"]
        interval = dataset[f"{score}_interval"].transpose("bound", *means.dims).values.reshape(2, -1)
        labels = [_label(means, place) for place in np.ndindex(means.shape)]
        rows = zip(labels, means.values.ravel().tolist(), *interval.tolist(), strict=True)
        changes = [Change(score, label, *numbers) for label, *numbers in rows if not np.isnan(numbers[0])]
        found[score] = sorted(changes, key=lambda one: -abs(one.difference))
    return found


def _label(means: xr.DataArray, place: tuple[int, ...]) -> str:
    parts = [(dim, means[dim].values[number]) for dim, number in zip(means.dims, place, strict=True)]
    return ", ".join(str(label) if dim == "layer" else f"{dim} {label}" for dim, label in parts)


def _readable(
    pairs: Sequence[Pair], settings: Settings, storage_options: Mapping[str, Any] | None
) -> tuple[list[Pair], dict[str, NDArray[Any]], dict[str, tuple[str, ...]], dict[str, str]]:
    """The pairs of which both traces open, the labels of all, the layers of one side only, and what does not open."""
    usable, broken = [], dict[str, str]()
    layers: dict[str, dict[str, None]] = {side: {} for side in SIDES}
    heads: set[int] = set()
    for pair in pairs:
        opened: list[Trace] = []
        for path in (pair.a, pair.b):
            try:
                opened.append(settings.select(open_trace(path, storage_options=storage_options)))
            except (AttraceError, OSError, ValueError) as error:
                broken[path] = str(error)
        if len(opened) == len(SIDES):
            usable.append(pair)
            for side, trace in zip(SIDES, opened, strict=True):
                layers[side] |= dict.fromkeys(trace.layers)
                heads |= set(trace.heads)
    every = layers["a"] | layers["b"]
    labels = {"layer": np.array(list(every), dtype=np.str_), "head": np.array(sorted(heads), dtype=np.int64)}
    only = {
        side: tuple(layer for layer in layers[side] if layer not in layers[other])
        for side, other in zip(SIDES, SIDES[::-1], strict=True)
    }
    return usable, labels, only, broken


def _in_order(
    pool: Executor, pairs: Sequence[Pair], settings: Settings, storage_options: Mapping[str, Any] | None
) -> Iterator[PairValues | tuple[str, str]]:
    """The results of all pairs in their order, a few of them computed ahead."""
    waiting = iter(pairs)
    running: deque[Future[PairValues | tuple[str, str]]] = deque()
    limit = WAITING_PER_WORKER * workers(pool)
    try:
        while True:
            for pair in islice(waiting, limit - len(running)):
                running.append(pool.submit(pair_values, pair, settings, storage_options))
            if not running:
                return
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


class _Collected:
    """What is gathered of the pairs: moments of maps, and the small numbers of each pair."""

    def __init__(self, settings: Settings, labels: Mapping[str, NDArray[Any]]) -> None:
        self.names: list[str] = []
        self._labels = dict(labels)
        self._lengths = {dim: len(values) for dim, values in labels.items()}
        self._lengths |= {"time_group": settings.groups, "row": settings.size[0], "column": settings.size[1]}
        self._maps: dict[str, Moments] = {}
        self._small: dict[str, list[NDArray[np.float64]]] = {}
        self._scores: dict[str, list[Mapping[str, float]]] = {side: [] for side in SIDES}
        self._settings = settings

    def add(self, pair: Pair, values: PairValues) -> None:
        """Take in one pair."""
        self.names.append(pair.name)
        shared = sorted(values.a.keys() & values.b.keys() - {*SCORES, "labels:layer", "labels:head"})
        for name in shared:
            first, second = (self._laid_out(kept, name) for kept in (values.a, values.b))
            known = np.where(np.isnan(first + second), np.nan, 1.0)
            parts = {"a": first * known, "b": second * known, "difference": second - first}
            for part, one in parts.items():
                if "row" in statistic_dims(name):
                    moments = Moments.of(one)
                    before = self._maps.get(f"{name}_{part}")
                    self._maps[f"{name}_{part}"] = moments if before is None else before.merge(moments)
                else:
                    self._gather(f"{name}_{part}", one)
        for name in values.distances.keys() - {"labels:layer", "labels:head"}:
            self._gather(name, self._laid_out(values.distances, name))
        for side, scores in zip(SIDES, (values.scores_a, values.scores_b), strict=True):
            self._scores[side].append(scores)

    def _laid_out(self, kept: Arrays, name: str) -> NDArray[np.float64]:
        return laid_out(kept, name, self._labels, tuple(self._lengths[dim] for dim in statistic_dims(name)))

    def _gather(self, name: str, one: NDArray[np.float64]) -> None:
        # a statistic that earlier pairs lack is NaN in them
        before = self._small.setdefault(name, [np.full(one.shape, np.nan)] * (len(self.names) - 1))
        before += [np.full(one.shape, np.nan)] * (len(self.names) - 1 - len(before))
        before.append(one)

    def dataset(self, seed: int) -> xr.Dataset:
        """Means, differences and intervals of all pairs."""
        import xarray as xr

        variables: dict[str, Any] = {}
        for name, moments in self._maps.items():
            dims = statistic_dims(name)
            variables[name] = dims, np.where(moments.count > 0, moments.mean, np.nan)
            if name.endswith("_difference"):
                spread = np.where(moments.count > 1, moments.squares / np.maximum(moments.count - 1, 1), np.nan)
                variables[f"{name.removesuffix('_difference')}_deviation"] = dims, np.sqrt(spread)
                variables[f"{name.removesuffix('_difference')}_count"] = dims, moments.count
        for name, gathered in self._small.items():
            values = np.stack(gathered)
            variables[name] = statistic_dims(name), _mean(values)
            if not name.endswith(("_a", "_b")):
                score = name.removesuffix("_difference")
                variables[f"{score}_interval"] = ("bound", *statistic_dims(name)), bootstrap_interval(values, seed=seed)
        scores = list(dict.fromkeys(name for side in SIDES for one in self._scores[side] for name in one))
        table = np.array([[[one.get(name, np.nan) for one in self._scores[side]] for name in scores] for side in SIDES])
        # only what both of a pair have counts; the PSNR of equal pictures has no difference
        table[:, ~np.isfinite(table).all(axis=0)] = np.nan
        differences = table[1] - table[0]
        variables |= {
            "score_a": (("score", "pair"), table[0]),
            "score_b": (("score", "pair"), table[1]),
            "score_difference": ("score", _mean(differences.T)),
            "score_interval": (("bound", "score"), bootstrap_interval(differences.T, seed=seed)),
            "score_pairs": ("score", np.isfinite(differences).sum(axis=1)),
        }
        coordinates = self._labels | {
            "pair": np.array(self.names, dtype=np.str_),
            "score": np.array(scores, dtype=np.str_),
            "bound": np.array(["low", "high"]),
        }
        attributes = {"pairs": len(self.names), "seed": seed, "density": str(self._settings.density)}
        return xr.Dataset(variables, coordinates, attributes)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean along the first axis of what is not NaN; NaN where nothing is."""
    count = (~np.isnan(values)).sum(axis=0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)
