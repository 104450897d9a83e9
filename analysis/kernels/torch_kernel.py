"""The marginals of a site computed by torch, on a GPU or on the CPU. Imported only where a device is asked for.

Scores that stay within what one exponential holds in float32 take one for both directions, as the compiled kernel
does; others take two stabilised softmaxes in float64. All heads are computed together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attrace.analysis.kernels.values import Scores, SiteValues
from attrace.analysis.kernels.weighting import SAFE_SCORE, Weighting, suits
from attrace.schemas import InputError

TORCH_CPU: Final = "cpu-torch"
"""Name of torch's own CPU kernels, beside the names of torch's devices."""

BLOCK_SCORES: Final = 2**25
"""Scores of all heads that are on the device at once; more are made again for each pass over them."""


def find_device(name: str) -> torch.device:
    """The device of a name: `cuda`, `cuda:1`, or `cpu-torch`.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if name == TORCH_CPU:
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise InputError(f"device={name!r}: expected cuda, cuda:1 and so on, or {TORCH_CPU}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        raise InputError(
            f"device={name!r}: torch finds {found or 'no'} CUDA device{'s' if found > 1 else ''} here; name one that "
            "is there, or leave device out to compute on the CPU"
        )
    return torch.device(name)


@torch.no_grad()
def torch_marginals(
    values: SiteValues, row_logarithms: NDArray[Any] | None, weighting: Weighting, device: torch.device
) -> tuple[NDArray[Any], NDArray[Any]]:
    """R2G (head, query) and G2R (head, key), up to the scales of the weighting.

    Parameters
    ----------
    values
        Of all heads; float64 is computed in float64.
    row_logarithms
        (head, query): log of the sum over keys where that is known from elsewhere, less the scale of the bias.
    weighting
        How much queries and keys count.
    device
        As `find_device` gives it.
    """
    site = _Site(values, device)
    # a program may have allowed torch to multiply float32 in TF32 or less
    narrow = site.dtype != torch.float64 and torch.get_float32_matmul_precision() == "highest"
    if narrow and weighting.suits_one_shift() and suits(0.0, row_logarithms) and site.bound() <= SAFE_SCORE:
        return _one_exponential(site, row_logarithms, weighting)
    return _two_softmaxes(site, row_logarithms, weighting)


def _one_exponential(
    site: _Site, row_logarithms: NDArray[Any] | None, weighting: Weighting
) -> tuple[NDArray[Any], NDArray[Any]]:
    factors, of_queries = (site.tensor(one, torch.float32) for one in (weighting.key_factors, weighting.query_weights))
    known = None
    if row_logarithms is not None:
        sums = site.tensor(row_logarithms, torch.float64)
        known = torch.where(sums == -torch.inf, 0, torch.exp(-sums)).float()
    column_sums, used = site.zeros(), site.zeros()
    kept: list[Tensor] = []
    for place, block in site.blocks(torch.float32):
        exponentials = block.exp_()
        shares = _inverse(exponentials @ factors) if known is None else known[:, place]
        used += _over_queries(shares * of_queries[place], exponentials)
        column_sums += exponentials.sum(dim=1)
        if site.fits:
            kept.append(exponentials)
    shares = (site.tensor(weighting.key_weights, torch.float64) * _inverse(column_sums)).float()
    again = kept or (block.exp_() for _, block in site.blocks(torch.float32))
    r2g = torch.cat([_over_keys(block, shares) for block in again], dim=1)
    return _as_numpy(r2g), _as_numpy(torch.where(factors == 0, 0, used * factors))


def _two_softmaxes(
    site: _Site, row_logarithms: NDArray[Any] | None, weighting: Weighting
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each direction with shifts of its own and in float64: for scores of any size and spread."""
    wide = torch.float64
    bias, of_queries = site.tensor(weighting.bias, wide), site.tensor(weighting.query_weights, wide)
    known = None if row_logarithms is None else site.tensor(row_logarithms, wide)
    maxima = [block.amax(dim=1, keepdim=True) for _, block in site.blocks(wide)]
    column_shifts = _finite_or_zero(torch.cat(maxima, dim=1).amax(dim=1, keepdim=True))
    column_sums, used = site.zeros(), site.zeros()
    for place, block in site.blocks(wide):
        column_sums += torch.exp(block - column_shifts).sum(dim=1)
        block += bias
        row_shifts = _finite_or_zero(block.amax(dim=2)) if known is None else known[:, place]
        exponentials = block.sub_(row_shifts[:, :, None]).exp_()
        shares = _inverse(exponentials.sum(dim=2)) if known is None else (row_shifts != -torch.inf).to(wide)
        used += _over_queries(shares * of_queries[place], exponentials)
    shares = site.tensor(weighting.key_weights, wide) * _inverse(column_sums)
    r2g = [_over_keys(block.sub_(column_shifts).exp_(), shares) for _, block in site.blocks(wide)]
    return _as_numpy(torch.cat(r2g, dim=1)), _as_numpy(used)


class _Site:
    """Scores of all heads, without the bias, by blocks of queries. Stored values travel to the device as they are."""

    def __init__(self, values: SiteValues, device: torch.device) -> None:
        self._device = device
        self._right: Tensor | None = None
        if isinstance(values, Scores):
            self._left, self._scale = self._move(values.scores), 1.0
            keys = values.scores.shape[2]
        else:
            self._left, self._right, self._scale = self._move(values.query), self._move(values.key), values.scale
            keys = values.key.shape[1]
        self.dtype = self._left.dtype
        (heads, self._queries), self._sums = self._left.shape[:2], (self._left.shape[0], keys)
        self._step = max(1, BLOCK_SCORES // (heads * keys))
        self.fits = self._queries <= self._step
        """Whether one block holds all scores."""

    def bound(self) -> float:
        """A number that no score exceeds in magnitude; NaN or infinity where there is one."""
        if self._right is None:
            return float(self._left.abs().amax())
        norms = [torch.linalg.vector_norm(one.float(), dim=2).amax(dim=1) for one in (self._left, self._right)]
        return abs(self._scale) * float((norms[0] * norms[1]).amax())

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Blocks (head, query, key), each with its place along query; the caller may write into them."""
        left = self._left.to(dtype) * self._scale if self._right is not None else self._left
        right = None if self._right is None else self._right.to(dtype).transpose(1, 2)
        for start in range(0, self._queries, self._step):
            place = slice(start, min(start + self._step, self._queries))
            yield place, left[:, place].to(dtype, copy=True) if right is None else left[:, place] @ right

    def tensor(self, values: NDArray[Any], dtype: torch.dtype) -> Tensor:
        """Numbers on the device."""
        return self._move(values).to(dtype)

    def zeros(self) -> Tensor:
        """Room for sums: float64 (head, key)."""
        return torch.zeros(self._sums, dtype=torch.float64, device=self._device)

    def _move(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self._device)


def _over_queries(weights: Tensor, block: Tensor) -> Tensor:
    """Weighted (head, query) sum of a block (head, query, key) over its queries."""
    return torch.bmm(weights[:, None], block)[:, 0]


def _over_keys(block: Tensor, weights: Tensor) -> Tensor:
    """Weighted (head, key) sum of a block (head, query, key) over its keys."""
    return torch.bmm(block, weights[:, :, None])[:, :, 0]


def _inverse(sums: Tensor) -> Tensor:
    """1 / sums; 0 for a sum of 0, behind which every score is -inf."""
    return torch.where(sums == 0, 0, 1 / sums)


def _finite_or_zero(maxima: Tensor) -> Tensor:
    return torch.where(maxima == -torch.inf, 0, maxima)


def _as_numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array
