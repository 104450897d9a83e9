"""The kernel beside NumPy and beside the least that any kernel must do, on one core.

    python benchmarks/kernel.py [--quick]

For each shape, nanoseconds per score (one head and step hold queries x keys of them) and ratios within this run:

- naive: NumPy forms the scores in float32 and takes two stabilised softmaxes and their means.
- NumPy: the fallback of this package, one exponential in blocks.
- compiled: the kernel of this package.
- floor: sgemm of BLAS, exp and one read of the stored values; nothing is summed or divided.

The error is that of the compiled kernel, relative to float64 on the same stored float16 values.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported: everything is measured on one core

import numba
import numpy as np
from numpy.typing import NDArray

from attrace.analysis.kernels.numba_kernel import _rows_per_block
from attrace.analysis.kernels.softmaxes import softmax_marginals
from attrace.analysis.kernels.values import Factors
from attrace.analysis.kernels.vectors import LANES, exponentiate
from attrace.analysis.kernels.workspace import Workspace


@dataclass(frozen=True)
class Shape:
    """One attention layer."""

    name: str
    heads: int
    queries: int
    keys: int
    features: int

    @property
    def scores(self) -> int:
        """Number of scores."""
        return self.heads * self.queries * self.keys


SHAPES = (
    Shape("SD1.5 64x64, 257 image keys", 8, 4096, 257, 40),
    Shape("SD1.5 32x32, 257 image keys", 8, 1024, 257, 80),
    Shape("SD1.5 16x16, 257 image keys", 8, 256, 257, 160),
    Shape("StableVITON 64x48, dense", 2, 3072, 3072, 40),
    Shape("SDXL 64x64, 77 text keys", 10, 4096, 77, 64),
)

QUICK_SHAPES = (Shape("tiny", 2, 256, 65, 16), Shape("tiny, dense", 1, 144, 144, 8))


@dataclass(frozen=True)
class Row:
    """What was measured for one shape."""

    shape: Shape
    nanoseconds: dict[str, float]
    """Per score, by method."""
    error: float

    @property
    def speedup(self) -> float:
        """How much faster the compiled kernel is than naive NumPy."""
        return self.nanoseconds["naive"] / self.nanoseconds["compiled"]

    @property
    def above_floor(self) -> float:
        """How much longer the compiled kernel takes than the floor."""
        return self.nanoseconds["compiled"] / self.nanoseconds["floor"]


def run(*, quick: bool = False) -> list[Row]:
    """Measure every shape."""
    return [_measure(shape, repeats=2 if quick else 7) for shape in (QUICK_SHAPES if quick else SHAPES)]


def _measure(shape: Shape, repeats: int) -> Row:
    values = _made_values(shape)
    workspace = Workspace()
    queries, keys = np.full(shape.queries, 1 / shape.queries), np.full(shape.keys, 1 / shape.keys)
    methods: dict[str, Callable[[], Any]] = {
        "naive": lambda: naive_marginals(values),
        "NumPy": lambda: softmax_marginals(values, queries, keys, method="numpy"),
        "compiled": lambda: softmax_marginals(values, queries, keys, method="numba", workspace=workspace),
        "floor": Floor(values),
    }
    seconds = best_of(methods, repeats)
    exact = naive_marginals(values, np.float64)
    found = softmax_marginals(values, queries, keys, method="numba")
    error = max(float(np.abs(one / true - 1).max()) for one, true in zip(found, exact, strict=True))
    return Row(shape, {name: 1e9 * value / shape.scores for name, value in seconds.items()}, error)


def best_of(methods: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least processor time of each method in seconds; they take turns, so that a busy machine is unfair to none."""
    best = dict.fromkeys(methods, float("inf"))
    for method in methods.values():
        method()
    for _ in range(repeats):
        for name, method in methods.items():
            start = time.thread_time()
            method()
            best[name] = min(best[name], time.thread_time() - start)
    return best


def naive_marginals(values: Factors, dtype: type[np.floating[Any]] = np.float32) -> tuple[NDArray[Any], NDArray[Any]]:
    """R2G (head, query) and G2R (head, key) by two stabilised softmaxes of all scores."""
    query: NDArray[Any] = values.query.astype(dtype)
    key: NDArray[Any] = values.key.astype(dtype)
    scores = query @ key.swapaxes(1, 2) * dtype(values.scale)
    over_queries = np.exp(scores - scores.max(axis=1, keepdims=True))
    over_queries /= over_queries.sum(axis=1, keepdims=True)
    over_keys = np.exp(scores - scores.max(axis=2, keepdims=True))
    over_keys /= over_keys.sum(axis=2, keepdims=True)
    return over_queries.mean(axis=2), over_keys.mean(axis=1)


class Floor:
    """The least work: read the stored values once, one matrix product and one exponential for each score.

    The exponentials of a head are left in memory, since the second softmax needs them once the first is known.
    """

    def __init__(self, values: Factors) -> None:
        self._values = values
        self._query = values.query.astype(np.float32)
        self._key = values.key.astype(np.float32)
        self._work = np.empty((self._query.shape[1], self._key.shape[1]), np.float32)

    def __call__(self) -> None:
        """Do it."""
        self._values.query.copy()
        self._values.key.copy()
        for head in range(len(self._query)):
            _products_and_exponentials(self._query[head], self._key[head], self._work)


@numba.njit(nogil=True)
def _products_and_exponentials(query: Any, key: Any, work: Any) -> None:
    rows, whole = _rows_per_block(len(key)), len(key) // LANES * LANES
    weights = np.zeros(len(key), np.float32)
    for start in range(0, len(query), rows):
        block = work[start : start + rows]
        np.dot(query[start : start + rows], key.T, block)
        for row in range(len(block)):
            exponentiate(block, row, np.float32(0), whole, weights)


def _made_values(shape: Shape) -> Factors:
    """Random queries and keys in float16 whose scores spread as those of trained models do."""
    random = np.random.default_rng(0)
    query = random.normal(size=(shape.heads, shape.queries, shape.features)).astype(np.float16)
    key = random.normal(scale=2, size=(shape.heads, shape.keys, shape.features)).astype(np.float16)
    return Factors(query, key, shape.features**-0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    rows = run(quick=parser.parse_args().quick)
    print(f"| {'shape':28} | naive | NumPy | compiled | floor | faster than naive | above floor | error |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    for row in rows:
        times = " | ".join(f"{row.nanoseconds[name]:.2f}" for name in ("naive", "NumPy", "compiled", "floor"))
        print(f"| {row.shape.name:28} | {times} | {row.speedup:.1f} x | {row.above_floor:.2f} x | {row.error:.1e} |")


if __name__ == "__main__":
    main()
