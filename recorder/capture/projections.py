"""What is captured of an attention call, and the hooks that capture it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attrace.recorder.capture.sites import Candidate


@dataclass(frozen=True)
class Projections:
    """The queries, keys and values of one attention call, as the model computed with them."""

    query: Tensor
    """(row, head, query, feature); the rows are those of the batch."""
    key: Tensor
    """(row, head, key, feature)."""
    scale: float
    """s = scale * q.k (+ mask)."""
    mask: Tensor | None
    """Broadcasts to (row, head, query, key): bool, True where a key may be attended to, or added to s."""
    is_self: bool
    """The keys, or the first of them, are made from what the queries are made from."""
    lse: Tensor | None = None
    """(row, head, query): log of the sum of exp(s) over all keys that the model saw, where these are some of them."""
    kernel_lse: Tensor | None = None
    """The same where these are all of them, as the attention kernel formed it; None if it gave none."""
    value: Tensor | None = None
    """(row, head, key, feature); None where they were not seen."""

    def of_rows(self, rows: slice) -> Projections:
        """Some rows of the batch."""
        mask = self.mask if self.mask is None or self.mask.shape[0] == 1 else self.mask[rows]
        sums = None if self.kernel_lse is None else self.kernel_lse[rows].detach()
        query, key = self.query[rows].detach(), self.key[rows].detach()
        value = None if self.value is None else self.value[rows].detach()
        return replace(self, query=query, key=key, mask=mask, kernel_lse=sums, value=value)

    def of_queries(self, queries: slice) -> Projections:
        """Some of the queries."""
        mask = self.mask if self.mask is None or self.mask.shape[2] == 1 else self.mask[:, :, queries]
        sums = None if self.kernel_lse is None else self.kernel_lse[:, :, queries]
        return replace(self, query=self.query[:, :, queries], mask=mask, kernel_lse=sums)

    def of_keys(self, keys: slice, lse: Tensor) -> Projections:
        """Some of the keys, with the log-sum-exp over all of them."""
        mask = self.mask if self.mask is None or self.mask.shape[3] == 1 else self.mask[..., keys]
        value = None if self.value is None else self.value[:, :, keys]
        return replace(self, key=self.key[:, :, keys], mask=mask, lse=lse, kernel_lse=None, value=value)


def is_beginning(queries: object, keys: object) -> bool:
    """Whether keys are made of the very tensor that queries are made of, or of one that begins with it."""
    if queries is keys:
        return queries is not None
    if not isinstance(queries, Tensor) or not isinstance(keys, Tensor) or queries.ndim != 3 or keys.ndim != 3:
        return False
    tokens = queries.shape[1]
    if keys.shape[1] <= tokens or keys.shape[::2] != queries.shape[::2]:
        return False
    return bool((keys[:, :tokens] == queries).all())


Deliver = Callable[[Candidate, Projections], None]
"""Takes what was captured of one attention call, while the model waits."""


Fail = Callable[[Exception], None]
"""Takes what a hook raised, and decides what that means for the user's run: it may raise."""


def raise_error(error: Exception) -> None:
    """Let what a hook raised stop the run."""
    raise error


class _Watcher(Protocol):
    def fail(self, error: Exception) -> None: ...


def fails_softly(method: Callable[..., None]) -> Callable[..., None]:
    """Hand what a hook raises to its recording."""

    @wraps(method)
    def guarded(self: _Watcher, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.fail(error)

    return guarded


class ModuleHooks:
    """Hooks by module, for both ways."""

    def __init__(self, deliver: Deliver, is_active: Callable[[], bool], fail: Fail = raise_error) -> None:
        self._deliver = deliver
        self._is_active = is_active
        self._fail = fail
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}

    def detach(self, module: nn.Module | None = None) -> None:
        """Stop watching a module, or all."""
        for one in [module] if module is not None else list(self._handles):
            for handle in self._handles.pop(one, []):
                handle.remove()
