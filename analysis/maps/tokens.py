"""Maps of text tokens over the generated picture, as DAAM draws them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import xarray as xr

from attrace.analysis.maps import daam
from attrace.analysis.maps.level_map import level_map
from attrace.analysis.maps.marginals import ATTRIBUTES, MarginalPlan
from attrace.analysis.maps.plans import GridPlan, Size, checked_size, finest_grid
from attrace.analysis.maps.time_groups import time_group_coordinates, time_groups
from attrace.analysis.maps.words import plain_text, runs_of_word
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.schemas import InputError, Level, SelectionError, SiteClass
from attrace.schemas.checks import require_choice
from attrace.schemas.words import LEVELS

Tokens = str | int | Sequence[str | int]
"""Tokens by text, which may span several, or by place among the keys."""


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
    compat: Literal["daam"] | None = None,
    normalise: bool = False,
) -> xr.DataArray:
    """Attribution map of text tokens: the softmax over keys of the chosen tokens, over the generated picture.

    Parameters
    ----------
    trace
        The trace; where its context is not text, its text context is taken.
    tokens
        A word or a phrase, such as `"dog"`, which may span several tokens; a place among the keys; or several of
        them. Of several tokens the mean is taken. Words are compared without regard to case.
    level
        What is averaged, as for the maps of the same names.
    size, layers
        As in `ulam`.
    groups, group_size
        As in `tlam`.
    grid
        Only layers whose queries lie on this grid (rows, columns), which is then the size by default: what
        Prompt-to-Prompt averages and shows (Hertz et al., arXiv 2208.01626), `grid=(16, 16)` in its figures.
    compat
        `daam`: as the tool DAAM does it: layers of the down and up blocks with 77 keys, without those of its smallest
        grid; the sum over steps in place of the mean; each token's maps resized and clamped by themselves before the
        mean over tokens; on its 64 x 64 or 96 x 96 by default. The tokens of a word count inside other words, too.
    normalise
        With `daam`: divide by the sum of the maps of all words of the prompt plus 1e-6, as DAAM's `normalize=True`;
        one pass for each token of the prompt.

    Returns
    -------
    xarray.DataArray
        (row, column), after the dimension that `level` keeps; lazy.

    Raises
    ------
    InputError
        If the trace has no text context, its tokens are not known, no selected layer fits, or `normalise` is asked
        for without `daam`.
    SelectionError
        If a word or place is not among the tokens, or `layers` names no layer.

    Notes
    -----
    Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", arXiv 2210.04885.
    """
    require_trace(trace)
    require_choice(level, LEVELS, "level")
    require_choice(compat, (None, "daam"), "compat")
    text = _text_trace(trace)
    chosen = text if layers is None else text.sel(layer=layers)
    if chosen.steps == 0:
        raise InputError(f"trace {trace.path} has no finished step yet: there is nothing to map")
    if normalise and compat != "daam":
        raise InputError("normalise: it is DAAM's, use it with compat='daam'")
    selected = _selected(chosen, grid, compat)
    if size is None:
        size = grid or (daam.default_size(text) if compat == "daam" else finest_grid(text, "r2g"))
    shape = checked_size(size)
    spans = time_groups(chosen, groups, group_size) if level == "tlam" else [slice(0, chosen.steps)]

    def shares_of(places: Mapping[str, Sequence[int]]) -> xr.DataArray:
        plans = [_plan(chosen, one, places[one.group], total=compat == "daam") for one in selected]
        return level_map(chosen, level, plans, shape, spans)

    find = _daam_places if compat == "daam" else token_places
    by_class = {one.group: find(one.site_class, tokens) for one in selected}
    if compat == "daam":
        maps = _mean_of_tokens(shares_of, by_class)
        if normalise:
            words = {one.group: list(daam.word_places(one.site_class)) for one in selected}
            count = len(next(iter(words.values())))
            maps = maps / (count * _mean_of_tokens(shares_of, words) + daam.EPSILON)
    else:
        maps = shares_of(by_class)
    attributes = maps.attrs
    if level == "tlam":
        maps = maps.assign_coords(time_group_coordinates(chosen, spans))
    return maps.rename("token_map").assign_attrs(
        attributes,
        tokens=[tokens] if isinstance(tokens, str | int) else list(tokens),
        long_name=ATTRIBUTES["share"]["long_name"].partition(" (")[0],
        compat=compat or "none",
    )


def token_places(site_class: SiteClass, tokens: Tokens) -> list[int]:
    """Places among the keys of a class that tokens stand for, in order.

    Every occurrence of a word counts. A word is found as a run of whole tokens that spell it; where the tokens mark
    the ends or starts of words, as those of CLIP and T5 do, as a run that begins and ends with a word.

    Raises
    ------
    InputError
        If a word is asked for and the tokens are not known.
    SelectionError
        If a word or place is not among them.
    """
    wanted = [tokens] if isinstance(tokens, str | int) else list(tokens)
    if not wanted:
        raise InputError("tokens: expected a word, a place among the keys, or several, found none")
    places: set[int] = set()
    for token in wanted:
        places.update(
            itertools.chain(*runs_of_word(site_class, token)) if isinstance(token, str) else _place(site_class, token)
        )
    return sorted(places)


def _daam_places(site_class: SiteClass, tokens: Tokens) -> list[int]:
    """Places as DAAM finds them: also where the tokens of a word stand inside other words, without the padding."""
    places: list[int] = []
    for token in [tokens] if isinstance(tokens, str | int) else tokens:
        if not isinstance(token, str):
            places += _place(site_class, token)
            continue
        run = runs_of_word(site_class, token)[0]
        padding = sum(segment.count for segment in site_class.key_segments if segment.kind == "pad")
        spelled = [plain_text(text) for text in (site_class.tokens or ())][: site_class.keys - padding]
        wanted = [spelled[place] for place in run]
        for start in range(len(spelled) - len(wanted) + 1):
            if spelled[start : start + len(wanted)] == wanted:
                places += range(start, start + len(wanted))
    return places


def _place(site_class: SiteClass, place: int) -> list[int]:
    if not 0 <= place < site_class.keys:
        raise SelectionError(f"tokens: {site_class.group} has keys 0 to {site_class.keys - 1}, found {place}")
    return [place]


def _text_trace(trace: Trace) -> Trace:
    if trace.context == "text":
        return trace
    if "text" not in trace.contexts:
        raise InputError(
            f"trace {trace.path} has no text context, it has {', '.join(trace.contexts) or 'none'}: record the text "
            "attention too, or use ulam and sram for the reference"
        )
    return trace.sel(context="text")


def _selected(trace: Trace, grid: Size | None, compat: str | None) -> list[SelectedClass]:
    """The selected classes, and the layers of them, that a map takes."""
    found = [one for one in trace.classes if one.site_class.query_grid is not None]
    if grid is not None:
        found = [one for one in found if one.site_class.query_grid == tuple(grid)]
    if compat == "daam":
        found = [part for one in found if (part := daam.taken(trace, one)) is not None]
    if not found:
        wanted = f"queries on a grid of {grid[0]} x {grid[1]}" if grid is not None else "queries on a grid"
        if compat == "daam":
            wanted += f" and {daam.KEYS} keys, outside the middle block and DAAM's smallest grid"
        raise InputError(f"trace {trace.path}: no selected layer has {wanted}")
    return found


def _plan(trace: Trace, selected: SelectedClass, places: Sequence[int], *, total: bool) -> GridPlan:
    """The share of tokens, by their places, in every query of a class."""
    site_class = selected.site_class
    grid = site_class.query_grid or (1, site_class.queries)
    weights = np.zeros(site_class.keys)
    weights[list(places)] = 1
    marginals = MarginalPlan(selected, trace.step_places, None, weights, ("share",))
    everything = np.ones(site_class.queries)
    return GridPlan(marginals, "share", slice(0, site_class.queries), grid, everything, total)


def _mean_of_tokens(
    shares_of: Callable[[Mapping[str, Sequence[int]]], xr.DataArray], places: Mapping[str, Sequence[int]]
) -> xr.DataArray:
    """The mean over tokens of the map of each by itself; every class has the same places."""
    common = next(iter(places.values()))
    maps = [shares_of({group: [place] for group in places}) for place in common]
    return xr.concat(maps, "token").mean("token").assign_attrs(maps[0].attrs)
