"""The atlas of heads: one row for each trace, layer, head, group of steps and direction."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dask.base
import numpy as np
import xarray as xr

from attrace.analysis.maps.attribution import mappable_directions
from attrace.analysis.maps.levels import time_groups
from attrace.analysis.maps.masks import as_mask, trace_mask
from attrace.analysis.maps.weights import LayerWeights, by_layer
from attrace.analysis.scores.ground_truth import correspondence_scores, places_of_mask
from attrace.analysis.scores.matches import match_pictures
from attrace.analysis.studies.engine import Progress, or_reason, run_tasks
from attrace.analysis.studies.pairing import stem_of
from attrace.analysis.studies.trace_statistics import maps_of_heads, statistics_of_heads
from attrace.analysis.trace.derived import read_effects
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.analysis.trace.traces import Sources, find_traces
from attrace.schemas import InputError
from attrace.schemas.checks import require_choice
from attrace.schemas.layout import EFFECT

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = (
    "trace",
    "layer",
    "head",
    "time_group",
    "first_call",
    "last_call",
    "direction",
    "entropy",
    "inside",
    "agreement",
    "effect",
    "correspondence_error",
    "pck",
)
"""Columns of the table."""


@dataclass(frozen=True)
class AtlasSettings:
    """What is computed for every trace."""

    groups: int = 5
    """Groups of consecutive steps; fewer where there are fewer steps."""
    layers: tuple[str, ...] = ()
    """Globs of the layers to take; all by default."""
    context: str | None = None
    """As for `Trace.sel`."""
    branch: str | None = None
    """As for `Trace.sel`."""
    effects: LayerWeights = EFFECT
    """Effects of layers or heads, as `weights=` of maps: `effect` for those that a trace holds, if it does."""
    places: str | None = None
    """True places: `mask` where the whole reference was laid on the box of the mask, `matches` of both pictures as
    `match_pictures` finds them, or a folder with `NAME.npy` for each `NAME.zarr`, as for `places_on_grid`; None where
    none are known."""


@dataclass(frozen=True)
class Atlas:
    """The table of many traces."""

    table: pd.DataFrame
    """Columns `COLUMNS`: entropy in nats and mass inside the mask of the map of a head, on the grid of its layer;
    agreement of the heads of the layer; measured effect of the layer or head; correspondence error in cells, and PCK.
    NaN where there is none."""
    broken: Mapping[str, str]
    """Why each trace that is left out could not be read, by its path."""


def atlas(
    sources: Sources,
    *,
    settings: AtlasSettings | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Atlas:
    """Make one table of the heads of many traces, one task for each trace.

    Parameters
    ----------
    sources
        As for `open_traces`.
    settings
        What is computed.
    executor
        What runs the tasks: `engine()` by default.
    progress
        Called after every trace.
    storage_options
        As for `open_trace`.

    Raises
    ------
    InputError
        If no trace could be read.
    """
    import pandas as pd  # slow to import

    settings = settings or AtlasSettings()
    paths = find_traces(sources, storage_options=storage_options)
    tables, broken = [], {}
    arguments: Any = (settings, storage_options)
    for path, result in run_tasks(_table_or_reason, paths, *arguments, executor=executor, progress=progress):
        if isinstance(result, str):
            broken[path] = result
        else:
            tables.append(result)
    if not tables:
        path, reason = next(iter(broken.items()))
        raise InputError(f"none of {len(broken)} traces has an atlas; the first, {path}: {reason}")
    joined = pd.concat(tables, ignore_index=True)
    texts = dict.fromkeys(("trace", "layer", "direction"), "category")
    return Atlas(joined.astype(texts), broken)


def head_table(trace: Trace, settings: AtlasSettings | None = None) -> pd.DataFrame:
    """The rows of one trace.

    Raises
    ------
    AttraceError
        If it cannot be read, or has no map.
    """
    settings = settings or AtlasSettings()
    chosen = trace.sel(context=settings.context, branch=settings.branch).sel(layer=settings.layers or None)
    spans = time_groups(chosen, min(settings.groups, max(chosen.steps, 1)))
    directions = mappable_directions(chosen)
    # on one thread: traces are what runs at the same time
    maps = dask.base.compute(
        {direction: maps_of_heads(chosen, direction, spans) for direction in directions}, scheduler="synchronous"
    )[0]
    stored = trace_mask(chosen)
    mask = None if stored is None else as_mask(stored, "mask")
    parts = [
        xr.concat(
            [statistics_of_heads(one, mask if direction == "r2g" else None) for one in maps[direction]],
            "layer",
            join="outer",
        )
        for direction in directions
    ]
    found: xr.Dataset = xr.concat(parts, xr.Variable("direction", list(directions)), join="outer")
    found = found.reset_coords(drop=True).broadcast_like(found["entropy"])
    found = found.assign(_correspondence(chosen, spans, settings.places).data_vars)
    found = found.assign(effect=_effects(chosen, settings.effects))
    return _rows(found, chosen, spans)


def best_heads(table: pd.DataFrame, by: str, count: int, *, largest: bool = False) -> dict[tuple[str, int], float]:
    """Weights that take the best heads alone, for `weights=` of maps of other traces.

    Parameters
    ----------
    table
        As `atlas` gives it, or some rows of it.
    by
        A column with numbers, such as `correspondence_error`.
    count
        How many heads are taken.
    largest
        Whether the largest numbers are the best; by default the smallest are.

    Returns
    -------
    dict
        By (layer, head): 1 for the best, by their mean over all rows, and 0 for every other head of the table.

    Raises
    ------
    InputError
        If fewer heads have a number.
    """
    require_choice(by, COLUMNS[7:], "by")
    means = table.groupby(["layer", "head"], observed=True)[by].mean()
    known = means.dropna()
    if not 1 <= count <= len(known):
        raise InputError(f"count: expected 1 to {len(known)} heads that have a {by}, found {count}")
    best = set(known.nlargest(count).index if largest else known.nsmallest(count).index)
    return {(str(layer), int(head)): float((layer, head) in best) for layer, head in means.index.tolist()}


@or_reason
def _table_or_reason(path: str, settings: AtlasSettings, storage_options: Mapping[str, Any] | None) -> pd.DataFrame:
    return head_table(open_trace(path, storage_options=storage_options), settings)


def _effects(trace: Trace, given: LayerWeights) -> xr.DataArray:
    """Effects by layer, or by head; NaN where the trace holds none and no others are given."""
    if not (isinstance(given, str) and given == EFFECT):
        return by_layer(trace, given, trace.layers)
    try:
        return read_effects(trace)
    except InputError:
        return xr.DataArray(np.nan)


def _correspondence(trace: Trace, spans: list[slice], given: str | None) -> xr.Dataset:
    """Correspondence scores of every head in every group of steps, where true places are known."""
    places: Any
    if given is None:
        return xr.Dataset({"correspondence_error": np.nan, "pck": np.nan})
    if given == "mask":
        mask = trace_mask(trace)
        if mask is None:
            raise InputError(f"trace {trace.path} holds no mask, so its box tells no places")
        places = places_of_mask(trace, mask)
    elif given == "matches":
        places = match_pictures(trace)
    else:
        file = Path(given, f"{stem_of(trace.path)}.npy")
        if not file.exists():
            raise InputError(f"trace {trace.path}: expected its true places in {file}, found no such file")
        places = np.load(file, allow_pickle=False)
    groups = [
        correspondence_scores(trace.sel(time=list(map(int, trace.time[span]))), places, heads=True) for span in spans
    ]
    scores: xr.Dataset = xr.concat(groups, "time_group")
    return scores


def _rows(found: xr.Dataset, trace: Trace, spans: list[slice]) -> pd.DataFrame:
    """The rows of a trace, in the order of calls; without heads that a layer does not have."""
    labels = {"layer": list(trace.layers), "head": list(trace.heads)}
    found = found.reindex(labels).assign_coords(time_group=np.arange(len(spans), dtype=np.int32))
    frame = found.to_dataframe(dim_order=["layer", "head", "time_group", "direction"]).reset_index()
    calls = np.array([[trace.time[span.start], trace.time[span.stop - 1]] for span in spans], np.int32)
    frame["trace"] = trace.path
    frame["first_call"], frame["last_call"] = calls[frame["time_group"]].T
    existing = {(path, head) for one in trace.classes for path in one.paths for head in one.heads}
    has_head = [pair in existing for pair in zip(frame["layer"], frame["head"], strict=True)]
    table: pd.DataFrame = frame.loc[has_head, list(COLUMNS)].reset_index(drop=True)
    return table
