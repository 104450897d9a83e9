"""What one pair of traces contributes to a comparison, as plain arrays that travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from attrace.analysis.scores.statistics import agreement
from attrace.analysis.scores.trace_scores import score_maps, score_picture
from attrace.analysis.studies.contribution import SCORES, Arrays, Settings, trace_statistics
from attrace.analysis.studies.labelled import STATISTIC_DIMS
from attrace.analysis.studies.pairing import Pair
from attrace.analysis.trace.trace import open_trace
from attrace.schemas import AttraceError
from attrace.schemas.words import DIRECTIONS, LEVELS

DISTANT: Final = {"layer": "llam", "head": "hlam"}
"""The level whose maps are compared, by the dimension they lie along."""


@dataclass(frozen=True)
class PairValues:
    """Numbers of two traces and of what lies between them."""

    a: Arrays
    b: Arrays
    """What `trace_statistics` gives of each."""
    scores_a: Mapping[str, float]
    scores_b: Mapping[str, float]
    """Scores by name, such as `imacs`, `drift_r2g`, `psnr`."""
    distances: Arrays
    """`layer_distance_<direction>` (layer) and `head_distance_<direction>` (head): Jensen-Shannon divergence in bits
    between the maps of both, of those that both have; with their labels."""


def pair_values(
    pair: Pair, settings: Settings, storage_options: Mapping[str, Any] | None
) -> PairValues | tuple[str, str]:
    """What a pair contributes; or which trace of it cannot be read, and why."""
    arrays, scores = [], []
    for path in (pair.a, pair.b):
        try:
            arrays.append(trace_statistics(path, settings, storage_options))
            scores.append(_scores_of(arrays[-1], path, settings, storage_options))
        except (AttraceError, OSError, ValueError) as error:
            return path, str(error)
    return PairValues(arrays[0], arrays[1], scores[0], scores[1], _distances(arrays[0], arrays[1]))


def _scores_of(
    arrays: Arrays, path: str, settings: Settings, storage_options: Mapping[str, Any] | None
) -> dict[str, float]:
    scores: dict[str, float] = {name: float(arrays[name]) for name in SCORES if name in arrays and name != "area"}
    for direction in DIRECTIONS:
        if f"ulam_{direction}" in arrays:
            of_maps = asdict(score_maps({level: _map(arrays, f"{level}_{direction}") for level in LEVELS}))
            scores |= {f"{name}_{direction}": value for name, value in of_maps.items() if name != "cells"}
    trace = settings.select(open_trace(path, storage_options=storage_options))
    shapes = trace.image_shapes
    if {"generated", "truth"} <= shapes.keys() and shapes["generated"] == shapes["truth"]:
        mask = (trace.images["mask"].values > 127) if len(shapes.get("mask", ())) == 2 else None
        picture = score_picture(trace, mask=mask)
        assert picture is not None  # it holds a truth
        scores |= {name: value for name, value in asdict(picture).items() if value is not None}
    return scores


def _map(arrays: Arrays, name: str) -> xr.DataArray:
    return xr.DataArray(arrays[name], dims=STATISTIC_DIMS[name.partition("_")[0]])


def _distances(first: Arrays, second: Arrays) -> Arrays:
    distances: Arrays = {}
    for dim, level in DISTANT.items():
        labels = [one[f"labels:{dim}"].tolist() for one in (first, second)]
        shared = [label for label in labels[0] if label in labels[1]]
        distances[f"labels:{dim}"] = np.array(shared, dtype=first[f"labels:{dim}"].dtype)
        for direction in DIRECTIONS:
            name = f"{level}_{direction}"
            if shared and name in first and name in second:
                distances[f"{dim}_distance_{direction}"] = _distance(
                    *(
                        one[name][[found.index(label) for label in shared]]
                        for one, found in zip((first, second), labels, strict=True)
                    )
                )
    return distances


def _distance(first: Any, second: Any) -> Any:
    """Jensen-Shannon divergence, in bits, of every two maps (map, row, column): (map), NaN where one is."""
    both = xr.DataArray(np.stack([first, second]), dims=("side", "map", "row", "column"))
    return 1 - agreement(both, "side").values
