"""Bytes that the parts of a stored trace take on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrace.analysis import Trace


def stored_sizes(trace: Trace, groups: Collection[str]) -> dict[str, int] | None:
    """Bytes below each of some groups, and under `""` of all else; None where a server would have to list them."""
    files = trace.stored.files
    if files is None or not files.is_listed:
        return None
    sizes = Counter(dict.fromkeys([*groups, ""], 0))
    for name, size in files.sizes().items():
        sizes[next((group for group in groups if name.startswith(f"{group}/")), "")] += size
    return dict(sizes)
