"""How much each key moves what a layer gives to each query, from attention, values and output weights.

With u[n, j] = (v[n, j] - mean over j) W[n], what key j gives beyond what all keys give alike, and y[i] = the sum over
heads n and keys j of A[n, i, j] u[n, j], the contribution of key j to query i is the part of it along y[i]. All that is
asked of the output weights W are products of their rows, so that nothing here is as wide as the output's channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.kernels.softmaxes import key_bias
from attrace.analysis.kernels.values import Scores, SiteValues

_BLOCK_SCORES: Final = 2**20
"""Scores, of all heads, that are in memory at once."""


def row_products(output: NDArray[Any]) -> NDArray[Any]:
    """Products of the rows of output weights (head, feature, channel), which those of all steps share.

    float32, or float64 for float64 weights: (head * feature, head * feature).
    """
    rows = output.reshape(-1, output.shape[-1]).astype(np.result_type(output, np.float32))
    products: NDArray[Any] = rows @ rows.T
    return products


def contribution_marginals(
    values: SiteValues,
    value: NDArray[Any],
    products: NDArray[Any],
    query_weights: NDArray[np.float64],
    key_weights: NDArray[np.float64],
    *,
    heads: Sequence[int],
    by_head: bool = False,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weighted sums of the contributions of one layer in one step, over keys and over queries.

    Parameters
    ----------
    values
        Scores, or queries and keys, of all heads.
    value
        Value vectors: (head, key, feature).
    products
        As `row_products` gives them.
    query_weights, key_weights
        Weights of the queries in the sum over queries, (query), and of the keys in that over keys, (key).
    heads
        Heads whose contributions are taken; what the layer gives is that of all heads.
    by_head
        Of each head by itself, in place of all of them together.

    Returns
    -------
    r2g
        (1 or head, query), of sum 1, or as many as there are heads: 0 where no key contributes anything.
    g2r
        (1 or head, key), likewise.

    Notes
    -----
    C[i, j] is the positive part of the sum over heads of A[n, i, j] <u[n, j], y[i] / |y[i]|>; of one head, the positive
    part of its own term. float32, or float64 for float64 values.
    """
    dtype = np.result_type(products, value)
    given = value.astype(dtype)
    given -= given[:, _is_seen(values)].mean(axis=1, keepdims=True)
    count, keys, features = given.shape
    r2g: list[NDArray[Any]] = []
    g2r = np.zeros((len(heads) if by_head else 1, keys), dtype)
    of_keys, of_queries = key_weights.astype(dtype), query_weights.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for place, attention in _attention(values, dtype):
            sums = (attention @ given).swapaxes(0, 1).reshape(-1, count * features)
            along = sums @ products
            lengths = np.sqrt(np.maximum(np.einsum("qf,qf->q", sums, along), 0))
            along *= np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths != 0)[:, None]
            attention *= along.reshape(-1, count, features).swapaxes(0, 1) @ given.swapaxes(1, 2)
            parts = attention if len(heads) == count else attention[list(heads)]
            parts = np.maximum(parts if by_head else parts.sum(axis=0, keepdims=True), 0)
            r2g.append(parts @ of_keys)
            g2r += of_queries[place] @ parts
    return _scaled(np.concatenate(r2g, axis=1)), _scaled(g2r)


def _attention(values: SiteValues, dtype: np.dtype[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """The softmax over keys of all heads by blocks of queries, (head, query, key), each with its place along query.

    0 in a row whose keys are all hidden.
    """
    bias = key_bias(values).astype(dtype)
    columns = None if isinstance(values, Scores) else values.key.astype(dtype).swapaxes(1, 2) * dtype.type(values.scale)
    rows = values.scores if isinstance(values, Scores) else values.query
    step = max(1, _BLOCK_SCORES // (len(rows) * len(bias)))
    for start in range(0, rows.shape[1], step):
        place = slice(start, start + step)
        block = rows[:, place].astype(dtype)
        block = block if columns is None else block @ columns
        block += bias
        shifts = block.max(axis=2) if values.lse is None else values.lse[:, place].astype(dtype)
        # a query whose keys are all hidden has the log-sum-exp -inf
        block -= np.where(shifts == -np.inf, 0, shifts)[..., None]
        np.exp(block, out=block)
        if values.lse is None:
            totals = block.sum(axis=2, keepdims=True)
            np.divide(block, totals, out=block, where=totals != 0)
        yield place, block


def _is_seen(values: SiteValues) -> NDArray[np.bool_]:
    """Which keys are not hidden from every query: (key); all of them where none is."""
    # a bias of -inf hides a key, and so does a score of -inf from every query
    seen = key_bias(values) > -np.inf
    if isinstance(values, Scores):
        seen &= (values.scores != -np.inf).any(axis=(0, 1))
    return np.asarray(seen | ~seen.any())


def _scaled(sums: NDArray[Any]) -> NDArray[Any]:
    """Sums of heads, or of all of them together, that add up to how many there are."""
    total = sums.sum(dtype=np.float64)
    return sums if total == 0 else (sums * (len(sums) / total)).astype(sums.dtype)
