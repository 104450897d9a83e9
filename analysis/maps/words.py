"""Finding words among the tokens of a prompt, whichever tokenizer cut them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from attrace.schemas import InputError, SelectionError, SiteClass

_WORD_END: Final = "</w>"
_WORD_STARTS: Final = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")
_NEWLINE: Final = "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"
"""As tokenizers of bytes write it."""


def runs_of_word(site_class: SiteClass, word: str) -> list[range]:
    """Places of each run of whole tokens that spells a word or a phrase, without regard to case.

    Raises
    ------
    InputError
        If the tokens are not known.
    SelectionError
        If no run spells it.
    """
    if site_class.tokens is None:
        raise InputError(
            f"the trace does not know the tokens of {site_class.group}: give places among the keys, such as tokens=[2]"
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
    """Place and tokens of each text: those of several tokenizers (Stable Diffusion 3) mark words in different ways."""
    starts, place = [], 0
    for segment in site_class.key_segments:
        if segment.kind == "text":
            starts.append(place)
        place += segment.count
    starts = [0, *starts[1:]]
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        yield start, tokens[start:end]


def _runs(tokens: Sequence[str], target: str) -> Iterator[range]:
    """Places of the runs that spell the target."""
    spelled = [plain_text(token) for token in tokens]
    starts, ends = _word_edges(tokens)
    for start in sorted(starts):
        # the mark of a word's start is a token of its own where the word's first piece is none that starts a word
        if target and (spelled[start] or tokens[start] in _WORD_STARTS):
            run = _run_that_spells(spelled, start, target, ends)
            if run:
                yield run


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


def _word_edges(tokens: Sequence[str]) -> tuple[set[int], set[int]]:
    """Places of tokens that begin a word, and of those that end one; every token does where nothing is marked."""
    places = range(len(tokens))
    if any(token.endswith(_WORD_END) for token in tokens):
        ends = {place for place in places if tokens[place].endswith(_WORD_END) or tokens[place].startswith("<|")}
        return {0} | {place + 1 for place in ends if place + 1 < len(tokens)}, ends
    if not any(token.startswith(_WORD_STARTS) for token in tokens):
        return set(places), set(places)
    starts = {place for place in places if place == 0 or _parts_words(tokens[place - 1], tokens[place])}
    return starts, {place - 1 for place in starts if place} | {len(tokens) - 1}


def _parts_words(before: str, token: str) -> bool:
    """Whether a word begins between two tokens of which only starts of words after a space are marked."""
    return token.startswith(_WORD_STARTS) or not _is_letter(token[:1]) or not _is_letter(before[-1:])


def _is_letter(character: str) -> bool:
    return (character.isalnum() and character != _NEWLINE) or character in _WORD_STARTS
