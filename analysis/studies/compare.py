"""Two models or settings over the same inputs: paired differences of scores, maps, layers and heads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import xarray as xr

from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.scores.measures import agreement
from attrace.analysis.scores.perceptual import PictureSets, SetDistance, set_distance
from attrace.analysis.studies.engine import Progress, run_tasks
from attrace.analysis.studies.moments import Moments
from attrace.analysis.studies.pairing import Pair, PairBy, pair_traces
from attrace.analysis.studies.trace_statistics import Settings, first_met, statistics_or_reason
from attrace.schemas import InputError, Level
from attrace.schemas.words import LEVELS

if TYPE_CHECKING:
    import os

SIDES: Final = ("a", "b")

DISTANCES: Final[Mapping[str, Level]] = {"layer_distance": "llam", "head_distance": "hlam"}
"""The level of the maps that each distance is between."""

RANKED: Final = (*DISTANCES, "entropy", "inside", "agreement")
"""What the changes of layers and heads are ranked by, each in both directions."""


@dataclass(frozen=True)
class Comparison:
    """What differs between two sets of traces, b - a throughout."""

    dataset: xr.Dataset
    """`scores_a`, `scores_b` (pair, score), `scores_difference` (score), `scores_interval` (bound, score) and
    `scores_pairs` (score); of each map and direction `<map>_a`, `<map>_b`, `<map>_difference`, `<map>_deviation` (over
    pairs, divided by n - 1) and `<map>_count`; of each statistic of layers and heads `_a`, `_b` (pair, ...),
    `_difference` and `_interval`; `layer_distance` and `head_distance` with `_interval`."""
    unpaired: Mapping[str, str]
    """Why each trace without a partner has none, by where it lies."""
    broken: Mapping[str, str]
    """Why each trace whose pair is left out could not be read."""
    only: Mapping[str, tuple[str, ...]]
    """Layers that no trace of the other set has, by side: `a`, `b`."""
    pairs: tuple[Pair, ...] = ()
    """The pairs that were compared, in the order of the dataset."""
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
    pairs, broken = pairing.pairs, dict(pairing.broken)
    collected, compared = _Collected(), list[Pair]()
    if sets:
        PictureSets()  # refuses what is missing before the long part
    arguments: Any = (settings, storage_options)
    for pair, values in run_tasks(_pair_statistics, pairs, *arguments, executor=executor, progress=progress):
        if isinstance(values, PairStatistics):
            collected.add(values)
            compared.append(pair)
        else:
            broken |= values
    if not compared:
        path, reason = next(iter(broken.items()))
        raise InputError(f"no pair can be compared; {path}: {reason}")
    distances = {
        side: set_distance([getattr(pair, side) for pair in compared], storage_options=storage_options)
        for side in SIDES
        if sets
    }
    dataset = collected.dataset([pair.name for pair in compared], seed)
    dataset = dataset.assign_attrs(
        pairs=len(compared), seed=seed, density=str(settings.density), maps=settings.map_name
    )
    return Comparison(dataset, pairing.unpaired, broken, collected.only(), tuple(compared), distances)


def ranked_changes(dataset: xr.Dataset) -> dict[str, list[Change]]:
    """Changes of layers and heads that a pair has, by what they are measured by, the largest first."""
    found = {}
    for name, direction in itertools.product(RANKED, dataset["direction"].values.tolist()):
        means = (dataset[name] if name in dataset else dataset[f"{name}_difference"]).sel(direction=direction)
        interval = dataset[f"{name}_interval"].sel(direction=direction).transpose("bound", *means.dims)
        labels = [_label(means, index) for index in np.ndindex(*means.shape)]
        rows = zip(labels, means.values.flat, *interval.values.reshape(2, -1).tolist(), strict=True)
        score = f"{name}_{direction}"
        changes = [Change(score, label, float(mean), *bounds) for label, mean, *bounds in rows if not np.isnan(mean)]
        if changes:
            found[score] = sorted(changes, key=lambda one: -abs(one.difference))
    return found


def _label(means: xr.DataArray, index: tuple[int, ...]) -> str:
    labels = means[index].coords
    return ", ".join(str(labels[dim].item()) if dim == "layer" else f"{dim} {labels[dim].item()}" for dim in means.dims)


@dataclass(frozen=True)
class PairStatistics:
    """Statistics of the two traces of a pair, and the distances between their maps."""

    a: xr.Dataset
    b: xr.Dataset
    """As `trace_statistics` gives them."""
    distances: xr.Dataset
    """`layer_distance` (direction, layer) and `head_distance` (direction, head): Jensen-Shannon divergence in bits
    between the maps of both; NaN where one has none."""


def _pair_statistics(
    pair: Pair, settings: Settings, storage_options: Mapping[str, Any] | None
) -> PairStatistics | dict[str, str]:
    """Statistics of a pair; or why a trace of it cannot be read, by its path."""
    found = {path: statistics_or_reason(path, settings, storage_options) for path in (pair.a, pair.b)}
    a, b = found[pair.a], found[pair.b]
    if isinstance(a, str) or isinstance(b, str):
        return {path: one for path, one in found.items() if isinstance(one, str)}
    both = xr.concat([a, b], "side", join="outer")
    distances = {name: 1 - agreement(both[level], "side") for name, level in DISTANCES.items()}
    return PairStatistics(a, b, xr.Dataset(distances))


class _Collected:
    """What is gathered of the pairs: moments of maps, and the small numbers of each pair."""

    def __init__(self) -> None:
        self._labels: dict[str, list[xr.Dataset]] = {side: [] for side in SIDES}
        self._maps: Moments | None = None
        self._small: list[xr.Dataset] = []

    def add(self, values: PairStatistics) -> None:
        """Take in one pair; only what both of its traces have counts."""
        # the area of the mask is none of the model's doing
        sides = [one.drop_sel(score=["area"], errors="ignore").astype(np.float64) for one in (values.a, values.b)]
        for side, statistics in zip(SIDES, sides, strict=True):
            self._labels[side].append(statistics[["layer", "score"]])
        a, b = xr.align(*sides, join="outer")
        difference = b - a
        parts = [one.where(np.isfinite(difference)) for one in (a, b, difference)]
        both = xr.concat(parts, xr.Variable("part", [*SIDES, "difference"]))
        moments = Moments.of(both[list(LEVELS)])
        self._maps = moments if self._maps is None else self._maps.merge(moments)
        self._small.append(both.drop_vars(LEVELS).merge(values.distances, join="outer"))

    def only(self) -> dict[str, tuple[str, ...]]:
        """Layers that no trace of the other set has, by side."""
        a, b = (first_met(self._labels[side], "layer") for side in SIDES)
        return {"a": tuple(one for one in a if one not in b), "b": tuple(one for one in b if one not in a)}

    def dataset(self, names: list[str], seed: int) -> xr.Dataset:
        """Means, differences and intervals of all pairs."""
        assert self._maps is not None  # a pair was added
        variables: dict[str, Any] = {}
        deviations = self._maps.variances() ** 0.5
        for name, means in self._maps.means().items():
            variables |= {f"{name}_{part}": means.sel(part=part, drop=True) for part in means["part"].values}
            of_maps = {"deviation": deviations[name], "count": self._maps.count[name]}
            variables |= {f"{name}_{of}": values.sel(part="difference", drop=True) for of, values in of_maps.items()}
        small = xr.concat(self._small, xr.Variable("pair", names), join="outer")
        for name, values in small.items():
            paired = values.sel(part="difference", drop=True) if "part" in values.dims else values
            variables[str(name) if paired is values else f"{name}_difference"] = paired.mean("pair")
            variables[f"{name}_interval"] = ("bound", *paired.dims[1:]), bootstrap_interval(paired.values, seed=seed)
            if paired is not values:
                variables |= {f"{name}_{side}": values.sel(part=side, drop=True) for side in SIDES}
        variables["scores_pairs"] = small["scores"].sel(part="difference", drop=True).count("pair")
        labels = [one for side in SIDES for one in self._labels[side]]
        dataset = xr.Dataset(variables, {"bound": ["low", "high"]})
        return dataset.sel({dim: first_met(labels, dim) for dim in ("layer", "score")})
