"""Selections by label: layers, numbers and names, and the error for a label that names nothing."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from operator import index
from typing import SupportsIndex

import numpy as np

from attrace.schemas import SelectionError
from attrace.schemas.checks import require_type
from attrace.schemas.layers import find_layers

Layers = str | Collection[str] | None
"""Layers by label: a module path, a glob such as `up_blocks.*`, a short label such as `up_blocks.1.1.0`, or several;
None for all."""

Numbers = int | slice | Iterable[int] | None
"""Steps by call number, or heads by number: one, several, or a slice with both ends included; None for all."""


def match_layers(layers: str | Collection[str], known: Collection[str], where: str) -> tuple[str, ...]:
    """The known module paths that labels name, in the order of the known ones.

    Raises
    ------
    SelectionError
        If a label names none of them, or is short for several.
    """
    expected = "a module path, a glob, a label such as up_blocks.1.1.0, or several of them"
    require_type(layers, (str, Collection), "layer", expected)
    matched: set[str] = set()
    for label in [layers] if isinstance(layers, str) else layers:
        require_type(label, str, "layer", expected)
        found = find_layers(label, known)
        if not found:
            raise SelectionError(no_such("layer", label, known, where))
        matched.update(found)
    return tuple(path for path in known if path in matched)


def pick_numbers(labels: int | slice | Iterable[int], known: tuple[int, ...], what: str, where: str) -> tuple[int, ...]:
    """The known numbers that labels name, in the order of the known ones."""
    expected = "a number, several of them, or a slice of them with both ends included"
    if isinstance(labels, slice):
        for end in (labels.start, labels.stop, labels.step):
            require_type(end, SupportsIndex | None, what, expected)
        start, stop = (-np.inf if labels.start is None else labels.start), labels.stop
        inside = [label for label in known if label >= start and (stop is None or label <= stop)]
        picked = inside[:: labels.step]
        if not picked:
            raise SelectionError(no_such(what, f"{labels.start}:{labels.stop}", known, where))
        return tuple(picked)
    wanted = set()
    for label in [labels] if isinstance(labels, str) or not isinstance(labels, Iterable) else labels:
        require_type(label, SupportsIndex, what, expected)
        wanted.add(index(label))
    for label in sorted(wanted - set(known)):
        raise SelectionError(no_such(what, label, known, where))
    return tuple(label for label in known if label in wanted)


def require_label(label: object, known: Collection[object], what: str, where: str) -> None:
    """Refuse a label that is not among the known ones."""
    if label not in known:
        raise SelectionError(no_such(what, label, known, where))


def no_such(what: str, label: object, known: Collection[object], where: str) -> str:
    """Message for a label that names nothing, with the known labels and the nearest ones."""
    names = [str(one) for one in known]
    close = difflib.get_close_matches(str(label), names, n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(close)}?" if close else ""
    listed = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    return f"trace {where} has no {what} {label!r} among what is selected: it has {listed or 'none'}{guess}"
