"""The log-sum-exp that torch's fused attention forms anyway: seen, not computed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.scores import row_log_sum_exp
from attrace.recorder.capture.sites import Candidate

_KERNELS: Final = frozenset(
    getattr(torch.ops.aten, name).default
    for name in ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu")
    if hasattr(torch.ops.aten, name)
)
"""Those whose second result is log of the sum of exp(s): (row, head, query), float32, whether or not it is trained."""

_COMPARED_QUERIES: Final = 8
_TOLERANCE: Final = 1e-3
"""Of a logarithm: kernels differ by less than a tenth of it, another layout or base by much more."""


class KernelSums(TorchDispatchMode):
    """Sees what the fused kernel of one `scaled_dot_product_attention` returns, while it is entered.

    The call stays as it is: torch chooses the kernel and calls it with the same arguments.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lse: Tensor | None = None
        """(row, head, query); None where a kernel was chosen that forms none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _KERNELS:
            self.lse = result[1]
        return result


class TrustedSums:
    """Gives a kernel's sums to the calls of a site once they were seen to be right there.

    Looking at values makes the model wait for the device, so it is done in the first call of each site alone.
    """

    def __init__(self) -> None:
        self._right: dict[Candidate, bool] = {}

    def add(self, candidate: Candidate, projections: Projections, lse: Tensor | None) -> Projections:
        """The projections of all rows, queries and keys of a call with what its kernel returned, if that is right."""
        if lse is None or lse.shape != projections.query.shape[:3]:
            return projections
        if candidate not in self._right:
            self._right[candidate] = _is_right(projections, lse)
        return replace(projections, kernel_lse=lse) if self._right[candidate] else projections


def _is_right(projections: Projections, lse: Tensor) -> bool:
    some = slice(None, None, max(1, lse.shape[2] // _COMPARED_QUERIES))
    expected = row_log_sum_exp(projections.of_queries(some))
    return torch.allclose(lse[:, :, some].to(expected), expected, rtol=_TOLERANCE, atol=_TOLERANCE)
