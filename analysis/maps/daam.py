"""What the tool DAAM computes where that differs from the definition; `docs/method.md` explains each.

The code is github.com/castorini/daam. `daam.token_map(trace, word)` stands beside `token_map` of the definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import xarray as xr

from attrace.analysis.maps.levels import level_map
from attrace.analysis.maps.plan import Size, checked_size, finest_grid
from attrace.analysis.maps.tokens import (
    Tokens,
    as_token_map,
    checked_position,
    classes_on_grid,
    plain_text,
    runs_of_word,
    text_trace,
    token_plan,
)
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.trace import Trace
from attrace.schemas import InputError, Level, SiteClass

KEYS: Final = 77
"""It takes only layers with as many keys as CLIP has text tokens."""

LEFT_OUT_FACTOR: Final = 8
"""It leaves out layers of its smallest grid: the square root of the cells of its map over those of the layer, rounded
down, is this."""

SIDES: Final = {512: 64, 1024: 64}
"""Side of its map by the side of the picture that the denoiser is made for; 96 for any other."""

OTHER_SIDE: Final = 96

EPSILON: Final = 1e-6
"""Added to the sum over the words that a map is divided by."""

LATENT_FACTOR: Final = 8
"""Pixels of the picture in one cell of the latent, along each axis."""


def token_map(
    trace: Trace,
    tokens: Tokens,
    *,
    level: Level = "ulam",
    size: Size | None = None,
    layers: Layers = None,
    groups: int | None = None,
    group_size: int | None = None,
    grid: Size | None = None,
    normalise: bool = False,
) -> xr.DataArray:
    """Attribution map of text tokens as DAAM computes it.

    It takes layers of the down and up blocks with 77 keys, without those of its smallest grid, and the sum over steps
    in place of the mean; each token's maps are resized and clamped by themselves before the mean over tokens, on its
    64 x 64 or 96 x 96 by default. The tokens of a word count inside other words, too.

    Parameters
    ----------
    trace, tokens, level, size, layers, groups, group_size, grid
        As in `token_map` of the definition.
    normalise
        Divide by the sum of the maps of all words of the prompt plus 1e-6, as DAAM's `normalize=True`; one pass for
        each token of the prompt.

    Raises
    ------
    InputError
        As `token_map`, or if it takes none of the selected layers.
    SelectionError
        As `token_map`.
    """
    text = text_trace(trace)
    chosen = text if layers is None else text.sel(layer=layers)
    classes = [part for one in classes_on_grid(chosen, grid) if (part := _part_taken(chosen, one)) is not None]
    if not classes:
        raise InputError(
            f"trace {trace.path}: no selected layer has queries on a grid and {KEYS} keys, outside the middle block "
            "and DAAM's smallest grid"
        )
    shape = checked_size(size or grid or _default_size(text))

    def mean_of_tokens(positions: Mapping[str, Sequence[int]]) -> xr.DataArray:
        """The mean over tokens of the map of each by itself; every class has as many."""
        maps = []
        for number in range(len(next(iter(positions.values())))):
            plans = [token_plan(chosen, one, [positions[one.group][number]]) for one in classes]
            time: dict[str, Any] = {"groups": groups, "group_size": group_size}
            maps.append(level_map(chosen, level, plans, shape, over_steps="sum", **time))
        return xr.concat(maps, "token").mean("token").assign_attrs(maps[0].attrs)

    maps = mean_of_tokens({one.group: _positions(one.site_class, tokens) for one in classes})
    attributes = maps.attrs
    if normalise:
        words = {one.group: _words(one.site_class) for one in classes}
        count = len(next(iter(words.values())))
        maps = maps / (count * mean_of_tokens(words) + EPSILON)
    return as_token_map(maps.assign_attrs(attributes, compat="daam"), tokens)


def _positions(site_class: SiteClass, tokens: Tokens) -> list[int]:
    """Positions of tokens: also where the tokens of a word stand inside other words, without the padding."""
    positions: list[int] = []
    for token in [tokens] if isinstance(tokens, str | int) else tokens:
        if not isinstance(token, str):
            positions.append(checked_position(site_class, token))
            continue
        run = runs_of_word(site_class, token)[0]
        padding = sum(segment.count for segment in site_class.key_segments if segment.kind == "pad")
        spelled = [plain_text(text) for text in (site_class.tokens or ())][: site_class.keys - padding]
        wanted = [spelled[position] for position in run]
        for start in range(len(spelled) - len(wanted) + 1):
            if spelled[start : start + len(wanted)] == wanted:
                positions += range(start, start + len(wanted))
    return positions


def _words(site_class: SiteClass) -> range:
    """Positions of the words of the prompt: after the first token, before the one that ends it and the padding."""
    if site_class.tokens is None:
        raise InputError(f"normalise: the trace does not know how many words the tokens of {site_class.group} hold")
    words = sum(segment.count for segment in site_class.key_segments if segment.kind == "text")
    return range(1, words - 1)


def _part_taken(trace: Trace, selected: SelectedClass) -> SelectedClass | None:
    """The layers of a class that it takes: of the blocks down and up; None if it takes none."""
    site_class = selected.site_class
    factor = math.isqrt(_side(trace) ** 2 // site_class.queries)
    if site_class.keys != KEYS or factor == LEFT_OUT_FACTOR:
        return None
    layers = tuple(
        layer for layer, path in zip(selected.layers, selected.paths, strict=True) if "mid_block" not in path
    )
    return SelectedClass(site_class, layers, selected.heads) if layers else None


def _side(trace: Trace) -> int:
    """Rows and columns of its map, from the denoiser's `sample_size`, or the picture where that is not known."""
    cells = (trace.manifest.denoiser.config or {}).get("sample_size")
    if isinstance(cells, int):
        return SIDES.get(cells * LATENT_FACTOR, OTHER_SIDE)
    return SIDES.get(max(trace.manifest.image_size or (0,)), OTHER_SIDE)


def _default_size(trace: Trace) -> Size:
    """Its size of a map; the finest grid for a picture that is not square, which it refuses."""
    rows, columns = finest_grid(trace, "r2g")
    return (_side(trace),) * 2 if rows == columns else (rows, columns)
