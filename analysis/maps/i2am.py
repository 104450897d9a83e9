"""What the published code of I2AM computes where that differs from the definition; `docs/method.md` explains each.

The code is github.com/qkrwnstj306/I2AM, which maps StableVITON.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from attrace.analysis.maps.resize import resize
from attrace.analysis.trace.trace import Trace
from attrace.analysis.trace.weights import as_mask
from attrace.schemas import Direction, InputError, Level
from attrace.schemas.words import DIRECTIONS

Compat = Literal["i2am"] | None
"""Whose code is followed where that differs from the definition."""

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
_MIDDLE: Final = ("middle_block", "mid_block")


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
            f"trace {trace.path}: compat='i2am' takes {wanted} for {direction}, and none is selected; layers= names "
            "others for the same formula"
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
    attribution: xr.DataArray, *, size: tuple[int, int] | None = None, mask: ArrayLike | None = None
) -> xr.DataArray:
    """The values that the published code draws and scores, without its colours.

    Parameters
    ----------
    attribution
        (row, column) and any other dimensions, with the attribute `direction`; lazy or not. Those of
        `ulam(trace, compat="i2am")` and the like give the published numbers.
    size
        Rows and columns of the picture; by default those of the map.
    mask
        (row, column) over the reference: a `g2r` map is multiplied by it first, as the code does.

    Returns
    -------
    xarray.DataArray
        In [0, 1]: the map times the mask (resized, bicubic), scaled by its least and largest value, resized to the
        picture (bicubic), scaled again, turned round for `r2g` (1 - map), values up to 0.4 set to 0.

    Raises
    ------
    InputError
        If the map has no row and column or no direction, or the mask is none.
    """
    direction = attribution.attrs.get("direction")
    if direction not in DIRECTIONS:
        raise InputError(
            f"compat='i2am' needs the direction of the map: its attribute 'direction' is {direction!r}, expected r2g "
            "or g2r"
        )
    if not {"row", "column"} <= set(attribution.dims):
        raise InputError(f"expected a map with the dims row and column, found {attribution.dims}")
    grid = (attribution.sizes["row"], attribution.sizes["column"])
    covered = None if mask is None or direction == "r2g" else resize(as_mask(mask, "mask"), grid)
    shown: xr.DataArray = xr.apply_ufunc(
        _shown,
        attribution,
        kwargs={"covered": covered, "size": size or grid, "turned": direction == "r2g"},
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
    return shown.rename(attribution.name).assign_attrs(attribution.attrs, units="1", compat="i2am")


def _flow_block(path: str) -> int | None:
    found = _FLOW_BLOCK.search(path)
    return None if found is None else int(found[1])


def _shown(
    maps: NDArray[Any], *, covered: NDArray[np.float64] | None, size: tuple[int, int], turned: bool
) -> NDArray[np.float64]:
    values = maps.astype(np.float64) if covered is None else maps * covered
    scaled = _scaled(resize(_scaled(values), size))
    scaled = 1 - scaled if turned else scaled
    shown: NDArray[np.float64] = np.where(scaled <= THRESHOLD, 0, scaled)
    return shown


def _scaled(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
    scaled: NDArray[np.float64] = (maps - low) / (high - low + EPSILON)
    return scaled
