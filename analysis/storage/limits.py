"""What reading a trace may cost: limits against traces that were made to harm, which the environment can raise."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Self

from attrace.schemas import InputError, TraceFormatError


@dataclass(frozen=True)
class Limits:
    """The most that a reader takes from a trace; `ATTRACE_MAX_STEPS` and so on in the environment set others."""

    steps: int = 100_000
    """Length of an array along time."""
    sites: int = 10_000
    """Layers, in all classes together."""
    chunk_bytes: int = 2**29
    """Bytes of one decoded chunk, of one picture, and of one stored file or object but for metadata."""
    metadata_bytes: int = 2**24
    """Bytes of one `zarr.json`: the manifest and, consolidated, the metadata of every array."""
    metadata_values: int = 2**19
    """Numbers, texts, lists and members in one `zarr.json`: each takes far more memory than its bytes."""
    pictures: int = 1000
    """Pictures of a trace."""
    files: int = 2**19
    """Files of a trace that is packed or pulled, and (step, layer) that a trace says are finished."""
    expansion: int = 100
    """How many times its own size a packed trace may unpack to: packed traces are stored, not deflated."""

    @classmethod
    def from_environment(cls) -> Self:
        """The limits, with those that the environment sets.

        Raises
        ------
        InputError
            If it sets one to anything but a number above 0.
        """
        chosen = {}
        for one in fields(cls):
            name = variable(one.name)
            text = os.environ.get(name)
            if text is not None:
                if not text.isdecimal() or int(text) == 0:
                    raise InputError(f"{name}={text!r}: expected a number above 0")
                chosen[one.name] = int(text)
        return cls(**chosen)

    def check_file(self, name: str, size: int, *, where: object) -> None:
        """Refuse a stored file above its limit, by its name."""
        self.check("metadata_bytes" if name.endswith("zarr.json") else "chunk_bytes", size, f"{where}: {size} bytes")

    def check_document(self, content: bytes, *, where: object) -> None:
        """Refuse a `zarr.json` that would take far more memory than it has bytes, before it is parsed."""
        values = content.count(b",") + content.count(b"[") + content.count(b"{")
        self.check("metadata_values", values, f"{where}: {values} values")

    def check(self, limit: str, value: int, what: str) -> None:
        """Refuse more than a limit allows, such as `check("steps", 10**9, "run.zarr: 1000000000 steps")`.

        Raises
        ------
        TraceFormatError
            If it is more.
        """
        most = getattr(self, limit)
        if value > most:
            raise TraceFormatError(f"{what}, the limit is {most}: if you trust it, raise {variable(limit)}")


def variable(limit: str) -> str:
    """Name of the variable of the environment that sets a limit."""
    return f"ATTRACE_MAX_{limit.upper()}"
