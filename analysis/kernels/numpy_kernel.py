"""The passes over the scores of a head in NumPy: the same results as compiled, and the fallback for wide spreads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.kernels.values import Scores, SiteValues
from attrace.analysis.kernels.weighting import Weighting

KEPT_SCORES: Final = 2**24
"""Scores of one head that are kept between passes; more are made again, which bounds memory."""

_BLOCK_SCORES: Final = 2**17


class NumpyHead:
    """Scores of one head, without the bias, by blocks of queries; in float32, or in float64 for float64 values."""

    def __init__(self, values: SiteValues, head: int, least: type[np.floating[Any]] = np.float32) -> None:
        if isinstance(values, Scores):
            self.dtype = np.result_type(values.scores, least)
            self._left, self._right = values.scores[head], None
            self.keys = values.scores.shape[2]
        else:
            self.dtype = np.result_type(values.query, least)
            self._left = values.query[head].astype(self.dtype) * self.dtype.type(values.scale)
            self._right = values.key[head].astype(self.dtype).T
            self.keys = values.key.shape[1]

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Blocks (query, key), each with its place along query; the caller may write into them."""
        step = max(1, _BLOCK_SCORES // self.keys)
        for start in range(0, len(self._left), step):
            place = slice(start, start + step)
            left = self._left[place]
            yield place, left.astype(self.dtype) if self._right is None else left @ self._right

    def bound(self) -> float:
        """A number that no score exceeds in magnitude."""
        if self._right is None:
            return float(np.max([np.abs(block).max() for _, block in self.blocks()]))
        return float(_largest_norm(self._left) * _largest_norm(self._right.T))

    def maxima(self, bias: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Largest score of each key, and of each query with the bias (key) added."""
        maxima = [(block.max(axis=0), (block + bias).max(axis=1)) for _, block in self.blocks()]
        return np.max([columns for columns, _ in maxima], axis=0), np.concatenate([rows for _, rows in maxima])

    def one_exponential(
        self, shift: float, row_factors: NDArray[Any] | None, weighting: Weighting
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """R2G (query) and G2R (key) from exp(score - shift), up to the scales of the weighting."""
        factors = weighting.key_factors
        column_sums, used = np.zeros(self.keys), np.zeros(self.keys)
        kept: list[NDArray[Any]] = []
        for place, block in self.blocks():
            exponentials = _exponential(block, shift)
            shares = _inverse(exponentials @ factors) if row_factors is None else row_factors[place]
            used += (weighting.query_weights[place] * shares).astype(self.dtype) @ exponentials
            column_sums += exponentials.sum(axis=0)
            if len(self._left) * self.keys <= KEPT_SCORES:
                kept.append(exponentials)
        shares = (weighting.key_weights * _inverse(column_sums)).astype(self.dtype)
        again = kept or (_exponential(block, shift) for _, block in self.blocks())
        r2g = np.concatenate([block @ shares for block in again])
        return r2g, np.where(factors == 0, 0, used * factors).astype(self.dtype)

    def key_shares(
        self, bias: NDArray[Any], row_logarithms: NDArray[Any] | None, weights: NDArray[Any]
    ) -> NDArray[Any]:
        """Weighted sum over keys of the softmax over keys: (query)."""
        return np.concatenate([block @ weights for _, block in self.softmax_over_keys(bias, row_logarithms)])

    def add_softmax(self, bias: NDArray[Any], row_logarithms: NDArray[Any] | None, total: NDArray[np.float64]) -> None:
        """Adds the softmax over keys to `total` (query, key)."""
        for place, block in self.softmax_over_keys(bias, row_logarithms):
            total[place] += block

    def softmax_over_keys(
        self, bias: NDArray[Any], row_logarithms: NDArray[Any] | None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Blocks (query, key), each with its place; 0 in a row whose keys are all hidden."""
        for place, block in self.blocks():
            block += bias
            shifts = _finite_or_zero(block.max(axis=1)) if row_logarithms is None else row_logarithms[place]
            exponentials = _exponential(block, shifts[:, None].astype(self.dtype))
            if row_logarithms is None:
                exponentials *= _inverse(exponentials.sum(axis=1))[:, None]
            yield place, exponentials

    def softmax_over_queries(self, keys: slice) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Blocks (query, key) of some keys, each with its place; 0 in a column whose scores are all -inf."""
        maxima = np.max([block[:, keys].max(axis=0) for _, block in self.blocks()], axis=0)
        shifts = _finite_or_zero(maxima)
        sums = np.sum([_exponential(block[:, keys], shifts).sum(axis=0) for _, block in self.blocks()], axis=0)
        inverse = _inverse(sums)
        for place, block in self.blocks():
            yield place, _exponential(block[:, keys], shifts) * inverse


def two_stabilised_softmaxes(
    values: SiteValues, head: int, row_logarithms: NDArray[Any] | None, weighting: Weighting
) -> tuple[NDArray[Any], NDArray[Any]]:
    """As `one_exponential`, each direction with shifts of its own and in float64: for scores of any size and spread.

    `row_logarithms` (query) is the log of the sum over keys where that is known from elsewhere, on the scale of the
    weighting's bias.
    """
    scores = NumpyHead(values, head, np.float64)
    column_maxima, _ = scores.maxima(weighting.bias)
    column_shifts = _finite_or_zero(column_maxima)
    column_sums, g2r = np.zeros(scores.keys), np.zeros(scores.keys)
    for place, block in scores.blocks():
        biased = block + weighting.bias
        row_shifts = _finite_or_zero(biased.max(axis=1) if row_logarithms is None else row_logarithms[place])
        used = _exponential(biased, row_shifts[:, None])
        shares = _inverse(used.sum(axis=1)) if row_logarithms is None else row_logarithms[place] != -np.inf
        g2r += (weighting.query_weights[place] * shares) @ used
        column_sums += _exponential(block, column_shifts).sum(axis=0)
    shares = weighting.key_weights * _inverse(column_sums)
    r2g = np.concatenate([_exponential(block, column_shifts) @ shares for _, block in scores.blocks()])
    return r2g, g2r


def _exponential(block: NDArray[Any], shift: Any) -> NDArray[Any]:
    """exp(block - shift), in place."""
    block -= shift
    exponentials: NDArray[Any] = np.exp(block, out=block)
    return exponentials


def _inverse(sums: NDArray[Any]) -> NDArray[Any]:
    """1 / sums; 0 for a sum of 0, behind which every score is -inf."""
    inverse: NDArray[Any] = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums != 0)
    return inverse


def _finite_or_zero(maxima: NDArray[Any]) -> NDArray[Any]:
    return np.where(maxima == -np.inf, 0.0, maxima)


def _largest_norm(vectors: NDArray[Any]) -> Any:
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors).max())
