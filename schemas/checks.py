"""Checks of arguments, for the functions that a user calls: one sentence for a value of the wrong type or of no use."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attrace.schemas.errors import InputError, InputTypeError


def require_type(value: object, kind: Any, what: str, expected: str) -> None:
    """Refuse a value that is not of a type, or of one of several.

    Raises
    ------
    InputTypeError
        It names `what` the value is, what was `expected`, and what was found.
    """
    if not isinstance(value, kind):
        raise InputTypeError(f"{what}: expected {expected}, found the {type(value).__name__} {_shortened(value)}")


def require_choice(value: object, choices: Collection[str | None], what: str) -> None:
    """Refuse a value that is not one of the choices.

    Raises
    ------
    InputError
        It lists the choices.
    """
    if value not in choices:
        *others, last = map(str, choices)
        raise InputError(f"{what}: expected {', '.join(others)} or {last}, found {_shortened(value)}")


def _shortened(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}\N{HORIZONTAL ELLIPSIS}"
