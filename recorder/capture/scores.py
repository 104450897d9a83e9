"""Scores of captured queries and keys, and the log of their sum, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from attrace.recorder.capture.projections import Projections

_BLOCK_BYTES = 64 * 2**20
"""Of scores that are formed at once, in float64, to sum over them."""


def form_scores(query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The scores, scale * q.k + mask, in float32 at least: (row, head, query, key)."""
    # a run that allows TF32 for its matrix products must not lower the precision of what is recorded of it
    exact = torch.get_float32_matmul_precision() == "highest" and query.dtype != torch.float64
    compute = torch.float32 if exact else torch.float64
    stored = torch.float64 if query.dtype == torch.float64 else torch.float32
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        scores = torch.matmul(query.to(compute), key.to(compute).transpose(-1, -2)) * scale
        if mask is not None:
            scores = scores + mask.to(compute)
        return scores.to(stored)


def row_log_sum_exp(projections: Projections) -> Tensor:
    """The log of the sum of exp(s) over the keys: (row, head, query), in the precision that scores are formed in.

    Taken over blocks of queries, so that no more than `_BLOCK_BYTES` of scores (or one query's) are in memory at once.
    """
    query, key, mask = projections.query, projections.key, projections.mask
    rows, heads, queries, _ = query.shape
    block = max(1, _BLOCK_BYTES // (8 * rows * heads * key.shape[2]))
    if mask is not None:
        mask = additive(mask)
    sums = []
    for start in range(0, queries, block):
        part = slice(start, start + block)
        hidden = mask if mask is None or mask.shape[2] == 1 else mask[:, :, part]
        sums.append(form_scores(query[:, :, part], key, projections.scale, hidden).logsumexp(-1))
    return torch.cat(sums, dim=-1)


def additive(mask: Tensor) -> Tensor:
    """The mask as float that is added to scores: -inf where a boolean mask hides."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
