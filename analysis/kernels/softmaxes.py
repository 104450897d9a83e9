"""Both softmaxes of an attention layer from one exponential per score.

With E = exp(s - c) for one number c, the softmax over keys is E / (sum of E over keys) and the softmax over queries is
E / (sum of E over queries): c cancels in both. So one E gives the means of both directions. One c must suit every
query and key of a head; where the scores spread too wide for that, two stabilised softmaxes are taken instead.

A bias over the keys cancels in the softmax over queries and is a factor exp(bias) in the other one. It is applied as
that factor, so that masked keys do not widen the spread.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from attrace.analysis.kernels.numpy_kernel import NumpyHead, two_stabilised_softmaxes
from attrace.analysis.kernels.values import Scores, SiteValues
from attrace.analysis.kernels.weighting import SAFE_SCORE, Weighting, suits
from attrace.analysis.kernels.workspace import Workspace
from attrace.schemas import InputError

Method = Literal["auto", "numba", "numpy"]

METHOD_VARIABLE: Final = "ATTRACE_KERNEL"
"""Environment variable that chooses the method where the caller does not."""

SAFE_SPREAD: Final = 120.0
"""One shift suits rows and columns whose maxima lie within this range of the largest score."""

SHIFTED_MAXIMUM: Final = 60.0
"""Where a shift puts the largest score: the smallest maximum is then no less than minus that."""

MASKED_BIAS: Final = -1e30
"""A bias below this, such as the smallest float32, hides a key as -inf does."""


class Head(Protocol):
    """Scores of one head, without the bias, ready for a pass; in NumPy or in compiled code."""

    def bound(self) -> float:
        """A number that no score exceeds in magnitude."""

    def maxima(self, bias: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Largest score of each key, and of each query with the bias (key) added."""

    def one_exponential(
        self, shift: float, row_factors: NDArray[Any] | None, weighting: Weighting
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """R2G (query) and G2R (key) from exp(score - shift), up to the scales of the weighting; consumes the scores.

        `row_factors` (query) stand in for 1 / (sum over keys) where that is known from elsewhere.
        """

    def key_shares(
        self, bias: NDArray[Any], row_logarithms: NDArray[Any] | None, weights: NDArray[Any]
    ) -> NDArray[Any]:
        """Weighted sum over keys of the softmax over keys: (query).

        `row_logarithms` (query) is the log of the sum over keys where that is known from elsewhere.
        """

    def add_softmax(self, bias: NDArray[Any], row_logarithms: NDArray[Any] | None, total: NDArray[np.float64]) -> None:
        """Adds the softmax over keys to `total` (query, key)."""


HeadMaker = Callable[[int], Head]


def softmax_marginals(
    values: SiteValues,
    query_weights: NDArray[np.float64],
    key_weights: NDArray[np.float64],
    *,
    method: Method | None = None,
    workspace: Workspace | None = None,
    device: str | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weighted means of both softmaxes of the scores of one site in one step.

    Parameters
    ----------
    values
        Scores, or the queries and keys that they are the product of.
    query_weights
        Weights of the queries in the mean over queries: (query), not negative, normalised by the caller.
    key_weights
        Weights of the keys in the mean over keys: (key), not negative, normalised by the caller.
    method
        `numba`, `numpy`, or `auto`: numba where it is installed. By default what the environment variable
        `ATTRACE_KERNEL` says, else `auto`. float64 always takes NumPy, and is computed in float64.
    workspace
        Memory to use again, where several calls follow each other on one thread.
    device
        Compute with torch on this device (see `require_device`), in place of a method.

    Returns
    -------
    r2g
        Mean over keys of the softmax over queries: (head, query), float32 (float64 for float64 values).
    g2r
        Mean over queries of the softmax over keys: (head, key), likewise.

    Notes
    -----
    Finite wherever the values are, also where a bias or a score is -inf: a key that is hidden from every query gets
    and gives nothing. A head with a score of NaN or +inf gives NaN.
    """
    heads, queries, keys = _shape(values)
    dtype = np.result_type(_stored(values), np.float32)
    weighting = _weighting(values, query_weights, key_weights, dtype)
    r2g, g2r = np.empty((heads, queries), dtype), np.empty((heads, keys), dtype)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if device is not None:
            r2g[:], g2r[:] = _torch_marginals(values, weighting, device)
        else:
            makes_head = _head_maker(values, method, workspace)
            for head in range(heads):
                r2g[head], g2r[head] = _head_marginals(values, head, makes_head, weighting)
    r2g *= weighting.key_scale
    g2r *= weighting.query_scale
    return r2g, g2r


def require_device(device: str | None) -> None:
    """Refuse a device on which nothing can be computed: `cuda`, `cuda:1` or `cpu-torch`; None needs no torch.

    Raises
    ------
    ImportError
        If torch is not installed.
    InputError
        If torch finds no such device.
    """
    if device is None:
        return
    try:
        from attrace.analysis.kernels.torch_kernel import find_device  # torch is optional here, and slow to import
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"device={device!r} needs torch: pip install 'attrace[record]', or leave device out to compute without it"
        ) from error
    find_device(device)


def key_shares(
    values: SiteValues,
    key_weights: NDArray[np.float64],
    *,
    method: Method | None = None,
    workspace: Workspace | None = None,
) -> NDArray[Any]:
    """Weighted mean over keys of the softmax over keys: how much of each query goes to the chosen keys.

    Parameters
    ----------
    values
        Scores, or queries and keys, of one site in one step.
    key_weights
        (key), not negative, normalised by the caller.
    method, workspace
        As in `softmax_marginals`.

    Returns
    -------
    numpy.ndarray
        (head, query), float32 (float64 for float64 values).
    """
    heads, queries, _ = _shape(values)
    shares = np.empty((heads, queries), np.result_type(_stored(values), np.float32))
    bias, weights = key_bias(values).astype(shares.dtype), key_weights.astype(shares.dtype)
    makes_head = _head_maker(values, method, workspace)
    with np.errstate(invalid="ignore", over="ignore"):
        for head in range(heads):
            shares[head] = makes_head(head).key_shares(bias, row_shifts(values, head), weights)
    return shares


def summed_softmax_over_keys(
    values: SiteValues, *, method: Method | None = None, workspace: Workspace | None = None
) -> NDArray[np.float64]:
    """Sum over the heads of the softmax over keys: float64 (query, key)."""
    heads, queries, keys = _shape(values)
    total = np.zeros((queries, keys))
    bias = key_bias(values).astype(np.result_type(_stored(values), np.float32))
    makes_head = _head_maker(values, method, workspace)
    with np.errstate(invalid="ignore", over="ignore"):
        for head in range(heads):
            makes_head(head).add_softmax(bias, row_shifts(values, head), total)
    return total


def head_softmaxes(
    values: SiteValues, head: int, pooling: Any, places: slice
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both softmaxes of one head in one step, of some keys, averaged over groups of queries.

    Parameters
    ----------
    values
        Scores, or queries and keys, of one site in one step.
    head
        Which head.
    pooling
        Share of each query in each mean: a matrix (mean, query), dense or sparse.
    places
        Keys that are wanted; the softmax over keys runs over all.

    Returns
    -------
    over_keys, over_queries
        float64 (mean, key); 0 for a key that is hidden.
    """
    scores = NumpyHead(values, head)
    bias = key_bias(values)[places].astype(scores.dtype)
    wanted = len(bias)
    over_keys, over_queries = np.zeros((pooling.shape[0], wanted)), np.zeros((pooling.shape[0], wanted))
    with np.errstate(invalid="ignore", over="ignore"):
        for place, block in scores.softmax_over_keys(key_bias(values).astype(scores.dtype), row_shifts(values, head)):
            over_keys += pooling[:, place] @ block[:, places]
        for place, block in scores.softmax_over_queries(places):
            over_queries += pooling[:, place] @ block
    over_queries[:, bias == -np.inf] = 0
    return over_keys, over_queries


def _head_marginals(
    values: SiteValues, head: int, makes_head: HeadMaker, weighting: Weighting
) -> tuple[NDArray[Any], NDArray[Any]]:
    row_logarithms = _row_logarithms(values, head)
    if row_logarithms is not None:
        row_logarithms -= weighting.bias_scale
    scores = makes_head(head)
    shift = 0.0 if scores.bound() <= SAFE_SCORE else _shift_of_maxima(*scores.maxima(weighting.bias))
    if shift is None or not (weighting.suits_one_shift() and suits(shift, row_logarithms)):
        return two_stabilised_softmaxes(values, head, row_logarithms, weighting)
    row_factors = None if row_logarithms is None else _exp_or_zero(shift - row_logarithms)
    return scores.one_exponential(shift, row_factors, weighting)


def _torch_marginals(values: SiteValues, weighting: Weighting, device: str) -> tuple[NDArray[Any], NDArray[Any]]:
    from attrace.analysis.kernels.torch_kernel import find_device, torch_marginals

    row_logarithms = None if values.lse is None else values.lse.astype(np.float64) - weighting.bias_scale
    return torch_marginals(values, row_logarithms, weighting, find_device(device))


def _shift_of_maxima(column_maxima: NDArray[Any], row_maxima: NDArray[Any]) -> float | None:
    """One number that suits every row and column, or None; those with no score above -inf do not count."""
    maxima = np.concatenate([column_maxima, row_maxima])
    largest = float(maxima.max())
    smallest = float(maxima[maxima != -np.inf].min(initial=largest))
    if largest == -np.inf:
        return 0.0
    return largest - SHIFTED_MAXIMUM if largest - smallest <= SAFE_SPREAD else None


def _exp_or_zero(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp, and 0 for +inf: a query whose keys are all hidden uses none."""
    return np.where(logarithms == np.inf, 0.0, np.exp(logarithms))


def _weighting(
    values: SiteValues, query_weights: NDArray[np.float64], key_weights: NDArray[np.float64], dtype: np.dtype[Any]
) -> Weighting:
    bias = key_bias(values)
    bias_scale = float(bias.max()) if bias.max() > -np.inf else 0.0
    visible = np.where(bias == -np.inf, 0.0, key_weights)
    query_scale, key_scale = query_weights.max() or 1.0, visible.max() or 1.0
    return Weighting(
        (query_weights / query_scale).astype(dtype),
        float(query_scale),
        (visible / key_scale).astype(dtype),
        float(key_scale),
        (bias - bias_scale).astype(dtype),
        bias_scale,
    )


def key_bias(values: SiteValues) -> NDArray[np.float64]:
    """What is still to be added to the scores of each key: (key); -inf for a hidden one."""
    if isinstance(values, Scores) or values.bias is None:
        return np.zeros(_shape(values)[2])
    return np.where(values.bias < MASKED_BIAS, -np.inf, values.bias.astype(np.float64))


def _row_logarithms(values: SiteValues, head: int) -> NDArray[np.float64] | None:
    return None if values.lse is None else values.lse[head].astype(np.float64)


def row_shifts(values: SiteValues, head: int) -> NDArray[np.float64] | None:
    """What a softmax over keys subtracts where the log-sum-exp is known: +inf for a query whose keys are all hidden."""
    logarithms = _row_logarithms(values, head)
    return None if logarithms is None else np.where(logarithms == -np.inf, np.inf, logarithms)


def _head_maker(values: SiteValues, method: str | None, workspace: Workspace | None) -> HeadMaker:
    method = method or os.environ.get(METHOD_VARIABLE, "auto")
    if method not in ("auto", "numba", "numpy"):
        raise InputError(f"kernel method: expected auto, numba or numpy, found {method!r}")
    compiled = method == "numba" or (method == "auto" and importlib.util.find_spec("numba") is not None)
    if not compiled or _stored(values).dtype == np.float64:
        return partial(NumpyHead, values)
    from attrace.analysis.kernels.numba_kernel import CompiledHeads  # numba is slow to import

    return CompiledHeads(values, workspace or Workspace())


def _stored(values: SiteValues) -> NDArray[Any]:
    return values.scores if isinstance(values, Scores) else values.query


def _shape(values: SiteValues) -> tuple[int, int, int]:
    """Heads, queries, keys."""
    if isinstance(values, Scores):
        heads, queries, keys = values.scores.shape
        return heads, queries, keys
    return values.query.shape[0], values.query.shape[1], values.key.shape[1]
