"""The passes over a head in compiled code: float16 is decoded inside, and the GIL is not held.

Imported only where numba is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from attrace.analysis.kernels.numpy_kernel import KEPT_SCORES
from attrace.analysis.kernels.values import Factors, Scores, SiteValues
from attrace.analysis.kernels.vectors import (
    LANES,
    TILE_ROWS,
    TILE_VECTORS,
    add_four_rows,
    dot_row,
    exponentiate,
    multiply_narrow_tile,
    multiply_tile,
)
from attrace.analysis.kernels.weighting import Weighting
from attrace.analysis.kernels.workspace import Workspace

_F32: Final = np.float32
_I32: Final = np.int32

_SUMS_REORDERED: Final = {"contract", "nsz", "reassoc", "arcp"}
"""Lets sums be vectorised; NaN and infinity keep their meaning."""


class CompiledHeads:
    """The heads of one site in one step, each made ready for the compiled passes when it is asked for.

    Parameters
    ----------
    values
        Of all heads; float16 or float32.
    workspace
        Memory for decoded values and scores. Keys that stay the same from one call to the next are decoded once.
    """

    def __init__(self, values: SiteValues, workspace: Workspace) -> None:
        self._values = values
        self._workspace = workspace
        if isinstance(values, Factors) and workspace.key is not values.key:
            heads, keys, features = values.key.shape
            panels = workspace.array("panels", heads, _up_to_multiple(keys, LANES) // LANES, features, LANES)
            workspace.key_norms = [_fill_panels(values.key[head], panels[head], workspace) for head in range(heads)]
            workspace.key = values.key

    def __call__(self, head: int) -> CompiledHead:
        """One head; another may be asked for once this one was reduced."""
        values, workspace = self._values, self._workspace
        if isinstance(values, Scores):
            queries, keys = values.scores.shape[1:]
            work = workspace.array("work", queries, _up_to_multiple(keys, LANES))
            bound = _decode(values.scores[head], 1.0, work, magnitude=True)
            return CompiledHead(
                workspace.array("none", 0, 0), workspace.array("none", 0, 0, 0), work, queries, keys, bound
            )
        (queries, features), keys = values.query.shape[1:], values.key.shape[1]
        rows = queries if queries * keys <= KEPT_SCORES else rows_per_block(keys)
        work = workspace.array("work", _up_to_multiple(rows, TILE_ROWS), _up_to_multiple(keys, LANES))
        query = workspace.array("query", _up_to_multiple(queries, TILE_ROWS), features)
        query[queries:] = 0
        bound = _decode(values.query[head], values.scale, query) * workspace.key_norms[head]
        panels = workspace.array("panels", len(values.key), work.shape[1] // LANES, features, LANES)
        return CompiledHead(query, panels[head], work, queries, keys, bound)


@dataclass(frozen=True)
class CompiledHead:
    """Scores of one head, without the bias, for the compiled passes."""

    query: NDArray[np.float32]
    """(query, feature), scaled, whole tiles; empty where `work` holds the scores already."""
    panels: NDArray[np.float32]
    """Keys as the tiles read them: (panel, feature, lane)."""
    work: NDArray[np.float32]
    """Room for scores (query, key), whole vectors: of all queries where they are kept between passes, else a block."""
    queries: int
    keys: int
    largest: float

    def bound(self) -> float:
        """A number that no score exceeds in magnitude."""
        return self.largest

    def maxima(self, bias: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Largest score of each key, and of each query with the bias (key) added."""
        columns, rows = np.full(self.keys, -np.inf, _F32), np.full(self.queries, -np.inf, _F32)
        _maxima(self.query, self.panels, self.work, bias, columns, rows)
        return columns, rows

    def one_exponential(
        self, shift: float, row_factors: NDArray[Any] | None, weighting: Weighting
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """R2G (query) and G2R (key) from exp(score - shift), up to the scales of the weighting; consumes the scores."""
        r2g, g2r = np.empty(self.queries, _F32), np.empty(self.keys, _F32)
        _one_exponential(
            self.query,
            self.panels,
            self.work,
            _F32(shift),
            _none_as_empty(row_factors),
            self._padded(weighting.key_factors),
            weighting.query_weights,
            weighting.key_weights,
            r2g,
            g2r,
        )
        return r2g, g2r

    def key_shares(
        self, bias: NDArray[Any], row_logarithms: NDArray[Any] | None, weights: NDArray[Any]
    ) -> NDArray[Any]:
        """Weighted sum over keys of the softmax over keys: (query)."""
        shares = np.empty(self.queries, _F32)
        ones, chosen = self._padded(np.ones_like(bias)), self._padded(weights)
        _key_shares(self.query, self.panels, self.work, bias, _none_as_empty(row_logarithms), ones, chosen, shares)
        return shares

    def add_softmax(self, bias: NDArray[Any], row_logarithms: NDArray[Any] | None, total: NDArray[np.float64]) -> None:
        """Adds the softmax over keys to `total` (query, key)."""
        ones = self._padded(np.ones_like(bias))
        _add_softmax(self.query, self.panels, self.work, bias, _none_as_empty(row_logarithms), ones, total)

    def _padded(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values (key) with zeros up to whole vectors."""
        padded = np.zeros(self.work.shape[1], _F32)
        padded[: self.keys] = values
        return padded


def rows_per_block(keys: int) -> int:
    """Queries whose scores are made at a time: whole tiles, as many as stay in a core's cache until they are summed."""
    return max(24, min(252, 2**18 // keys) // 12 * 12)


def _up_to_multiple(length: int, of: int) -> int:
    return -(-length // of) * of


def _none_as_empty(values: NDArray[Any] | None) -> NDArray[np.float32]:
    return np.empty(0, _F32) if values is None else values.astype(_F32)


def _fill_panels(stored: NDArray[Any], panels: NDArray[np.float32], workspace: Workspace) -> float:
    """Decodes the keys of a head into panels, zeros after the last; their largest norm."""
    key = workspace.array("key", panels.shape[0] * LANES, panels.shape[1])
    key[len(stored) :] = 0
    norm = _decode(stored, 1.0, key)
    panels[...] = key.reshape(panels.shape[0], LANES, panels.shape[1]).swapaxes(1, 2)
    return norm


def _decode(stored: NDArray[Any], factor: float, decoded: NDArray[np.float32], *, magnitude: bool = False) -> float:
    """Fills in the float32 values of float16 or float32 ones (row, column), times a factor, in the same places.

    The largest norm of a row, or the largest magnitude.
    """
    if stored.dtype == np.float16:
        _decode_halves(np.ascontiguousarray(stored).view(np.uint16), _F32(factor), decoded)
    else:
        np.multiply(stored, _F32(factor), out=decoded[: stored.shape[0], : stored.shape[1]])
    rows, columns = stored.shape
    return float(_largest_magnitude(decoded, rows, columns) if magnitude else _largest_norm(decoded, rows, columns))


@numba.njit(nogil=True, fastmath={"contract"}, cache=True)
def _decode_halves(bits: Any, factor: Any, decoded: Any) -> None:
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            decoded[i, j] = _half(_I32(bits[i, j])) * factor


@numba.njit(fastmath={"contract"}, cache=True)
def _half(bits: Any) -> Any:
    """The float32 value of the bits of a float16: exponent and fraction moved into place, then scaled by 2^112."""
    magnitude = _I32((bits & _I32(0x7FFF)) << _I32(13))
    finite = magnitude.view(np.float32) * _F32(2.0**112)
    special = _I32(magnitude | _I32(0x7F800000)).view(np.float32)
    value = finite if magnitude < _I32(0x0F800000) else special
    return -value if bits & _I32(0x8000) else value


@numba.njit(nogil=True, fastmath=_SUMS_REORDERED, cache=True)
def _largest_norm(vectors: Any, rows: Any, columns: Any) -> Any:
    largest = _F32(0)
    for i in range(rows):
        total = _F32(0)
        for j in range(columns):
            total += vectors[i, j] * vectors[i, j]
        largest = total if not total <= largest else largest  # NaN is passed on
    return np.sqrt(largest)


@numba.njit(nogil=True, cache=True)
def _largest_magnitude(scores: Any, rows: Any, columns: Any) -> Any:
    largest = _F32(0)
    for i in range(rows):
        for j in range(columns):
            magnitude = abs(scores[i, j])
            largest = magnitude if not magnitude <= largest else largest  # NaN is passed on
    return largest


@numba.njit(nogil=True, cache=True)
def _scores_of_rows(query: Any, panels: Any, work: Any, start: Any, stop: Any, queries: Any) -> Any:
    """Makes the scores of some queries, in their place in `work` where it has room for all, else at its start.

    The row of `work` where they are; the scores of a head without queries are there already.
    """
    at = start if len(work) >= queries else 0
    if len(query):
        whole = len(panels) - len(panels) % TILE_VECTORS
        for panel in range(0, whole, TILE_VECTORS):
            for row in range(0, stop - start, TILE_ROWS):
                multiply_tile(query, start + row, panels, panel, work, at + row)
        for panel in range(whole, len(panels)):
            for row in range(0, stop - start, TILE_ROWS):
                multiply_narrow_tile(query, start + row, panels, panel, work, at + row)
    return at


@numba.njit(nogil=True, cache=True)
def _maxima(query: Any, panels: Any, work: Any, bias: Any, columns: Any, rows: Any) -> None:
    step = _rows_per_block(len(columns))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        at = _scores_of_rows(query, panels, work, start, stop, len(rows))
        for i in range(stop - start):
            row = rows[start + i]
            for j in range(len(columns)):
                columns[j] = max(columns[j], work[at + i, j])
                row = max(row, work[at + i, j] + bias[j])
            rows[start + i] = row


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _one_exponential(
    query: Any,
    panels: Any,
    work: Any,
    shift: Any,
    row_factors: Any,
    key_factors: Any,
    query_weights: Any,
    key_weights: Any,
    r2g: Any,
    g2r: Any,
) -> None:
    queries, keys = len(r2g), len(g2r)
    step = _rows_per_block(keys)
    sums, used = np.zeros(keys, np.float64), np.zeros(keys, np.float64)
    block_sums, block_used = np.empty(len(key_factors), _F32), np.empty(len(key_factors), _F32)
    row_shares = np.empty(step, _F32)
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        at = _scores_of_rows(query, panels, work, start, stop, queries)
        block_sums[:] = 0
        block_used[:] = 0
        for first in range(0, stop - start, 4):  # four rows are still in the nearest cache when they are added up
            last = min(first + 4, stop - start)
            for i in range(first, last):
                total = exponentiate(work, at + i, shift, keys, key_factors)
                inverse = _F32(1) / total if total != 0 else _F32(0)
                row_factor = row_factors[start + i] if len(row_factors) else inverse
                row_shares[i] = query_weights[start + i] * row_factor
            _add_rows(work, at + first, last - first, row_shares[first:last], block_sums, block_used)
        for j in range(keys):
            sums[j] += block_sums[j]
            used[j] += block_used[j]
    key_shares = np.zeros(len(key_factors), _F32)
    for j in range(keys):
        key_shares[j] = key_weights[j] / sums[j] if sums[j] != 0 else 0
        g2r[j] = used[j] * key_factors[j] if key_factors[j] != 0 else 0
    for start in range((queries - 1) // step * step, -1, -step):  # backwards: the last block is still in the cache
        stop = min(start + step, queries)
        at = start
        if len(work) < queries:
            at = _scores_of_rows(query, panels, work, start, stop, queries)
            for i in range(stop - start):
                exponentiate(work, at + i, shift, keys, key_factors)
        for i in range(stop - start):
            r2g[start + i] = dot_row(work, at + i, key_shares)


@numba.njit(nogil=True, cache=True)
def _add_rows(work: Any, at: Any, rows: Any, shares: Any, plain: Any, weighted: Any) -> None:
    """Adds up to four rows to `plain`, and their sum weighted by `shares` to `weighted`."""
    if rows == 4:
        add_four_rows(work, at, shares, plain, weighted)
        return
    for i in range(rows):
        for j in range(len(plain)):
            plain[j] += work[at + i, j]
            weighted[j] += shares[i] * work[at + i, j]


@numba.njit(nogil=True, cache=True)
def _softmax_row(row: Any, bias: Any, row_logarithm: Any, known: Any) -> Any:
    """Adds the bias to the scores of a row; what to subtract before the exponential."""
    largest = _F32(-np.inf)
    for j in range(len(bias)):
        row[j] += bias[j]
        largest = max(largest, row[j])
    if known:
        return row_logarithm
    return largest if largest != _F32(-np.inf) else _F32(0)


@numba.njit(nogil=True, cache=True)
def _key_shares(
    query: Any, panels: Any, work: Any, bias: Any, row_logarithms: Any, ones: Any, weights: Any, shares: Any
) -> None:
    queries, known = len(shares), len(row_logarithms) > 0
    step = _rows_per_block(len(bias))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        at = _scores_of_rows(query, panels, work, start, stop, queries)
        for i in range(stop - start):
            shift = _softmax_row(work[at + i], bias, row_logarithms[start + i] if known else _F32(0), known)
            total = exponentiate(work, at + i, shift, len(bias), ones)
            chosen = dot_row(work, at + i, weights)
            shares[start + i] = chosen if known or total == 0 else chosen / total


@numba.njit(nogil=True, cache=True)
def _add_softmax(query: Any, panels: Any, work: Any, bias: Any, row_logarithms: Any, ones: Any, added: Any) -> None:
    queries, known = len(added), len(row_logarithms) > 0
    step = _rows_per_block(len(bias))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        at = _scores_of_rows(query, panels, work, start, stop, queries)
        for i in range(stop - start):
            shift = _softmax_row(work[at + i], bias, row_logarithms[start + i] if known else _F32(0), known)
            total = exponentiate(work, at + i, shift, len(bias), ones)
            factor = _F32(1) if known or total == 0 else _F32(1) / total
            for j in range(len(bias)):
                added[start + i, j] += work[at + i, j] * factor


_rows_per_block = numba.njit(cache=True)(rows_per_block)
