"""The projection that makes a module's output of what its attention adds up."""

from __future__ import annotations

from torch import Tensor, nn

from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import Candidate
from attrace.schemas import CaptureError


def output_weights(candidate: Candidate, projections: Projections) -> Tensor:
    """Weights of the output projection of an attention call whose values were seen: (head, feature, channel).

    Raises
    ------
    CaptureError
        If they are not found, or do not fit the values; with the reason.
    """
    key, value = projections.key, projections.value
    if key.shape[2] == 1:
        raise CaptureError("values: a single key gives every patch the same")
    if value is None:
        raise CaptureError("values: they were not seen to be what attention adds up")
    if value.shape != key.shape:
        raise CaptureError("values: they are not as long as the keys")
    found = getattr(candidate.module, "to_out", None)
    if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
        found = found[0]  # dropout comes after it
    if not isinstance(found, nn.Linear):
        raise CaptureError("values: no output projection (a Linear as to_out, or first in it) was found")
    weight, inner = found.weight.detach(), value.shape[1] * value.shape[3]
    if weight.is_meta or not weight.is_floating_point() or weight.ndim != 2 or weight.shape[1] != inner:
        raise CaptureError(
            f"values: expected an output projection with weights (channel, {inner}), found {weight.dtype} of shape "
            f"{tuple(weight.shape)}{' that are not loaded' if weight.is_meta else ''}"
        )
    by_head: Tensor = weight.T.unflatten(0, (value.shape[1], value.shape[3]))
    return by_head
