"""One call of the denoiser at a time, and no layer outside of its calls."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from attrace.recorder.capture.sites import Candidate, remove_all
from attrace.schemas import CaptureError


class CallGuard:
    """Tells whether a call of the denoiser may be recorded, and whether it is called at all.

    Parameters
    ----------
    denoiser
        The network.
    candidates
        Its attention calls that are to be recorded.
    """

    def __init__(self, denoiser: nn.Module, candidates: Iterable[Candidate]) -> None:
        self._denoiser = denoiser
        self._paths = {one.module: one.path for one in candidates}
        self._lock = threading.Lock()
        self._thread: int | None = None
        """The one whose call holds the lock."""
        self.was_called = False
        """Whether a call was begun."""
        self._called_outside: set[nn.Module] = set()
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Watch for layers that run outside of a call of the denoiser."""
        self._handles += [module.register_forward_pre_hook(self._notice) for module in self._paths]

    def detach(self) -> None:
        """Watch no longer."""
        remove_all(self._handles)

    def enter(self) -> None:
        """Begin a call.

        Raises
        ------
        CaptureError
            If another one is under way.
        """
        if not self._lock.acquire(blocking=False):
            raise CaptureError(
                "the denoiser was called while a call of it was under way (in another thread, or in itself): a "
                "recording follows one run"
            )
        self._thread, self.was_called = threading.get_ident(), True

    @property
    def is_nested(self) -> bool:
        """The call that is under way is this thread's."""
        return self._thread == threading.get_ident()

    def leave(self) -> bool:
        """End a call; False if it is not the one that was begun."""
        if not self.is_nested:
            return False
        self._thread = None
        self._lock.release()
        return True

    def _notice(self, module: nn.Module, _args: Any) -> None:
        if self.was_called:
            return
        if module in self._called_outside:  # a second step: it is no preparation of the first
            raise CaptureError(
                f"{self._paths[module]} attends, but {type(self._denoiser).__name__} is not called: what runs its "
                "layers is another method or module. Pass that module (the U-Net), or profile= with its path as "
                "denoiser"
            )
        self._called_outside.add(module)
