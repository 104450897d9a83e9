"""Maps of text tokens over the generated picture, and finding words among tokens, whichever tokenizer cut them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import xarray as xr

from attrace.analysis.maps.levels import level_map
from attrace.analysis.maps.marginals import ATTRIBUTES, MarginalPlan
from attrace.analysis.maps.plan import GridPlan, Size, checked_size, finest_grid
from attrace.analysis.maps.weights import LayerWeights, weights_of
from attrace.analysis.trace.key_segments import key_slices
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.selection import Layers
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.schemas import InputError, Level, SelectionError, SiteClass

Tokens = str | int | Sequence[str | int]
"""Tokens by text, which may span several, or by position among the keys."""

_WORD_END: Final = "</w>"
_WORD_STARTS: Final = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")
_NEWLINE: Final = "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"
"""As tokenizers of bytes write it."""


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
    weights: LayerWeights = None,
) -> xr.DataArray:
    """Attribution map of text tokens: the softmax over keys of the chosen tokens, over the generated picture.

    Parameters
    ----------
    trace
        The trace; where its context is not text, its text context is taken.
    tokens
        A word or a phrase, such as `"dog"`, which may span several tokens; a position among the keys; or several of
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
    weights
        As in `attribution_map`.

    Returns
    -------
    xarray.DataArray
        (row, column), after the dimension that `level` keeps; lazy. It is the share of a patch's own attention, whose
        softmax runs over the keys: layers of all grids weigh alike.

    Raises
    ------
    InputError
        If the trace has no text context, its tokens are not known, no selected layer fits, or one has no weight.
    SelectionError
        If a word or position is not among the tokens, or `layers` names no layer.

    Notes
    -----
    Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", arXiv 2210.04885. What their tool
    computes otherwise is in `attrace.analysis.maps.daam`.
    """
    text = text_trace(trace)
    chosen = text if layers is None else text.sel(layer=layers)
    classes = classes_on_grid(chosen, grid)
    plans = [token_plan(chosen, one, token_positions(one.site_class, tokens)) for one in classes]
    shape = checked_size(size or grid or finest_grid(text, "r2g"))
    of_pairs = weights_of(chosen, weights, [plan.marginals.selected for plan in plans])
    maps = level_map(chosen, level, plans, shape, groups=groups, group_size=group_size, weights=of_pairs)
    return as_token_map(maps, tokens)


def as_token_map(maps: xr.DataArray, tokens: Tokens) -> xr.DataArray:
    """The map of a level of some tokens, with the name and attributes of a token map."""
    named: xr.DataArray = maps.rename("token_map")
    listed = [tokens] if isinstance(tokens, str | int) else list(tokens)
    return named.assign_attrs(tokens=listed, long_name=ATTRIBUTES["share"]["long_name"].partition(" (")[0])


def text_trace(trace: Trace) -> Trace:
    """The text context of a trace; an InputError where it has none."""
    require_trace(trace)
    if trace.context == "text":
        return trace
    if "text" not in trace.contexts:
        raise InputError(
            f"trace {trace.path} has no text context, it has {', '.join(trace.contexts) or 'none'}: record the text "
            "attention too, or use ulam and sram for the reference"
        )
    return trace.sel(context="text")


def classes_on_grid(trace: Trace, grid: Size | None) -> list[SelectedClass]:
    """The selected classes whose queries lie on a grid; on that one where it is given."""
    if trace.steps == 0:
        raise InputError(f"trace {trace.path} has no finished step yet: there is nothing to map")
    found = [one for one in trace.classes if one.site_class.query_grid is not None]
    if grid is not None:
        found = [one for one in found if one.site_class.query_grid == tuple(grid)]
    if not found:
        wanted = "a grid" if grid is None else f"a grid of {grid[0]} x {grid[1]}"
        raise InputError(f"trace {trace.path}: no selected layer has queries on {wanted}")
    return found


def token_plan(trace: Trace, selected: SelectedClass, positions: Sequence[int]) -> GridPlan:
    """The plan of the share that tokens have in every query of a class."""
    site_class = selected.site_class
    weights = np.zeros(site_class.keys)
    weights[list(positions)] = 1
    marginals = MarginalPlan(selected, trace.selected_steps, None, weights, ("share",))
    grid = site_class.query_grid or (1, site_class.queries)
    return GridPlan(marginals, "share", slice(0, site_class.queries), grid, np.ones(site_class.queries))


def token_positions(site_class: SiteClass, tokens: Tokens) -> list[int]:
    """Positions among the keys of a class that tokens stand for, in order.

    Every occurrence of a word counts. A word is found as a run of whole tokens that spell it; where the tokens mark
    the ends or starts of words, as those of CLIP and T5 do, as a run that begins and ends with a word.

    Raises
    ------
    InputError
        If a word is asked for and the tokens are not known.
    SelectionError
        If a word or position is not among them.
    """
    wanted = [tokens] if isinstance(tokens, str | int) else list(tokens)
    if not wanted:
        raise InputError("tokens: expected a word, a position among the keys, or several, found none")
    positions: set[int] = set()
    for token in wanted:
        if isinstance(token, str):
            positions.update(itertools.chain(*runs_of_word(site_class, token)))
        else:
            positions.add(checked_position(site_class, token))
    return sorted(positions)


def checked_position(site_class: SiteClass, position: int) -> int:
    """A position among the keys of a class; a SelectionError where it is none."""
    if not 0 <= position < site_class.keys:
        raise SelectionError(f"tokens: {site_class.group} has keys 0 to {site_class.keys - 1}, found {position}")
    return position


def runs_of_word(site_class: SiteClass, word: str) -> list[range]:
    """Positions of each run of whole tokens that spells a word or a phrase, without regard to case.

    Raises
    ------
    InputError
        If the tokens are not known.
    SelectionError
        If no run spells it.
    """
    if site_class.tokens is None:
        raise InputError(
            f"the trace does not know the tokens of {site_class.group}: give positions among the keys, such as "
            "tokens=[2]"
        )
    target = "".join(word.split()).casefold()
    found = [
        range(start + run.start, start + run.stop)
        for start, tokens in _texts(site_class, site_class.tokens)
        for run in _runs(tokens, target)
    ]
    if not found:
        known = list(dict.fromkeys(text for token in site_class.tokens if (text := plain_text(token))))
        raise SelectionError(
            f"{site_class.group} has no word {word!r} among its tokens: {' '.join(known[:40])}"
            + (" ..." if len(known) > 40 else "")
        )
    return found


def plain_text(token: str) -> str:
    """Text of a token without the marks of word edges."""
    return token.removesuffix(_WORD_END).strip("".join(_WORD_STARTS) + " ").casefold()


def _texts(site_class: SiteClass, tokens: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Position and tokens of each text: several tokenizers (Stable Diffusion 3) mark words in different ways."""
    starts = [0, *[keys.start for keys, segment in key_slices(site_class) if segment.kind == "text"][1:]]
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        yield start, tokens[start:end]


def _runs(tokens: Sequence[str], target: str) -> Iterator[range]:
    """Positions of the runs that spell the target."""
    spelled = [plain_text(token) for token in tokens]
    starts, ends = _word_edges(tokens)
    for start in sorted(starts):
        # the mark of a word's start is a token of its own where the word's first piece is none that starts a word
        if target and (spelled[start] or tokens[start] in _WORD_STARTS):
            run = _run_that_spells(spelled, start, target, ends)
            if run:
                yield run


def _run_that_spells(spelled: Sequence[str], start: int, target: str, ends: set[int]) -> range:
    """Positions of the tokens from `start` that together spell the target; empty where they do not."""
    text = ""
    for position in range(start, len(spelled)):
        text += spelled[position]
        if text == target and position in ends:
            return range(start, position + 1)
        if not target.startswith(text):
            break
    return range(0)


def _word_edges(tokens: Sequence[str]) -> tuple[set[int], set[int]]:
    """Positions of tokens that begin a word, and of those that end one; every token does where nothing is marked."""
    positions = range(len(tokens))
    if any(token.endswith(_WORD_END) for token in tokens):
        ends = {
            position
            for position in positions
            if tokens[position].endswith(_WORD_END) or tokens[position].startswith("<|")
        }
        return {0} | {position + 1 for position in ends if position + 1 < len(tokens)}, ends
    if not any(token.startswith(_WORD_STARTS) for token in tokens):
        return set(positions), set(positions)
    starts = {
        position for position in positions if position == 0 or _parts_words(tokens[position - 1], tokens[position])
    }
    return starts, {position - 1 for position in starts if position} | {len(tokens) - 1}


def _parts_words(before: str, token: str) -> bool:
    """Whether a word begins between two tokens of which only starts of words after a space are marked."""
    return token.startswith(_WORD_STARTS) or not _is_letter(token[:1]) or not _is_letter(before[-1:])


def _is_letter(character: str) -> bool:
    return (character.isalnum() and character != _NEWLINE) or character in _WORD_STARTS
