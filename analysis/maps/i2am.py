"""What the published code of I2AM computes where that differs from the definition; `docs/method.md` explains each.

The code is github.com/qkrwnstj306/I2AM, which maps StableVITON, and github.com/qkrwnstj306/viton-step-1 (v2), which
maps the paper's custom model. The functions have the names of those that follow the definition: `i2am.ulam(trace)`,
`i2am.sram(trace, at)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.kernels.resize import resize
from attrace.analysis.maps.attribution import described, possible_directions, tree_of_maps
from attrace.analysis.maps.levels import level_map, require_map
from attrace.analysis.maps.masks import Keys, Queries, as_mask
from attrace.analysis.maps.plan import GridPlan, Size, checked_size, finest, finest_grid, grid_plans
from attrace.analysis.maps.sram import At, as_sram, chosen_patches
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.analysis.trace.traces import Traces, map_each
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.checks import require_choice
from attrace.schemas.words import DIRECTIONS, LEVELS

Code = Literal["stableviton", "viton-step-1"]
"""Whose published code is followed."""

THRESHOLD: Final = 0.4
"""Scaled values up to this become 0."""

EPSILON: Final = 1e-8
"""Added to the spread that a map is divided by."""

FLOW_BLOCKS: Final[dict[Level, tuple[int, ...]]] = {
    "ulam": (4,),
    "tlam": (3, 4, 5),
    "hlam": (4,),
    "llam": tuple(range(9)),
}
"""Blocks `warp_flow_blks` that a G2R map of a level takes; `llam`, which the code does not have, takes all of them."""

_FLOW_BLOCK: Final = re.compile(r"(?:^|\.)warp_flow_blks\.(\d+)\.")
_MIDDLE: Final = ("middle_block", "mid_block", "bottleneck")


def attribution_map(
    trace: Trace | Traces,
    level: Level,
    *,
    direction: Direction = "r2g",
    size: Size | None = None,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
    groups: int | None = None,
    group_size: int | None = None,
) -> xr.DataArray:
    """Attribution map as the published code computes it: its layers, all keys for `r2g`, the sum over the steps.

    Parameters, result and errors are those of `attribution_map` of the definition. `layers`, or a selection of layers
    of the trace, takes the place of the code's choice. By default a map has the finest grid of its direction, a `g2r`
    map that of the layers that it takes.
    """
    if isinstance(trace, Traces):
        options = {"level": level, "direction": direction, "layers": layers, "queries": queries, "keys": keys}
        options |= {"groups": groups, "group_size": group_size}
        sizes = (_default_size(direction, *_planned(one, level, direction)) for one in trace)
        return map_each(trace, attribution_map, finest(sizes) if size is None else checked_size(size), options)
    chosen, plans = _planned(trace, level, direction, layers, queries, keys)
    shape = _default_size(direction, chosen, plans) if size is None else checked_size(size)
    maps = level_map(chosen, level, plans, shape, groups=groups, group_size=group_size, over_steps="sum")
    return described(maps, direction, {"normalisation": "none", "compat": "i2am"})


ulam = partial(attribution_map, level="ulam")
tlam = partial(attribution_map, level="tlam")
hlam = partial(attribution_map, level="hlam")
llam = partial(attribution_map, level="llam")


def sram(
    trace: Trace,
    at: At,
    *,
    level: Level = "ulam",
    size: Size | None = None,
    layers: Layers = None,
    groups: int | None = None,
    group_size: int | None = None,
) -> xr.DataArray:
    """Attribution map of chosen generated patches as published: a map over the reference.

    A mask chooses the patches whose first pixel lies inside it, each whole; a pixel and a box choose by area.
    """
    chosen = chosen_patches(trace, at)
    if np.ndim(at) == 2:
        selected, _ = _planned(trace, level, "g2r", layers)
        grid = max(grid for one in selected.classes if (grid := one.site_class.query_grid))
        chosen = sampled(chosen, grid)
    options: dict[str, Any] = {"size": size, "layers": layers, "groups": groups, "group_size": group_size}
    return as_sram(attribution_map(trace, level, direction="g2r", queries=chosen, **options))


def level_maps(
    trace: Trace,
    *,
    levels: Iterable[Level] = LEVELS,
    directions: Iterable[Direction] | None = None,
    groups: int | None = None,
    size: Size | None = None,
) -> xr.DataTree:
    """Maps of several levels and directions, lazily: a child for each direction, whose variables are the levels.

    All levels of a direction have one size: by default that of the unified map.
    """

    def make(level: Level, direction: Direction) -> xr.DataArray:
        shape = size or _default_size(direction, *_planned(trace, "ulam", direction))
        of_groups = groups if level == "tlam" else None
        return attribution_map(trace, level, direction=direction, size=shape, groups=of_groups)

    return tree_of_maps(make, levels, mappable_directions(trace) if directions is None else directions)


def mappable_directions(trace: Trace) -> tuple[Direction, ...]:
    """The directions that have a map; an InputError with the reasons where there is none."""
    return possible_directions(lambda direction: _planned(trace, "ulam", direction))


def scored_map(trace: Trace, direction: Direction, code: Code, inside: Queries = None) -> xr.DataArray | None:
    """The unified map that a published code scores; None where it has none for the direction.

    That of `viton-step-1` is of the layers outside the middle block in both directions, and its `g2r` map of the
    queries `inside` the mask over the generated picture.
    """
    try:
        if code == "stableviton":
            return ulam(trace, direction=direction)
        layers = [path for path in trace.layers if not any(middle in path for middle in _MIDDLE)]
        return ulam(trace, direction=direction, layers=layers, queries=inside if direction == "g2r" else None)
    except InputError:
        return None


def published_layers(trace: Trace, direction: Direction, level: Level) -> Trace:
    """The trace with the layers selected that the published code takes.

    `r2g`: every cross-attention layer outside the middle block, of the picture as one vector where the trace has that
    context (StableVITON's), without `warp_flow_blks`. `g2r`: those of `warp_flow_blks` in `FLOW_BLOCKS`.

    Raises
    ------
    InputError
        If it has none of them.
    """
    if direction == "g2r":
        chosen = [path for path in trace.layers if _flow_block(path) in FLOW_BLOCKS[level]]
    else:
        if any(_flow_block(path) is not None for path in trace.layers) and "image-prompt" in trace.contexts:
            trace = trace.sel(context="image-prompt")
        chosen = [
            path for path in trace.layers if _flow_block(path) is None and not any(middle in path for middle in _MIDDLE)
        ]
    if not chosen:
        blocks = ", ".join(map(str, FLOW_BLOCKS[level]))
        wanted = f"warp_flow_blks {blocks} of StableVITON" if direction == "g2r" else "layers outside the middle block"
        raise InputError(
            f"trace {trace.path}: the published code of I2AM takes {wanted} for {direction}, and none is selected; "
            "layers= names others for the same formula"
        )
    return trace.sel(layer=chosen)


def sampled(mask: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.float64]:
    """A mask (row, column) on a grid, as the published code chooses patches: 1 where the nearest pixel is not 0.

    Raises
    ------
    InputError
        If that chooses nothing.
    """
    rows, columns = (np.arange(cells) * length // cells for cells, length in zip(grid, mask.shape, strict=True))
    chosen = (mask[np.ix_(rows, columns)] > 0).astype(np.float64)
    if not chosen.any():
        raise InputError(f"at: no patch of {grid[0]} x {grid[1]} has its first pixel inside the mask")
    return chosen


def as_published(
    attribution: xr.DataArray,
    *,
    code: Code = "stableviton",
    size: tuple[int, int] | None = None,
    mask: ArrayLike | None = None,
) -> xr.DataArray:
    """The values that the published code draws and scores, without its colours.

    Parameters
    ----------
    attribution
        (row, column) and any other dimensions, with the attribute `direction`; lazy or not. Those of `i2am.ulam(trace)`
        and the like give the published numbers.
    code
        `stableviton` inverts an `r2g` map and multiplies a `g2r` map by the mask first; `viton-step-1` does neither.
    size
        Rows and columns of the picture; by default those of the map.
    mask
        (row, column) over the reference.

    Returns
    -------
    xarray.DataArray
        In [0, 1]: the map (times the mask, resized) scaled by its least and largest value, resized to the picture
        (bicubic), scaled again, inverted (1 - map) or not, values up to 0.4 set to 0.

    Raises
    ------
    InputError
        If the map has no row and column or no direction, the mask is none, or there is no such code.
    """
    require_map(attribution)
    direction = attribution.attrs.get("direction")
    require_choice(code, get_args(Code), "code")
    if direction not in DIRECTIONS:
        raise InputError(
            "the published values depend on the direction of the map: its attribute 'direction' is "
            f"{direction!r}, expected r2g or g2r"
        )
    grid = (attribution.sizes["row"], attribution.sizes["column"])
    multiplied = mask is not None and direction == "g2r" and code == "stableviton"
    covered = resize(as_mask(mask, "mask"), grid) if multiplied else None  # type: ignore[arg-type]
    shown: xr.DataArray = xr.apply_ufunc(
        _shown,
        attribution,
        kwargs={
            "covered": covered,
            "size": size or grid,
            "inverted": direction == "r2g" and code == "stableviton",
        },
        input_core_dims=[["row", "column"]],
        output_core_dims=[["row", "column"]],
        exclude_dims={"row", "column"},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={
            "allow_rechunk": True,
            "output_sizes": dict(zip(("row", "column"), size or grid, strict=True)),
        },
    )
    return shown.rename(attribution.name).assign_attrs(attribution.attrs, units="1", compat=code)


def _planned(
    trace: Trace,
    level: Level,
    direction: Direction,
    layers: Layers = None,
    queries: Queries = None,
    keys: Keys = None,
) -> tuple[Trace, list[GridPlan]]:
    """The trace with the layers of a map selected, and the plans of their classes."""
    require_trace(trace)
    require_choice(level, LEVELS, "level")
    chosen = trace if layers is None else trace.sel(layer=layers)
    if chosen.selected_paths is None:
        chosen = published_layers(trace, direction, level)
    keys = "all" if keys is None and direction == "r2g" else keys
    return chosen, grid_plans(chosen, direction, queries=queries, keys=keys, density=False)


def _default_size(direction: Direction, trace: Trace, plans: Iterable[GridPlan]) -> Size:
    return finest_grid(trace, direction) if direction == "r2g" else finest(plan.grid for plan in plans)


def _flow_block(path: str) -> int | None:
    found = _FLOW_BLOCK.search(path)
    return None if found is None else int(found[1])


def _shown(
    maps: NDArray[Any], *, covered: NDArray[np.float64] | None, size: tuple[int, int], inverted: bool
) -> NDArray[np.float64]:
    values = maps.astype(np.float64) if covered is None else maps * covered
    scaled = _scaled(resize(_scaled(values), size))
    scaled = 1 - scaled if inverted else scaled
    shown: NDArray[np.float64] = np.where(scaled <= THRESHOLD, 0, scaled)
    return shown


def _scaled(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
    scaled: NDArray[np.float64] = (maps - low) / (high - low + EPSILON)
    return scaled
