"""What one trace contributes to the statistics of many, as plain arrays that travel and are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import dask.base
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.maps.levels import level_maps
from attrace.analysis.maps.marginals import marginal_array
from attrace.analysis.maps.plans import Size, grid_plans
from attrace.analysis.scores.scorecard import score_map
from attrace.analysis.scores.statistics import agreement, entropy, mass
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.analysis.trace.weights import as_mask
from attrace.schemas import Direction

Arrays = dict[str, NDArray[Any]]
"""By name; labels of a dimension `layer` are in `labels:layer`."""

MASK: Final = "mask"
"""Picture of the painted region in a trace."""

SCORES: Final = ("imacs", "imacs_i2am", "inside", "area", "iou")
"""Numbers of a trace that has a mask, as in `Scorecard`."""


@dataclass(frozen=True)
class Settings:
    """What is computed for every trace."""

    size: Size = (32, 32)
    """Rows and columns of every map."""
    groups: int = 5
    """Groups of steps of the time-level maps."""
    density: bool = False
    """As for `ulam`."""
    align: bool = False
    """Lay the box around the mask over the whole map, for maps over the generated picture."""
    layers: tuple[str, ...] = ()
    """Globs of the layers to take; all by default."""
    context: str | None = None
    """As for `Trace.sel`."""
    branch: str | None = None
    """As for `Trace.sel`."""

    def select(self, trace: Trace) -> Trace:
        """The part of a trace that counts."""
        return trace.sel(context=self.context, branch=self.branch).sel(layer=self.layers or None)

    def key(self, trace: Trace) -> str:
        """Name of what a trace contributes: the same trace, steps and settings have the same one."""
        described = json.dumps([trace.manifest.id, trace.steps, asdict(self)], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:32]


def trace_statistics(path: str, settings: Settings, storage_options: Mapping[str, Any] | None) -> Arrays:
    """Maps, statistics of heads and scores of one trace, from one pass over its data.

    Raises
    ------
    AttraceError
        If the trace cannot be read, or has no map.
    """
    trace = settings.select(open_trace(path, storage_options=storage_options))
    maps = level_maps(trace, size=settings.size, groups=min(settings.groups, trace.steps), density=settings.density)
    directions = sorted({str(heat.attrs["direction"]) for heat in maps.values()})
    heads = {direction: _head_maps(trace, direction) for direction in directions}  # type: ignore[arg-type]
    # on one thread: traces are what runs at the same time, and the order of every sum stays the same
    maps, heads = dask.base.compute(maps, heads, scheduler="synchronous")
    mask = as_mask(_mask_of(trace), MASK) if MASK in trace.images else None
    arrays = _labels(trace)
    for name, heat in maps.items():
        heat = _with_every_label(heat, trace)
        aligned = settings.align and mask is not None and heat.attrs["direction"] == "r2g"
        arrays[name] = (_over_box(heat, mask) if aligned else heat).values  # type: ignore[arg-type]
    for direction, found in heads.items():
        arrays |= _statistics_of_heads(trace, found, direction, mask)
    if mask is not None and "ulam_r2g" in maps:
        card = score_map(maps["ulam_r2g"], mask)
        arrays |= {name: np.array(getattr(card, name)) for name in SCORES}
    return arrays


def _with_every_label(heat: xr.DataArray, trace: Trace) -> xr.DataArray:
    """A map of layers or heads with NaN for those that have no grid for its direction."""
    labels = {"layer": list(trace.layers), "head": list(trace.heads)}
    return heat.reindex({dim: values for dim, values in labels.items() if dim in heat.dims})


def _labels(trace: Trace) -> Arrays:
    return {"labels:layer": np.array(trace.layers), "labels:head": np.array(trace.heads)}


def _mask_of(trace: Trace) -> NDArray[np.bool_]:
    pixels: NDArray[Any] = trace.images[MASK].values
    return (pixels if pixels.ndim == 2 else pixels[..., 0]) > 127


def _head_maps(trace: Trace, direction: Direction) -> list[tuple[Any, Any]]:
    """For each class with a grid, its plan and the mean over steps: lazy (layer, head, cell)."""
    import dask.array as da

    found = []
    for plan in grid_plans(trace, direction, None, None):
        marginal = marginal_array(trace, plan.marginals, direction)
        found.append((plan, da.nanmean(marginal[..., plan.places], axis=0)))
    return found


def _statistics_of_heads(
    trace: Trace, found: list[tuple[Any, NDArray[Any]]], direction: str, mask: NDArray[np.float64] | None
) -> Arrays:
    """Entropy, mass inside the mask (layer, head), and agreement of the heads of a layer (layer); NaN where none."""
    layers, heads = list(trace.layers), list(trace.heads)
    of_heads = np.full((len(layers), len(heads)), np.nan)
    inside, alike = of_heads.copy(), np.full(len(layers), np.nan)
    for plan, values in found:
        selected = plan.marginals.selected
        rows = [layers.index(path) for path in selected.paths]
        place = np.ix_(rows, [heads.index(head) for head in selected.heads])
        maps = xr.DataArray(values.reshape(*values.shape[:2], *plan.grid), dims=("layer", "head", "row", "column"))
        of_heads[place] = entropy(maps)
        if maps.sizes["head"] > 1:
            alike[rows] = agreement(maps, "head")
        if mask is not None and direction == "r2g":
            inside[place] = mass(maps, mask)
    arrays = {f"entropy_{direction}": of_heads, f"agreement_{direction}": alike}
    return arrays | ({"inside_r2g": inside} if mask is not None and direction == "r2g" else {})


def _over_box(heat: xr.DataArray, mask: NDArray[np.float64]) -> xr.DataArray:
    """What lies in the box around a mask, stretched over the whole map (linear between cells)."""
    targets = {}
    for dim, covered in (("row", mask.max(axis=1)), ("column", mask.max(axis=0))):
        inside = np.flatnonzero(covered) / len(covered)
        first, length = inside[0], inside[-1] + 1 / len(covered) - inside[0]
        cells = heat.sizes[dim]
        centres = (first + (np.arange(cells) + 0.5) / cells * length) * cells - 0.5
        targets[dim] = xr.DataArray(np.clip(centres, 0, cells - 1), dims=dim)
    return heat.interp(targets)


def keep(arrays: Arrays, path: Path) -> None:
    """Write what a trace contributes, whole or not at all."""
    unfinished = path.with_suffix(".partial")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    unfinished.replace(path)


def read_kept(path: Path, name: str) -> Arrays:
    """One array that `keep` wrote, if it is there, and the labels."""
    with np.load(path, allow_pickle=False) as kept:
        wanted = [one for one in kept.files if one == name or one.startswith("labels:")]
        return {one: kept[one] for one in wanted}
