"""Labels of layers: module paths, globs over them, and the short labels that figures and tables print."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from attrace.schemas.errors import SelectionError


def find_layers(label: str, known: Collection[str]) -> list[str]:
    """Known module paths that a label names: a path, a glob such as `up_blocks.*`, or a short label; none is no error.

    Raises
    ------
    SelectionError
        If the label is short for several paths.

    Examples
    --------
    >>> find_layers("up.2.0", ["down.0.attentions.1.attn2", "up.2.attentions.0.attn2"])
    ['up.2.attentions.0.attn2']
    """
    if label in known:
        return [label]
    found = [path for path in known if fnmatchcase(path, label)]
    if found:
        return found
    found = [path for path in known if _is_short_for(label, path)]
    if len(found) > 1:
        raise SelectionError(f"layer {label!r} may be {' or '.join(found)}: give more of its path, or a glob for all")
    return found


def short_labels(paths: Sequence[str]) -> list[str]:
    """Labels of layers: their module paths without the words that all of them share, apart from the first word.

    Examples
    --------
    >>> short_labels(["down.0.attentions.1.attn2", "up.2.attentions.0.attn2"])
    ['down.0.1', 'up.2.0']
    """
    shared = shared_words(paths)
    return [_without(path, shared) for path in paths]


def shared_words(paths: Sequence[str]) -> tuple[str, ...]:
    """Words that `short_labels` leaves out, in their order; none where a label could then name two of the paths.

    Examples
    --------
    >>> shared_words(["down.0.attentions.1.attn2", "up.2.attentions.0.attn2"])
    ('attentions', 'attn2')
    """
    if len(paths) < 2:
        return ()
    first, *others = (path.split(".")[1:] for path in paths)
    shared = tuple(
        dict.fromkeys(word for word in first if not word.isdigit() and all(word in other for other in others))
    )
    short = {_without(path, shared): path for path in paths}
    alike: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        alike.setdefault(_numbers(path), []).append(path)
    clear = all(
        [other for other in alike[_numbers(path)] if _is_short_for(label, other)] == [path]
        for label, path in short.items()
    )
    return shared if clear and len(short) == len(set(paths)) else ()


def _without(path: str, words: Collection[str]) -> str:
    first, *rest = path.split(".")
    return ".".join([first, *(word for word in rest if word not in words)])


def _is_short_for(label: str, path: str) -> bool:
    """Whether a label is the path with words left out of it, but neither the first one nor a number."""
    if _numbers(label) != _numbers(path):
        return False
    words = iter(path.split("."))
    return all(word in words for word in label.split("."))


def _numbers(path: str) -> tuple[str, ...]:
    """The first word of a path, and the numbers in it."""
    first, *rest = path.split(".")
    return first, *(word for word in rest if word.isdigit())
