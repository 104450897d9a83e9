"""Seeing the calls of diffusers' attention dispatcher, whichever backend computes them.

Since 0.35 diffusers sends most attention through `dispatch_attention_fn`, which looks its backend up in a table. Some
backends call `scaled_dot_product_attention`, others (flex, flash, sage, xformers) do not, so the table itself is
watched: while something is recorded, its entries are wrapped.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any, Protocol

from torch import Tensor

from attrace.schemas import CaptureError


class DispatchWatcher(Protocol):
    """Takes the dispatcher's calls while the module that it watches runs."""

    def take_dispatched(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool, scale: float | None
    ) -> None:
        """Take a call; its tensors are (row, token, head, feature)."""

    def fail(self, error: Exception) -> None:
        """Take what goes wrong."""

    def computing(self) -> Any:
        """A context manager around the backend's own work, whose calls are not taken again."""


class _Running(threading.local):
    """The watchers of the modules that run in this thread, innermost last."""

    def __init__(self) -> None:
        self.watchers: list[DispatchWatcher] = []
        self.censuses: list[DispatchWatcher] = []
        """See every call, beside the module's own watcher, in the first step of their denoisers."""


running = _Running()
"""A model may run in another thread at the same time: its calls are nobody's business here."""


class _WatchedTable:
    """The dispatcher's table; wrapped as long as anyone wants it, so that recordings may overlap in any order."""

    def __init__(self) -> None:
        self._users = 0
        self._originals: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Wrap every backend, for the first user."""
        with self._lock:
            self._users += 1
            table = _backends()
            if self._users == 1 and table is not None:
                self._originals = dict(table)
                table.update({name: _watched(backend) for name, backend in self._originals.items()})

    def release(self) -> None:
        """Put every backend back, after the last user."""
        with self._lock:
            self._users -= 1
            table = _backends()
            if self._users == 0 and table is not None:
                table.update(self._originals)
                self._originals = {}


table = _WatchedTable()


def _backends() -> dict[Any, Callable[..., Any]] | None:
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    except ImportError:  # an older diffusers, which has no dispatcher
        return None
    backends: dict[Any, Callable[..., Any]] = _AttentionBackendRegistry._backends
    return backends


def _watched(backend: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(backend)

    @wraps(backend)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not running.watchers and not running.censuses:
            return backend(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        with ExitStack() as computing:
            for census in running.censuses:
                _hand_over(census, given, computing)
            if running.watchers:
                _hand_over_seen(running.watchers[-1], given, computing)
            return backend(*args, **kwargs)

    return call


def _hand_over(watcher: DispatchWatcher, given: dict[str, Any], computing: ExitStack) -> None:
    watcher.take_dispatched(
        given["query"],
        given["key"],
        given["value"],
        given.get("attn_mask"),
        is_causal=bool(given.get("is_causal")),
        scale=given.get("scale"),
    )
    computing.enter_context(watcher.computing())


def _hand_over_seen(watcher: DispatchWatcher, given: dict[str, Any], computing: ExitStack) -> None:
    try:
        _refuse_unseen(given)
    except CaptureError as error:
        watcher.fail(error)
    else:
        _hand_over(watcher, given, computing)


def _refuse_unseen(given: dict[str, Any]) -> None:
    mask = given.get("attn_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise CaptureError(
            f"an attention mask of type {type(mask).__name__} cannot be recorded: expected a tensor; choose another "
            "attention backend"
        )
    if given.get("_parallel_config") is not None:
        raise CaptureError("attention that is shared out over several devices cannot be recorded: turn it off")
