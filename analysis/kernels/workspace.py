"""What a pass keeps from step to step: memory, as fresh memory costs a tenth of a pass, and keys that do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Workspace:
    """Arrays of one thread, by name."""

    def __init__(self) -> None:
        self.key: NDArray[Any] | None = None
        """The keys whose panels are in here."""
        self.key_norms: list[float] = []
        """The largest norm of a key, for each head."""
        self._arrays: dict[str, NDArray[np.float32]] = {}

    def array(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A float32 array of that shape and any content; the same one as before where the shape is the same."""
        found = self._arrays.get(name)
        if found is None or found.shape != shape:
            found = self._arrays[name] = np.empty(shape, np.float32)
        return found
