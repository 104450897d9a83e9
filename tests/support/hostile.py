"""Metadata that was made to harm, and how much memory a program takes on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

NESTED: Final[dict[str, Callable[[], str]]] = {
    "lists": lambda: "[" + "[]," * 20_000_000 + "[]]",
    "numbers": lambda: "[" + "1," * 25_000_000 + "1]",
    "members": lambda: "{" + ",".join(f'"{number}":0' for number in range(2_000_000)) + "}",
    "depth": lambda: "[" * 5_000_000 + "]" * 5_000_000,
}
"""Texts of some 20 to 60 MB that compress to some kilobytes, made when they are needed."""

PEAK = """
def peak():
    # getrusage counts the process that started this one, too
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
"""
"""Source of a function: the most MiB of memory that the process had."""


def with_more(document: str, nested: str) -> str:
    """The text of a `zarr.json` with one member more among its attributes."""
    return document.replace('"attributes":', f'"attributes": {{"more": {nested}}}, "was":', 1)
