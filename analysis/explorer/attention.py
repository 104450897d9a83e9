"""Attention between the cells of a report: both softmaxes of every layer, head and group of steps, averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from attrace.analysis.kernels.softmaxes import head_softmaxes
from attrace.analysis.kernels.values import SiteValues
from attrace.analysis.trace.blocks import array_of_blocks
from attrace.analysis.trace.source import ClassSource

if TYPE_CHECKING:
    from attrace.analysis.explorer.plan import ReportClass, ReportPlan
    from attrace.schemas import Direction


@dataclass(frozen=True)
class Attention:
    """Attention of one class between cells."""

    rows: dict[Direction, NDArray[np.float32]]
    """(time_group, layer, head, chosen cell, shown cell): for `g2r` the softmax over keys, chosen in the generated
    picture and shown over the keys; for `r2g` the softmax over queries, chosen among the keys. The mean over the steps
    of a group in which the layer was called; 0 where it was not."""
    shares: NDArray[np.float32] | None
    """(time_group, layer, head, chosen cell): how much of the softmax over keys lies on the keys that are shown, for a
    class of which the page does not show all keys."""
    counts: NDArray[np.int64]
    """(time_group, layer): steps of a group in which the layer was called."""


def lazy_attention(plan: ReportPlan, one: ReportClass) -> da.Array:
    """What `attention_of` takes, lazily: (time_group, layer, head, value), the shares and the count of steps last."""
    heads = len(one.selected.heads) if plan.heads_apart else 1
    values = len(plan.kept_directions) * one.queries.cells * one.keys.cells + one.queries.cells + 1
    groups = tuple(plan.trace.selected_steps[span] for span in plan.spans)
    source = ClassSource.of(plan.trace.stored, one.site_class)
    token = tokenize(plan.trace, one.selected.group, groups, one.queries.kept, one.keys.kept, heads, values)
    return array_of_blocks(
        _GroupOfSteps(plan, one, groups, source),
        f"report-{token}",
        ((1,) * len(groups), (1,) * len(one.selected.layers), (heads,), (values,)),
        np.dtype(np.float32),
    )


def attention_of(plan: ReportPlan, one: ReportClass, values: NDArray[np.float32]) -> Attention:
    """Take apart what `lazy_attention` computed."""
    cells = one.queries.cells * one.keys.cells
    shape = values.shape[:3]
    rows = {
        direction: values[..., place * cells : (place + 1) * cells].reshape(
            *shape,
            *((one.queries.cells, one.keys.cells) if direction == "g2r" else (one.keys.cells, one.queries.cells)),
        )
        for place, direction in enumerate(plan.kept_directions)
    }
    return Attention(
        rows,
        values[..., -1 - one.queries.cells : -1] if one.partial and "g2r" in rows else None,
        values[:, :, 0, -1].astype(np.int64),
    )


@dataclass(frozen=True)
class _GroupOfSteps:
    """Gives the values of one layer in one group of steps: (1, 1, head, value)."""

    plan: ReportPlan
    one: ReportClass
    groups: tuple[tuple[int, ...], ...]
    source: ClassSource

    def __call__(self, block: tuple[int, ...]) -> NDArray[np.float32]:
        selected = self.one.selected
        cells = self.one.queries.cells * self.one.keys.cells
        made = np.zeros((len(selected.heads), len(self.plan.kept_directions) * cells + self.one.queries.cells + 1))
        count = 0
        for values in self.source.read(self.groups[block[0]], selected.layers[block[1]]):
            if values is not None:
                count += 1
                for place, head in enumerate(selected.heads):
                    made[place, :-1] += self._pooled(values, head)
        made /= max(count, 1)
        made[:, -1] = count
        heads = made if self.plan.heads_apart else made.mean(axis=0, keepdims=True)
        return heads[None, None].astype(np.float32)

    def _pooled(self, values: SiteValues, head: int) -> NDArray[np.float64]:
        """Means over cells of both softmaxes of one head in one step, and the shares of what is shown: (value)."""
        queries, keys = self.one.queries, self.one.keys
        over_keys, over_queries = head_softmaxes(values, head, queries.pooling, keys.places)
        pooled: dict[Direction, Any] = {"r2g": keys.pooling @ over_queries.T, "g2r": (keys.pooling @ over_keys.T).T}
        kept = [np.ravel(pooled[direction]) for direction in self.plan.kept_directions]
        return np.concatenate([*kept, over_keys.sum(axis=1)])


def quantised(rows: NDArray[np.float32], levels: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The rows of each layer, head and chosen cell in whole numbers up to `levels`, and what one of them stands for.

    Returns
    -------
    whole
        uint8, like `rows`: the nearest whole number.
    scale
        float32 (layer, head, chosen cell), the same in all groups of steps: whole * scale is within half a `scale` of
        the value.
    """
    scale = rows.max(axis=(0, -1)) / np.float32(levels)
    known = np.isfinite(scale)[None, ..., None]  # a row with a NaN keeps NaN for its scale alone
    safe: NDArray[Any] = np.where(scale > 0, scale, 1)[None, ..., None]
    return np.minimum(np.rint(np.where(known, rows, 0) / safe), levels).astype(np.uint8), scale


def differences(whole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each group of steps as its difference from the one before, modulo 256: what compresses better."""
    made = whole.copy()
    made[1:] -= whole[:-1]
    return made
