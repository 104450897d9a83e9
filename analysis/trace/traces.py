"""Many traces at once: finding them, opening them, and their maps along a dimension `trace`."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from attrace.analysis.storage.address import files_at
from attrace.analysis.trace.selection import Layers, Numbers
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.schemas import AttraceError, InputError, TraceNotFoundError
from attrace.schemas.address import is_address, local_path
from attrace.schemas.checks import require_type

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""Traces, folders of traces, globs and addresses of them."""

OPENING_THREADS: Final = 16
"""Number of traces opened at the same time: opening waits for the server or the disk, not for the processor."""


@dataclass(frozen=True, eq=False, repr=False)
class Traces:
    """Many opened traces: nothing but their metadata is read until something is computed.

    `ulam`, `tlam`, `hlam` and `llam` take it in place of one trace, and give a map with a dimension `trace`.
    """

    members: tuple[Trace, ...]
    """The traces, in the order of the sources."""
    broken: Mapping[str, str]
    """Why each source that is left out could not be opened, by its path or address."""

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.members)

    def __getitem__(self, index: int) -> Trace:
        return self.members[index]

    def __repr__(self) -> str:
        left_out = f", {len(self.broken)} broken ones left out" if self.broken else ""
        return f"<attrace.Traces {len(self)} traces, {len(self.layers)} layers{left_out}>"

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Module paths of the selected layers that any trace has, in order of first appearance."""
        return tuple(dict.fromkeys(layer for trace in self.members for layer in trace.layers))

    @cached_property
    def shared_layers(self) -> tuple[str, ...]:
        """Module paths of the selected layers that every trace has."""
        shared = set(self.layers).intersection(*(trace.layers for trace in self.members))
        return tuple(layer for layer in self.layers if layer in shared)

    @cached_property
    def coordinates(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Metadata of every trace, as coordinates along `trace`, whose labels are the paths.

        `id`, `status`, `steps`, `seed` (NaN where there is none), `model`, `scheduler`, `guidance_scale` and `prompt`.
        """
        facts = [_facts(trace) for trace in self.members]
        return {name: ("trace", np.array([fact[name] for fact in facts])) for name in facts[0]}

    def sel(
        self,
        *,
        layer: Layers = None,
        time: Numbers = None,
        head: Numbers = None,
        context: str | None = None,
        branch: str | None = None,
        picture: int | None = None,
    ) -> Traces:
        """Select the same labels in every trace, as `Trace.sel` does in one.

        Raises
        ------
        SelectionError
            If a label names nothing in one of the traces; `shared_layers` are what all have.
        """
        chosen = (
            trace.sel(layer=layer, time=time, head=head, context=context, branch=branch, picture=picture)
            for trace in self.members
        )
        return replace(self, members=tuple(chosen))


def open_traces(
    sources: Sources,
    *,
    broken: Literal["raise", "skip"] = "raise",
    storage_options: Mapping[str, Any] | None = None,
) -> Traces:
    """Open many traces; nothing is read but metadata, on several threads.

    Parameters
    ----------
    sources
        A trace, a folder that holds traces (at any depth), a glob such as `runs/*.zarr`, the address of any of these
        on an object store (there, traces of a folder are those directly in it), or several of them.
    broken
        What to do with a source that cannot be opened: `raise`, or `skip` it and tell in `Traces.broken`.
    storage_options
        As for `open_trace`.

    Returns
    -------
    Traces
        In the order of the sources, those of a folder or glob by name, each once.

    Raises
    ------
    TraceNotFoundError
        If a folder or glob holds no trace.
    AttraceError
        As `open_trace`, for a broken trace; or if all are broken.
    """
    if broken not in ("raise", "skip"):
        raise InputError(f"broken: expected 'raise' or 'skip', found {broken!r}")
    paths = find_traces(sources, storage_options=storage_options)
    opening = partial(_open_or_error, storage_options=storage_options)
    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        opened = list(pool.map(opening, paths))
    errors = {path: one for path, one in zip(paths, opened, strict=True) if isinstance(one, Exception)}
    members = tuple(one for one in opened if isinstance(one, Trace))
    if errors and (broken == "raise" or not members):
        raise next(iter(errors.values()))
    return Traces(members, {path: str(error) for path, error in errors.items()})


def find_traces(sources: Sources, *, storage_options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Paths and addresses of the traces that sources name; nothing of them is read.

    Raises
    ------
    TraceNotFoundError
        If a folder or glob holds no trace.
    """
    expected = "a trace's path or address, a folder or glob of traces, or several of these"
    require_type(sources, (str, os.PathLike, Iterable), "sources", expected)
    found: list[str] = []
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        require_type(source, (str, os.PathLike), "sources", expected)
        named = _find(os.fspath(source), storage_options)
        if not named:
            raise TraceNotFoundError(f"no trace at {source}: expected a trace, or a folder or glob of some")
        found += named
    return tuple(dict.fromkeys(found))


def map_each(
    traces: Traces,
    maker: Callable[..., xr.DataArray],
    size: tuple[int, int],
    options: Mapping[str, Any],
) -> xr.DataArray:
    """Lazy map of every trace, one task each, with the dims of the map after `trace`.

    A layer, head or group of steps that a trace lacks is NaN in its map.
    """
    import dask.array as da
    import xarray as xr
    from dask.delayed import delayed

    shapes = {_layout(trace): maker(trace, size=size, **options) for trace in _one_of_each_layout(traces)}
    templates = [shapes[_layout(trace)] for trace in traces]
    dims = templates[0].dims
    labels = {dim: _union([one[dim].values for one in shapes.values()]) for dim in dims if dim in templates[0].coords}
    lengths = {dim: max(one.sizes[dim] for one in templates) for dim in dims} | {d: len(v) for d, v in labels.items()}
    shape = tuple(lengths[dim] for dim in dims)
    make = delayed(_labelled_map, pure=True)
    blocks = [
        da.from_delayed(make(trace, maker, size, dict(options), labels, shape), shape, template.dtype)
        for trace, template in zip(traces, templates, strict=True)
    ]
    coordinates = traces.coordinates | {dim: (dim, values) for dim, values in labels.items()}
    attributes = {name: value for name, value in templates[0].attrs.items() if name in _SHARED_ATTRIBUTES}
    return xr.DataArray(da.stack(blocks), coordinates, ("trace", *dims), templates[0].name, attributes)


_SHARED_ATTRIBUTES: Final = ("direction", "long_name", "normalisation", "weights", "level", "units")


def _labelled_map(
    trace: Trace,
    maker: Callable[..., xr.DataArray],
    size: tuple[int, int],
    options: Mapping[str, Any],
    labels: Mapping[Any, NDArray[Any]],
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """The map of one trace, with NaN for the labels that it lacks."""
    # on one thread: the tasks are what runs at the same time, and the order of its sums is always the same
    heat = maker(trace, size=size, **options).compute(scheduler="synchronous").reindex(labels)
    values = np.full(shape, np.nan, heat.dtype)
    values[tuple(slice(length) for length in heat.shape)] = heat.values
    return values


def _one_of_each_layout(traces: Traces) -> Iterable[Trace]:
    return {_layout(trace): trace for trace in traces}.values()


def _layout(trace: Trace) -> tuple[Any, ...]:
    """Key of the labels of a trace's maps: equal for traces whose maps have equal labels."""
    return trace.classes, trace.steps


def _union(labels: Collection[NDArray[Any]]) -> NDArray[Any]:
    """Union of labels: numbers sorted, names in order of first appearance."""
    met = list(dict.fromkeys(label for some in labels for label in some.tolist()))
    numbers = all(isinstance(label, int) for label in met)
    return np.array(sorted(met) if numbers else met)


def _facts(trace: Trace) -> dict[str, Any]:
    manifest = trace.manifest
    named = manifest.pipeline or manifest.denoiser
    prompt = manifest.call_arguments.get("prompt")
    scale = manifest.guidance.scale
    return {
        "trace": trace.path,
        "id": manifest.id,
        "status": manifest.status,
        "steps": trace.steps,
        "seed": np.nan if manifest.seed is None else float(manifest.seed),
        "model": named.model_id or named.class_name,
        "scheduler": manifest.scheduler.class_name if manifest.scheduler else "",
        "guidance_scale": np.nan if scale is None else scale,
        "prompt": prompt if isinstance(prompt, str) else "",
    }


def _open_or_error(path: str, storage_options: Mapping[str, Any] | None) -> Trace | Exception:
    try:
        return open_trace(path, storage_options=storage_options)
    except (AttraceError, OSError, ValueError) as error:
        return error


def _find(source: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    if is_address(source):
        return _find_remote(source, storage_options)
    path = local_path(source)
    if glob.has_magic(str(path)) and not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (the pattern may be absolute)
        return [trace for match in matches for trace in _traces_below(Path(match))]
    if not path.exists():
        raise TraceNotFoundError(f"no trace at {path}: there is no such file or folder; check the path")
    return list(_traces_below(path))


def _traces_below(path: Path) -> Iterator[str]:
    """A trace itself, or those in a folder at any depth; folders inside a trace are not searched."""
    if path.is_file() or (path / "zarr.json").exists():
        yield str(path)
        return
    for child in sorted(path.iterdir()):
        if child.suffix == ".zip" or (child.is_dir() and not child.name.startswith(".")):
            yield from _traces_below(child)


def _find_remote(source: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    """An address itself; or what a store lists, where it ends in `/` or its last part is a glob."""
    folder, _, pattern = source.rpartition("/")
    if pattern and not glob.has_magic(pattern):
        return [source]
    found = files_at(folder, storage_options).children()
    names = sorted(name.rstrip("/") for name in found if name.endswith(("/", ".zip")))
    return [f"{folder}/{name}" for name in names if fnmatch.fnmatchcase(name, pattern or "*")]
