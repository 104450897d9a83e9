"""Mean and variance of the maps, head statistics and scores of many traces, on threads or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr

from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.studies.engine import Progress, run_tasks
from attrace.analysis.studies.moments import Moments, merge_pairwise
from attrace.analysis.studies.trace_statistics import Settings, first_met, statistics_or_reason
from attrace.analysis.trace.trace import open_trace
from attrace.analysis.trace.traces import OPENING_THREADS, Sources, find_traces
from attrace.schemas import AttraceError, InputError

if TYPE_CHECKING:
    import pandas as pd

HEAD_STATISTICS: Final = ("entropy", "inside", "agreement")
"""Statistics of the maps of single heads."""


@dataclass(frozen=True)
class Aggregate:
    """Statistics over many traces."""

    dataset: xr.Dataset
    """`<name>_mean`, `<name>_variance` (of the population, divided by n - 1) and `<name>_count` of every map and
    statistic of heads, over `direction` and the dims of each; `scores` (trace, score) and `scores_interval` (bound,
    score)."""
    broken: Mapping[str, str]
    """Why each trace that is left out could not be read, by its path."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """The trace that each copy is one of, both by path: it is not computed again, but counts."""


def aggregate(
    sources: Sources,
    parts: Path,
    *,
    settings: Settings | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Aggregate:
    """Aggregate many traces, one task each; the statistics of each are saved, so that an interrupted run goes on.

    Parameters
    ----------
    sources
        As for `open_traces`.
    parts
        Folder for the statistics of each trace; what is there already is not computed again.
    settings
        What is computed.
    executor
        What runs the tasks: `engine()` by default. The result is the same on each, to the last bit.
    seed
        Of the bootstrap.
    progress
        Called after every trace.
    storage_options
        As for `open_trace`.

    Returns
    -------
    Aggregate
        Sums are in the order of the sources, merged pairwise (Chan, Golub and LeVeque, 1983).

    Raises
    ------
    InputError
        If no trace could be read.
    """
    settings = settings or Settings()
    parts.mkdir(parents=True, exist_ok=True)
    found, broken = _part_files(find_traces(sources, storage_options=storage_options), parts, settings, storage_options)
    missing = {part: path for path, part in reversed(found.items()) if _read_part(part) is None}
    where: Any = {"executor": executor, "progress": progress, "done": len(found) - len(missing)}
    results = run_tasks(statistics_or_reason, missing.values(), settings, storage_options, **where)
    for part, (_, result) in zip(missing, results, strict=True):
        if isinstance(result, str):
            broken |= {path: result for path, of_copy in found.items() if of_copy == part}
        else:
            _write_part(result, part)
    usable = {path: part for path, part in found.items() if path not in broken}
    if not usable:
        first = next(iter(broken.items()))
        raise InputError(f"none of {len(broken)} traces can be aggregated; the first, {first[0]}: {first[1]}")
    return Aggregate(_combine(usable, settings, seed), broken, _copies(usable))


def _part_files(
    paths: tuple[str, ...], parts: Path, settings: Settings, storage_options: Mapping[str, Any] | None
) -> tuple[dict[str, Path], dict[str, str]]:
    """The file for the statistics of each trace that opens, and why the others do not; copies of a trace share one."""

    def part_of(path: str) -> Path | Exception:
        try:
            return parts / f"{settings.key(open_trace(path, storage_options=storage_options))}.nc"
        except (AttraceError, OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        found = dict(zip(paths, pool.map(part_of, paths), strict=True))
    broken = {path: str(one) for path, one in found.items() if isinstance(one, Exception)}
    return {path: one for path, one in found.items() if isinstance(one, Path)}, broken


def _copies(found: Mapping[str, Path]) -> dict[str, str]:
    """The first trace with the same statistics of each that is not the first."""
    first: dict[Path, str] = {}
    return {path: first[part] for path, part in found.items() if first.setdefault(part, path) != path}


def _write_part(statistics: xr.Dataset, path: Path) -> None:
    """Write a part, whole or not at all."""
    partial = path.with_suffix(".partial")
    statistics.to_netcdf(partial, engine="scipy")
    partial.replace(path)


def _read_part(path: Path) -> xr.Dataset | None:
    """The statistics in a part; None where there is none that can be read whole."""
    try:
        return _load_part(path)
    # SciPy raises nearly anything on a file that was cut off: type, value and index errors among them
    except Exception:
        return None


def _load_part(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="scipy").drop_encoding()


def _combine(parts: Mapping[str, Path], settings: Settings, seed: int) -> xr.Dataset:
    """Moments of maps and head statistics, and the scores of every trace."""
    labels: list[xr.Dataset] = []
    scores: list[xr.DataArray] = []

    def moments() -> Iterator[Moments]:
        for part in parts.values():
            statistics = _load_part(part)
            labels.append(statistics[["layer", "score"]])
            scores.append(statistics["scores"].where(np.isfinite(statistics["scores"])))
            yield Moments.of(statistics.drop_dims("score"))

    merged = merge_pairwise(moments())
    measures = {"mean": merged.means(), "variance": merged.variances(), "count": merged.count}
    computed = [str(name) for name, count in merged.count.items() if count.any()]
    variables = {f"{name}_{measure}": of[name] for name in computed for measure, of in measures.items()}
    table = xr.concat(scores, xr.Variable("trace", list(parts)), join="outer")
    interval = bootstrap_interval(table.values, seed=seed)
    variables |= {"scores": table, "scores_interval": (("bound", "score"), interval)}  # type: ignore[dict-item]
    attributes = {"traces": len(parts), "seed": seed, "density": str(settings.density), "aligned": str(settings.align)}
    attributes["maps"] = settings.map_name
    dataset = xr.Dataset(variables, {"bound": ["low", "high"]}, attributes)
    return dataset.reindex({dim: first_met(labels, dim) for dim in ("layer", "score")})


def summary_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Everything but the maps, one row each.

    Columns `statistic`, `trace`, `layer`, `head`, `count`, `mean`, `variance`, `low`, `high`: a score of all traces
    (with its interval), then of every trace (`trace` is set), and each statistic of every layer and head.
    """
    import pandas as pd

    scores = dataset["scores"]
    of_all = xr.Dataset({"count": scores.count("trace"), "mean": scores.mean("trace")})
    of_all["variance"] = scores.var("trace", ddof=1)
    of_all = of_all.assign({bound: dataset["scores_interval"].sel(bound=bound, drop=True) for bound in ("low", "high")})
    of_each = xr.Dataset({"mean": scores, "count": scores.notnull().astype(int)})
    tables = [one.reset_coords(drop=True).to_dataframe().reset_index() for one in (of_all, of_each)]
    for name in (name for name in HEAD_STATISTICS if f"{name}_mean" in dataset):
        parts = {part: dataset[f"{name}_{part}"] for part in ("count", "mean", "variance")}
        table = xr.Dataset(parts).to_dataframe().reset_index()
        tables.append(table.assign(score=name + "_" + table["direction"]))
    columns = ["statistic", "trace", "layer", "head", "count", "mean", "variance", "low", "high"]
    return pd.concat(tables).rename(columns={"score": "statistic"}).reindex(columns=columns)
