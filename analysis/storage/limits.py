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
    metadata_bytes: int = 2**26
    """Bytes of one `zarr.json`: the manifest and, consolidated, the metadata of every array."""
    entries: int = 2**21
    """Files in a packed trace or in one that is pulled, and (step, layer) that a trace says are finished."""
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

    def of_file(self, key: str) -> int:
        """Most bytes of a stored file or object, by its key."""
        return self.metadata_bytes if key.endswith("zarr.json") else self.chunk_bytes

    def check_file(self, key: str, size: int, where: object) -> None:
        """Refuse a stored file or object above its limit.

        Raises
        ------
        TraceFormatError
            If it is above it.
        """
        if size > self.of_file(key):
            raise TraceFormatError(
                f"{where} has {size} bytes, the limit is {self.of_file(key)}: if you trust it, raise "
                f"{variable('metadata_bytes' if key.endswith('zarr.json') else 'chunk_bytes')}"
            )

    def check_cells(self, steps: int, sites: int, where: object) -> None:
        """Refuse a trace that says that it holds more than anybody stores.

        Raises
        ------
        TraceFormatError
            If it has more finished (step, layer) than a packed trace may have files.
        """
        if steps * sites > self.entries:
            raise TraceFormatError(
                f"{where} says that {steps} steps of {sites} layers are finished, the limit is {self.entries} in all: "
                f"if you trust it, raise {variable('entries')}"
            )


def variable(limit: str) -> str:
    """Name of the variable of the environment that sets a limit."""
    return f"ATTRACE_MAX_{limit.upper()}"
