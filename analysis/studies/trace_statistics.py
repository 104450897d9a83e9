"""Statistics of one trace as a labelled dataset: what a study of many traces is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Final

import dask.array as da
import dask.base
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.maps.attribution import level_maps
from attrace.analysis.maps.marginals import marginal_array
from attrace.analysis.maps.masks import as_mask, trace_mask
from attrace.analysis.maps.plan import Size, grid_plans
from attrace.analysis.maps.weights import weights_of
from attrace.analysis.scores.measures import agreement, entropy, mass
from attrace.analysis.scores.trace_scores import BETTER, MASK_SCORES, score_maps, score_picture
from attrace.analysis.studies.engine import or_reason
from attrace.analysis.trace.trace import Trace, open_trace
from attrace.schemas import Direction
from attrace.schemas.words import DIRECTIONS

AVERAGED_SIZE: Final = (32, 32)
"""Rows and columns of the maps that are averaged over traces, whatever their grids."""


@dataclass(frozen=True)
class Settings:
    """What is computed for every trace."""

    size: Size | None = None
    """Rows and columns of every map; by default scores are of maps on the finest grid of the trace, and the maps that
    are averaged over traces of `AVERAGED_SIZE`."""
    groups: int = 5
    """Groups of steps of the time-level maps."""
    density: bool = True
    """As for `ulam`."""
    align: bool = False
    """Lay the box around the mask over the whole map, for maps over the generated picture."""
    layers: tuple[str, ...] = ()
    """Globs of the layers to take; all by default."""
    context: str | None = None
    """As for `Trace.sel`."""
    branch: str | None = None
    """As for `Trace.sel`."""
    weights: str | None = None
    """As for `ulam`: `effect`, or a file."""
    contribution: bool = False
    """As for `ulam`."""

    def select(self, trace: Trace) -> Trace:
        """The part of a trace that counts."""
        return trace.sel(context=self.context, branch=self.branch).sel(layer=self.layers or None)

    @property
    def map_name(self) -> str:
        """What the scored maps are: quantity, weighting and size."""
        size = "each on its finest grid" if self.size is None else "{} x {}".format(*self.size)
        weighting = "" if self.weights is None else f", weighted by {PurePath(self.weights).name}"
        quantity = "contribution, " if self.contribution else ""
        return f"{quantity}{'density' if self.density else 'plain weights'}{weighting}, {size}"

    def key(self, trace: Trace) -> str:
        """Name of the statistics of a trace: the same trace, steps and settings have the same one."""
        weights = None
        if self.weights is not None:
            weights = weights_of(chosen := self.select(trace), self.weights, chosen.classes)
        numbers = None if weights is None else weights.to_dict()
        described = json.dumps([trace.manifest.id, trace.steps, asdict(self), numbers], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:32]


@or_reason
def statistics_or_reason(path: str, settings: Settings, storage_options: Mapping[str, Any] | None) -> xr.Dataset:
    """Statistics of the trace at a path, or why there are none."""
    return trace_statistics(settings.select(open_trace(path, storage_options=storage_options)), settings)


def trace_statistics(trace: Trace, settings: Settings) -> xr.Dataset:
    """Maps, statistics of heads and scores of a trace, from one pass over its data.

    Returns
    -------
    xarray.Dataset
        Computed: `ulam`, `tlam`, `hlam` and `llam` (direction, [time_group, head or layer,] row, column); `entropy` and
        `inside` (direction, layer, head) and `agreement` (direction, layer) of the maps of single heads, on the grid of
        their layer; `scores` (score). NaN where a layer has no grid for a direction, or there is no mask.

    Raises
    ------
    AttraceError
        If the trace cannot be read, or has no map.
    """
    scored = _level_maps(trace, settings, settings.size)
    maps = scored if settings.size is not None else _level_maps(trace, settings, AVERAGED_SIZE)
    heads = {direction: maps_of_heads(trace, direction, [slice(None)]) for direction in maps}
    # on one thread: traces are what runs at the same time, and the order of every sum stays the same
    scored, maps, heads = dask.base.compute(scored, maps, heads, scheduler="synchronous")
    stored = trace_mask(trace)
    mask = None if stored is None else as_mask(stored, "mask")
    scores, datasets = _picture_scores(trace, mask), []
    for direction, levels in maps.items():
        inside = mask if direction == "r2g" else None
        of_maps = score_maps(scored[direction], inside)
        scores |= {
            name if name in MASK_SCORES else f"{name}_{direction}": float(of_maps[name])
            for name in BETTER
            if name in of_maps
        }
        if inside is not None and settings.align:
            levels = levels.map(_over_box, args=(inside,))
        of_heads = [statistics_of_heads(one.isel(time_group=0), inside) for one in heads[direction]]
        datasets.append(levels.merge(xr.concat(of_heads, "layer", join="outer"), join="outer"))
    dimension = xr.Variable("direction", list(maps))
    dataset: xr.Dataset = xr.concat(datasets, dimension, join="outer", combine_attrs="drop")
    labels = {"layer": list(trace.layers), "head": list(trace.heads)}
    dataset = dataset.reset_coords(drop=True).reindex(labels)
    dataset = dataset.assign_coords(time_group=np.arange(dataset.sizes["time_group"]), score=list(scores))
    return dataset.assign(scores=("score", np.array(list(scores.values()), np.float64)))


def _level_maps(trace: Trace, settings: Settings, size: Size | None) -> dict[Direction, xr.Dataset]:
    groups = min(settings.groups, trace.steps)
    tree = level_maps(
        trace,
        size=size,
        groups=groups,
        density=settings.density,
        weights=settings.weights,
        contribution=settings.contribution,
    )
    return {direction: tree[direction].to_dataset() for direction in DIRECTIONS if direction in tree.children}


def first_met(datasets: Iterable[xr.Dataset], dim: str) -> list[Any]:
    """Labels of a dimension of all datasets, in the order in which they are first met."""
    return list(dict.fromkeys(label for one in datasets for label in one[dim].values.tolist()))


def _picture_scores(trace: Trace, mask: NDArray[np.float64] | None) -> dict[str, float]:
    """PSNR and SSIM, where a trace holds a true picture of the shape of the generated one."""
    shapes = trace.image_shapes
    if not {"generated", "truth"} <= shapes.keys() or shapes["generated"] != shapes["truth"]:
        return {}
    return score_picture(trace, mask=mask)


def maps_of_heads(trace: Trace, direction: Direction, spans: Sequence[slice]) -> list[xr.DataArray]:
    """For each class with a grid the mean over groups of steps, lazily: (time_group, layer, head, row, column)."""
    found = []
    for plan in grid_plans(trace, direction):
        marginal = marginal_array(trace, plan.marginals, direction)[..., plan.patches]
        means = da.stack([da.nanmean(marginal[span], axis=0) for span in spans])
        maps = means.reshape(*means.shape[:3], *plan.grid)
        selected = plan.marginals.selected
        labels = {"layer": list(selected.paths), "head": list(selected.heads)}
        found.append(xr.DataArray(maps, labels, ("time_group", "layer", "head", "row", "column")))
    return found


def statistics_of_heads(maps: xr.DataArray, mask: NDArray[np.float64] | None) -> xr.Dataset:
    """Entropy of the map of each head, its mass inside the mask, and agreement of the heads of each layer."""
    of_heads = entropy(maps)
    none = of_heads.where(False)
    return xr.Dataset(
        {
            "entropy": of_heads,
            "inside": none if mask is None else mass(maps, mask),
            "agreement": agreement(maps, "head") if maps.sizes["head"] > 1 else none.isel(head=0, drop=True),
        }
    )


def _over_box(heat: xr.DataArray, mask: NDArray[np.float64]) -> xr.DataArray:
    """What lies in the box around a mask, stretched over the whole map (linear between patches)."""
    targets = {}
    for dim, covered in (("row", mask.max(axis=1)), ("column", mask.max(axis=0))):
        inside = np.flatnonzero(covered) / len(covered)
        first, length = inside[0], inside[-1] + 1 / len(covered) - inside[0]
        patches = heat.sizes[dim]
        centres = (first + (np.arange(patches) + 0.5) / patches * length) * patches - 0.5
        targets[dim] = xr.DataArray(np.clip(centres, 0, patches - 1), dims=dim)
    return heat.interp(targets).assign_coords(row=heat["row"], column=heat["column"])
