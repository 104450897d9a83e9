"""Maps of text tokens over the generated picture, as DAAM draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import xarray as xr

from attrace.analysis.level_map import level_map
from attrace.analysis.marginals import ATTRIBUTES, MarginalPlan
from attrace.analysis.plans import GridPlan, Size, checked_size, finest_grid
from attrace.analysis.time_groups import time_group_coordinates, time_groups
from attrace.analysis.trace import Layers, Trace
from attrace.schemas import InputError, Level, SelectionError, SiteClass

Tokens = str | int | Sequence[str | int]
"""Tokens by text, which may span several, or by place among the keys."""

DAAM_KEYS: Final = 77
"""DAAM takes only layers with as many keys as CLIP has text tokens."""

DAAM_LEFT_OUT_FACTOR: Final = 8
"""DAAM leaves out layers whose grid is the latent's divided by this."""

LATENT_FACTOR: Final = 8
"""Pixels of the picture in one cell of the latent, along each axis."""

_WORD_END: Final = "</w>"
_WORD_STARTS: Final = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")


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
        `daam`: as the tool DAAM does it: only layers with 77 keys, without those at an eighth of the latent's grid;
        the sum over steps in place of the mean; at the latent's size by default.

    Returns
    -------
    xarray.DataArray
        (row, column), after the dimension that `level` keeps; lazy.

    Raises
    ------
    InputError
        If the trace has no text context, its tokens are not known, or no selected layer fits.
    SelectionError
        If a word or place is not among the tokens, or `layers` names no layer.

    Notes
    -----
    Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", arXiv 2210.04885.
    """
    text = _text_trace(trace)
    chosen = text if layers is None else text.sel(layer=layers)
    if chosen.steps == 0:
        raise InputError(f"trace {trace.path} has no finished step yet: there is nothing to map")
    plans = _plans(chosen, tokens, grid, compat)
    latent = _latent_grid(text)
    if size is None:
        size = grid or (latent if compat == "daam" else finest_grid(text, "r2g"))
    size = checked_size(size)
    spans = time_groups(chosen, groups, group_size) if level == "tlam" else [slice(0, chosen.steps)]
    maps = level_map(chosen, level, plans, size, spans)
    attributes = maps.attrs
    if level == "tlam":
        maps = maps.assign_coords(time_group_coordinates(chosen, spans))
    if compat == "daam":
        steps = xr.DataArray([span.stop - span.start for span in spans], dims="time_group")
        maps = maps * (steps if level == "tlam" else steps.item())
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
        places.update(_places_of_word(site_class, token) if isinstance(token, str) else _place(site_class, token))
    return sorted(places)


def _place(site_class: SiteClass, place: int) -> list[int]:
    if not 0 <= place < site_class.keys:
        raise SelectionError(f"tokens: {site_class.group} has keys 0 to {site_class.keys - 1}, found {place}")
    return [place]


def _places_of_word(site_class: SiteClass, word: str) -> list[int]:
    if site_class.tokens is None:
        raise InputError(
            f"the trace does not know the tokens of {site_class.group}: give places among the keys, such as tokens=[2]"
        )
    spelled = [_plain(token) for token in site_class.tokens]
    starts, ends = _word_edges(site_class.tokens)
    target = "".join(word.split()).casefold()
    found = {
        place
        for start in starts
        if target and spelled[start]
        for place in _run_that_spells(spelled, start, target, ends)
    }
    if not found:
        known = list(dict.fromkeys(token for token in spelled if token))
        raise SelectionError(
            f"{site_class.group} has no word {word!r} among its tokens: {' '.join(known[:40])}"
            + (" ..." if len(known) > 40 else "")
        )
    return sorted(found)


def _run_that_spells(spelled: Sequence[str], start: int, target: str, ends: set[int]) -> range:
    """Places of the tokens from `start` that together spell the target; empty where they do not."""
    text = ""
    for place in range(start, len(spelled)):
        text += spelled[place]
        if text == target and place in ends:
            return range(start, place + 1)
        if not target.startswith(text):
            break
    return range(0)


def _plain(token: str) -> str:
    """Text of a token without the marks of word edges."""
    return token.removesuffix(_WORD_END).strip("".join(_WORD_STARTS) + " ").casefold()


def _word_edges(tokens: Sequence[str]) -> tuple[set[int], set[int]]:
    """Places of tokens that begin a word, and of those that end one; every token does where nothing is marked."""
    places = range(len(tokens))
    if any(token.endswith(_WORD_END) for token in tokens):
        ends = {place for place in places if tokens[place].endswith(_WORD_END) or tokens[place].startswith("<|")}
        return {0} | {place + 1 for place in ends if place + 1 < len(tokens)}, ends
    starts = {place for place in places if tokens[place].startswith((*_WORD_STARTS, "<"))}
    if not any(tokens[place].startswith(_WORD_STARTS) for place in starts):
        return set(places), set(places)
    starts |= {0}
    return starts, {place - 1 for place in starts if place} | {len(tokens) - 1}


def _text_trace(trace: Trace) -> Trace:
    if trace.context == "text":
        return trace
    if "text" not in trace.contexts:
        raise InputError(
            f"trace {trace.path} has no text context, it has {', '.join(trace.contexts) or 'none'}: record the text "
            "attention too, or use ulam and sram for the reference"
        )
    return trace.sel(context="text")


def _plans(trace: Trace, tokens: Tokens, grid: Size | None, compat: str | None) -> list[GridPlan]:
    plans = []
    for selected in trace.classes:
        site_class = selected.site_class
        if site_class.query_grid is None or (compat == "daam" and not _daam_takes(site_class, _latent_grid(trace))):
            continue
        if grid is not None and site_class.query_grid != tuple(grid):
            continue
        weights = np.zeros(site_class.keys)
        weights[token_places(site_class, tokens)] = 1
        everything = np.ones(site_class.queries)
        marginals = MarginalPlan(selected, trace.step_places, None, weights, ("share",))
        plans.append(GridPlan(marginals, "share", slice(0, site_class.queries), site_class.query_grid, everything))
    if not plans:
        wanted = f"{DAAM_KEYS} keys and a grid above an eighth of the latent's" if compat else "queries on a grid"
        if grid is not None:
            wanted = f"queries on a grid of {grid[0]} x {grid[1]}"
        raise InputError(f"trace {trace.path}: no selected layer has {wanted}")
    return plans


def _daam_takes(site_class: SiteClass, latent: Size) -> bool:
    factor = round(math.sqrt(latent[0] * latent[1] / site_class.queries))
    return site_class.keys == DAAM_KEYS and factor != DAAM_LEFT_OUT_FACTOR


def _latent_grid(trace: Trace) -> Size:
    """Grid of the latent: an eighth of the picture, or the finest grid where the picture's size is not known."""
    size = trace.manifest.image_size
    return finest_grid(trace, "r2g") if size is None else (size[0] // LATENT_FACTOR, size[1] // LATENT_FACTOR)
