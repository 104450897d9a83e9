"""Copies of tensors on the host, made without making the model wait for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class HostCopy:
    """A tensor's values on their way to the host."""

    tensor: Tensor
    """On the host; its values are only there once `ready` has happened."""
    ready: torch.cuda.Event | None = None
    """Recorded behind the copy; None where the values are there already."""

    @property
    def nbytes(self) -> int:
        """Bytes held on the host."""
        return self.tensor.nbytes

    def numpy(self) -> NDArray[Any]:
        """The values; waits for the copy. bfloat16, which NumPy does not have, becomes float32 (exact)."""
        if self.ready is not None:
            self.ready.synchronize()
        values: NDArray[Any] = (self.tensor.float() if self.tensor.dtype == torch.bfloat16 else self.tensor).numpy()
        return values


class HostCopier:
    """Starts copies to the host.

    Always a copy, also where the tensor is on the host: the model may change it in place later (LDM scales its
    queries so), and a view would keep the other half of a guided batch alive. A device tensor is first cloned on the
    model's own stream, which orders the clone before any such change; a side stream then moves the clone into pinned
    memory, and only the writer waits for that.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __call__(self, tensor: Tensor) -> HostCopy:
        """Copy a tensor as it is now."""
        snapshot = tensor.detach().clone(memory_format=torch.contiguous_format)
        if snapshot.device.type == "cpu":
            return HostCopy(snapshot)
        if snapshot.device.type != "cuda":
            return HostCopy(snapshot.cpu())
        return self._from_cuda(snapshot)

    def _from_cuda(self, snapshot: Tensor) -> HostCopy:
        device = snapshot.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        side = self._streams[device]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            host = torch.empty(snapshot.shape, dtype=snapshot.dtype, pin_memory=True)
            host.copy_(snapshot, non_blocking=True)
            ready = torch.cuda.Event(blocking=True)  # the writer sleeps, not spins, until then
            ready.record(side)
        # the allocator must not hand this memory out again before the side stream has read it
        snapshot.record_stream(side)
        return HostCopy(host, ready)
