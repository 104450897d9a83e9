"""Mean and variance of the maps, head statistics and scores of many traces, on threads or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.studies.contribution import SCORES, Arrays, Settings, keep, read_kept, trace_statistics
from attrace.analysis.studies.labelled import laid_out, statistic_dims
from attrace.analysis.trace.trace import open_trace
from attrace.analysis.trace.traces import OPENING_THREADS, Sources, find_traces
from attrace.schemas import AttraceError, InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Progress = Callable[[int, int], None]
"""Told how many of how many traces are done."""

WAITING_PER_WORKER: Final = 2
"""Traces handed to each worker ahead of time; more would only hold results in memory."""


@dataclass(frozen=True)
class Aggregate:
    """What was made of many traces."""

    dataset: xr.Dataset
    """`<name>_mean`, `<name>_variance` (of the population, divided by n - 1) and `<name>_count` of every map and
    statistic; `imacs` and the other scores along `trace`, and their `<name>_interval` (bound)."""
    broken: Mapping[str, str]
    """Why each trace that is left out was, by where it lies."""


@dataclass(frozen=True)
class _Found:
    """A trace and the name of what it contributes."""

    path: str
    key: str


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
    """Aggregate many traces: one task each, whose result is kept in a folder, so that a run that is cut off goes on.

    Parameters
    ----------
    sources
        As for `open_traces`.
    parts
        Folder for what each trace contributes; what is there already is not computed again.
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
        Its order of sums is that of the sources, merged pairwise (Chan, Golub and LeVeque, 1983).

    Raises
    ------
    InputError
        If no trace could be read.
    """
    settings = settings or Settings()
    found, broken = _identify(find_traces(sources, storage_options=storage_options), settings, storage_options)
    parts.mkdir(parents=True, exist_ok=True)
    with engine() if executor is None else _as_it_is(executor) as pool:
        failed = _compute_missing(found, parts, settings, pool, progress, storage_options)
    broken |= {one.path: failed[one.key] for one in found if one.key in failed}
    usable = [one for one in found if one.path not in broken]
    if not usable:
        first = next(iter(broken.items()))
        raise InputError(f"none of {len(broken)} traces can be aggregated; the first, {first[0]}: {first[1]}")
    return Aggregate(_combine(usable, parts, settings, seed), broken)


@contextmanager
def engine(scheduler: str | None = None) -> Iterator[Executor]:
    """What runs tasks: the cluster at an address, else the active Dask client, else threads.

    Parameters
    ----------
    scheduler
        Address of a Dask scheduler, such as `tcp://host:8786`; None for the active client, or threads of this process.
    """
    client = _client(scheduler)
    if client is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield pool
        return
    try:
        yield client.get_executor()
    finally:
        if scheduler is not None:
            client.close()


def _client(scheduler: str | None) -> Any:
    try:
        import distributed  # optional: only clusters need it
    except ImportError as error:
        if scheduler is None:
            return None
        raise ImportError("a cluster needs distributed: pip install 'attrace[cluster]'") from error
    if scheduler is not None:
        return distributed.Client(scheduler)
    try:
        return distributed.get_client()
    except ValueError:
        return None


@contextmanager
def _as_it_is(executor: Executor) -> Iterator[Executor]:
    yield executor


def _identify(
    paths: tuple[str, ...], settings: Settings, storage_options: Mapping[str, Any] | None
) -> tuple[list[_Found], dict[str, str]]:
    """The traces that open, and why the others do not; of each only what names it is kept."""

    def name(path: str) -> _Found | Exception:
        try:
            return _Found(path, settings.key(open_trace(path, storage_options=storage_options)))
        except (AttraceError, OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        named = list(pool.map(name, paths))
    found = [one for one in named if isinstance(one, _Found)]
    return found, {path: str(one) for path, one in zip(paths, named, strict=True) if isinstance(one, Exception)}


def _compute_missing(
    found: list[_Found],
    parts: Path,
    settings: Settings,
    pool: Executor,
    progress: Progress | None,
    storage_options: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Compute and keep what is not there yet; why traces failed, by key: copies of a trace share it."""
    missing = {one.key: one for one in found if not _part(parts, one).exists()}
    done, failed = len(found) - len(missing), dict[str, str]()
    waiting = iter(missing.values())
    running: dict[Future[Arrays | str], _Found] = {}
    limit = WAITING_PER_WORKER * workers(pool)
    try:
        while True:
            for one in waiting:
                running[pool.submit(_statistics_or_error, one.path, settings, storage_options)] = one
                if len(running) >= limit:
                    break
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                one, result = running.pop(future), future.result()
                if isinstance(result, str):
                    failed[one.key] = result
                else:
                    keep(result, _part(parts, one))
                done += 1
                if progress is not None:
                    progress(done, len(found))
    finally:
        for future in running:
            future.cancel()


def workers(pool: Executor) -> int:
    """How many tasks what runs them has at work at once."""
    client = getattr(pool, "_client", None)
    return os.cpu_count() or 1 if client is None else max(1, sum(client.nthreads().values()))


def _part(parts: Path, one: _Found) -> Path:
    return parts / f"{one.key}.npz"


def _statistics_or_error(path: str, settings: Settings, storage_options: Mapping[str, Any] | None) -> Arrays | str:
    """What a trace contributes, or why it does not: one broken trace must not stop the others."""
    try:
        return trace_statistics(path, settings, storage_options)
    except (AttraceError, OSError, ValueError) as error:
        return str(error)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations, of each element, of values that are not NaN."""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Moments:
        """Those of one value of each element."""
        known = ~np.isnan(values)
        return cls(known.astype(np.int64), np.where(known, values, 0).astype(np.float64), np.zeros(values.shape))

    def merge(self, other: Moments) -> Moments:
        """Those of both together (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        distance = other.mean - self.mean
        mean = np.where(self.count == 0, other.mean, self.mean + distance * share)
        return Moments(count, mean, self.squares + other.squares + distance**2 * self.count * share)


def merge_pairwise(moments: Iterable[Moments]) -> Moments:
    """All together, in pairs of equal numbers of traces: no more than the logarithm of their number at once."""
    levels: list[Moments | None] = []
    for carried in moments:
        level = 0
        while level < len(levels) and (left := levels[level]) is not None:
            carried, levels[level] = left.merge(carried), None
            level += 1
        levels += [None] * (level + 1 - len(levels))
        levels[level] = carried
    left_over = [one for one in levels if one is not None]
    return reduce(lambda right, left: left.merge(right), left_over)


def _combine(found: list[_Found], parts: Path, settings: Settings, seed: int) -> xr.Dataset:
    import xarray as xr

    files = [_part(parts, one) for one in found]
    labels, names = _labels_and_names(files)
    lengths = {dim: len(values) for dim, values in labels.items()}
    lengths |= {"time_group": settings.groups, "row": settings.size[0], "column": settings.size[1]}
    variables: dict[str, Any] = {}
    averaged = [name for name in names if name not in SCORES]
    shapes = {name: tuple(lengths[dim] for dim in statistic_dims(name)) for name in averaged}
    for name in averaged:
        dims = statistic_dims(name)
        total = merge_pairwise(
            Moments.of(laid_out(read_kept(file, name), name, labels, shapes[name])) for file in files
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            variables[f"{name}_mean"] = dims, np.where(total.count > 0, total.mean, np.nan)
            variables[f"{name}_variance"] = dims, np.where(total.count > 1, total.squares / (total.count - 1), np.nan)
        variables[f"{name}_count"] = dims, total.count
    for name in (name for name in SCORES if name in names):
        values = np.array([float(read_kept(file, name).get(name, np.nan)) for file in files])
        variables[name] = "trace", values
        variables[f"{name}_interval"] = "bound", bootstrap_interval(values, seed=seed)
    coordinates = labels | {"trace": np.array([one.path for one in found]), "bound": np.array(["low", "high"])}
    attributes = {"traces": len(found), "seed": seed, "density": str(settings.density), "aligned": str(settings.align)}
    return xr.Dataset(variables, coordinates, attributes)


def summary_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Everything but the maps, one row each.

    Columns `statistic`, `trace`, `layer`, `head`, `count`, `mean`, `variance`, `low`, `high`: a score of every trace
    (`trace` is set), of all of them (with its interval), and each head statistic of every layer and head.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name in (name for name in SCORES if name in dataset):
        values = dataset[name].values
        known = values[~np.isnan(values)]
        low, high = dataset[f"{name}_interval"].values
        rows.append({"statistic": name, "count": known.size, "mean": known.mean() if known.size else np.nan})
        rows[-1] |= {"variance": known.var(ddof=1) if known.size > 1 else np.nan, "low": low, "high": high}
        traces = zip(dataset["trace"].values, values, strict=True)
        rows += [{"statistic": name, "trace": trace, "count": 1, "mean": value} for trace, value in traces]
    for name in _heads_statistics(dataset):
        moments = {part: dataset[f"{name}_{part}"] for part in ("count", "mean", "variance")}
        table = moments["mean"].to_dataframe(name="mean").drop(columns="mean").reset_index()
        for part, values_of in moments.items():
            table[part] = values_of.values.ravel()
        rows += [{"statistic": name} | {str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    return pd.DataFrame(
        rows, columns=["statistic", "trace", "layer", "head", "count", "mean", "variance", "low", "high"]
    )


def _heads_statistics(dataset: xr.Dataset) -> list[str]:
    names = [str(name).removesuffix("_mean") for name in dataset if str(name).endswith("_mean")]
    return [name for name in names if "row" not in statistic_dims(name)]


def _labels_and_names(files: list[Path]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Layers in the order in which they are first met, heads in theirs, and the names of everything computed."""
    layers, heads, names = dict[str, None](), set[int](), dict[str, None]()
    for file in files:
        with np.load(file, allow_pickle=False) as kept:
            layers |= dict.fromkeys(kept["labels:layer"].tolist())
            heads |= set(kept["labels:head"].tolist())
            names |= dict.fromkeys(name for name in kept.files if not name.startswith("labels:"))
    return {"layer": np.array(list(layers)), "head": np.array(sorted(heads))}, sorted(names)
