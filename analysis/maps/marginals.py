"""R2G and G2R marginals of a trace: one lazy pass over its data, in blocks of steps."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from attrace.analysis.kernels.contributions import contribution_marginals, row_products
from attrace.analysis.kernels.softmaxes import key_shares, require_device, softmax_marginals
from attrace.analysis.kernels.values import Factors, Scores, SiteValues
from attrace.analysis.kernels.workspace import Workspace
from attrace.analysis.maps.masks import Keys, Queries, Weights, key_weights, normalised, query_weights
from attrace.analysis.trace.blocks import Chunks, array_of_blocks, split
from attrace.analysis.trace.derived import Derived, open_derived
from attrace.analysis.trace.selected import SelectedClass
from attrace.analysis.trace.source import ClassSource
from attrace.analysis.trace.trace import Trace, require_trace
from attrace.analysis.trace.views import (
    class_coordinates,
    class_tree,
    key_coordinates,
    query_coordinates,
    require_steps,
)
from attrace.schemas import InputError, SiteClass
from attrace.schemas.layout import DERIVED_STEPS_PER_CHUNK

Index = NDArray[np.int64] | slice
"""Queries or keys along their dimension."""

LEFT_OUT: Final = "scores that are NaN or infinite; the heads, queries or keys that have them are left out of the maps"
"""Warning of a pass whose result has NaN where a site was called."""

STEPS_PER_BLOCK: Final = 10
"""Steps of one layer that one task takes."""

Quantity = Literal["r2g", "g2r", "share"]
"""What a pass makes of the scores: the marginals of the two directions, or the share that chosen keys have in each
query (mean over those keys of the softmax over all keys)."""

Contribution = Literal["layer", "head"]
"""Whose contributions a pass sums up: those of a layer, all heads together, or of each head."""

TOKEN_DIMS: Final[dict[Quantity, Literal["query", "key"]]] = {"r2g": "query", "g2r": "key", "share": "query"}

ATTRIBUTES: Final[dict[Quantity, dict[str, str]]] = {
    "r2g": {
        "long_name": "reference-to-generated attribution (mean over keys of the softmax over queries)",
        "units": "1",
    },
    "g2r": {
        "long_name": "generated-to-reference attribution (mean over queries of the softmax over keys)",
        "units": "1",
    },
    "share": {"long_name": "token attribution (softmax over keys of the chosen tokens)", "units": "1"},
}


def marginals(trace: Trace, *, queries: Queries = None, keys: Keys = None, device: str | None = None) -> xr.DataTree:
    """Means of both softmaxes of every selected layer, head and step.

    Parameters
    ----------
    trace
        The trace, or a selection of it.
    queries
        Queries that the mean over queries takes: a mask (row, column) over the generated picture; None for all.
    keys
        Keys that the mean over keys takes: a mask over the reference picture, a kind of key, `all`, or places of
        keys; None for the patches (all keys where there are none). A class that has none of them is left out.
    device
        Compute with torch: `cuda` (or `cuda:1` and so on), or `cpu-torch`. None computes without torch, on the CPU.
        Marginals that the trace keeps are read, whatever the device.

    Returns
    -------
    xarray.DataTree
        For each class a lazy dataset with `r2g` (time, layer, head, query): mean over keys of the softmax over
        queries, and `g2r` (time, layer, head, key): mean over queries of the softmax over keys, which always runs
        over all keys. float32, or float64 where that is stored. NaN where a site was not called in a step.

    Raises
    ------
    InputError
        If a mask or a choice of keys fits no layer, there is no such device, or no step is finished.
    ImportError
        If a device is given and torch is not installed.

    Notes
    -----
    I2AM (arXiv 2407.12331): M_g and M_r.
    """
    require_trace(trace)
    require_device(device)
    plans = [replace(_plan(trace, one, queries, keys), device=device) for one in trace.classes]
    usable = [plan for plan in plans if plan.of_keys().any()]
    if plans:
        require_steps(trace)
    if plans and not usable:
        raise InputError(f"trace {trace.path}: no selected layer has the keys {keys!r}")
    return class_tree(trace, {plan.selected.group: _dataset(trace, plan) for plan in usable})


def _plan(trace: Trace, selected: SelectedClass, queries: Queries, keys: Keys) -> MarginalPlan:
    site_class = selected.site_class
    of_queries = None if queries is None else query_weights(site_class, queries)
    of_keys = None if keys is None else key_weights(site_class, keys)
    return MarginalPlan(selected, trace.selected_steps, of_queries, of_keys)


def all_marginals(
    trace: Trace, site_class: SiteClass, steps: int, device: str | None = None
) -> dict[Quantity, da.Array]:
    """The default marginals of a whole class, computed anew, in the first `steps` places of the store.

    NaN in a step that is not finished.
    """
    everything = SelectedClass(site_class, tuple(range(len(site_class.sites))), tuple(range(site_class.heads)))
    finished = set(trace.finished_steps)
    places = tuple(place if place in finished else -1 for place in range(steps))
    return _computed_arrays(trace, MarginalPlan(everything, places, device=device))


def _dataset(trace: Trace, plan: MarginalPlan) -> xr.Dataset:
    site_class = plan.selected.site_class
    coordinates = class_coordinates(trace, plan.selected) | query_coordinates(site_class) | key_coordinates(site_class)
    variables = {
        quantity: (
            ("time", "layer", "head", TOKEN_DIMS[quantity]),
            marginal_array(trace, plan, quantity),
            ATTRIBUTES[quantity],
        )
        for quantity in plan.quantities
    }
    return xr.Dataset(variables, coordinates, {"source": trace.path})


@dataclass(frozen=True)
class MarginalPlan:
    """What a pass over one class computes."""

    selected: SelectedClass
    steps: tuple[int, ...]
    """Index of the steps along the stored `time` dimension."""
    query_weights: Weights | None = None
    """Of each query in the mean over queries, not normalised; None for all alike."""
    key_weights: Weights | None = None
    """Of each key in the mean over keys, not normalised; None for the default keys."""
    quantities: tuple[Quantity, ...] = ("r2g", "g2r")
    """Both directions in one pass; or one, which then touches only the queries or keys that have a weight."""
    device: str | None = None
    """Of torch, to compute with; None to do without torch."""
    contribution: Contribution | None = None
    """Sums of contributions in place of means of the softmaxes, scaled as those are; None for the softmaxes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the marginals."""
        return np.result_type(self.selected.site_class.dtype, np.float32)

    @property
    def heads(self) -> tuple[int, ...]:
        """Labels of the heads; a layer's contribution, of all heads together, has the label 0."""
        return (0,) if self.contribution == "layer" else self.selected.heads

    def is_default(self) -> bool:
        """Whether these are the marginals that a store may keep: of all queries and the default keys, in float32."""
        chosen = self.query_weights is not None or self.key_weights is not None or self.contribution is not None
        stored = not self.selected.shows_one_picture or self.quantities == ("g2r",)
        return set(self.quantities) <= {"r2g", "g2r"} and not chosen and stored and self.dtype == np.float32

    def of_queries(self) -> Weights:
        """Weights of the queries."""
        return query_weights(self.selected.site_class, None) if self.query_weights is None else self.query_weights

    def of_keys(self) -> Weights:
        """Weights of the keys."""
        return key_weights(self.selected.site_class, None) if self.key_weights is None else self.key_weights

    def touched(self) -> tuple[Index, Index]:
        """Queries and keys that a pass needs: for one direction alone, those that have a weight."""
        everything = slice(None)
        if self.quantities == ("g2r",):
            return np.flatnonzero(self.of_queries()), everything
        if self.quantities == ("r2g",) and self.contribution is None:
            return everything, np.flatnonzero(self.of_keys())
        return everything, everything

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of queries or keys along each quantity."""
        site_class = self.selected.site_class
        lengths = {"query": site_class.queries, "key": site_class.keys}
        return tuple(lengths[TOKEN_DIMS[quantity]] for quantity in self.quantities)


def marginal_array(trace: Trace, plan: MarginalPlan, quantity: Quantity) -> da.Array:
    """One of the quantities of a plan, lazily: (time, layer, head, query or key).

    Read from the cache in the store where that holds it, else computed in one pass that all quantities share.
    """
    derived = _kept(trace, plan)
    if derived is None:
        return _computed_arrays(trace, plan)[quantity]
    return _kept_array(trace, plan, derived, quantity)


def _kept(trace: Trace, plan: MarginalPlan) -> Derived | None:
    if not plan.is_default():
        return None
    return open_derived(trace.stored, plan.selected.site_class, len(trace.finished_steps))


def _kept_array(trace: Trace, plan: MarginalPlan, derived: Derived, quantity: Quantity) -> da.Array:
    blocks = tuple(
        tuple(steps) for _, steps in itertools.groupby(plan.steps, lambda step: step // DERIVED_STEPS_PER_CHUNK)
    )
    return array_of_blocks(
        _ReadOfKept(plan, blocks, derived, quantity),
        f"kept-{quantity}-{tokenize(trace, plan.selected.group, plan.selected.layers)}",
        _chunks(plan, blocks, dict(zip(plan.quantities, plan.lengths, strict=True))[quantity]),
        np.dtype(np.float32),
    )


@dataclass(frozen=True)
class _ReadOfKept:
    """Gives the kept marginals of one layer in some steps: (time, layer, head, query or key)."""

    plan: MarginalPlan
    blocks: tuple[tuple[int, ...], ...]
    derived: Derived
    quantity: Quantity

    def __call__(self, block: tuple[int, ...]) -> NDArray[np.float32]:
        selected = self.plan.selected
        return self.derived.read(self.quantity, self.blocks[block[0]], selected.layers[block[1]], selected.heads)


def _computed_arrays(trace: Trace, plan: MarginalPlan) -> dict[Quantity, da.Array]:
    """From one pass over the data of the class, in tasks of a few steps of one layer."""
    source = ClassSource.of(trace.stored, plan.selected.site_class)
    blocks = split(plan.steps, max(STEPS_PER_BLOCK, source.steps_in_chunk))
    selected = (plan.selected.group, plan.selected.layers, plan.selected.heads)
    wanted = (plan.query_weights, plan.key_weights, plan.quantities, plan.contribution, plan.device)
    token = tokenize(trace, selected, plan.steps, wanted)
    passed = array_of_blocks(
        (_Pass if plan.contribution is None else _ContributionPass)(plan, blocks, source),
        f"marginals-{token}",
        _chunks(plan, blocks, sum(plan.lengths)),
        plan.dtype,
    )
    stops = np.cumsum(plan.lengths).tolist()
    return {
        quantity: passed[..., stop - length : stop]
        for quantity, length, stop in zip(plan.quantities, plan.lengths, stops, strict=True)
    }


def _chunks(plan: MarginalPlan, blocks: tuple[tuple[int, ...], ...], length: int) -> Chunks:
    return tuple(map(len, blocks)), (1,) * len(plan.selected.layers), (len(plan.heads),), (length,)


Marginals = list[NDArray[Any]]
"""The quantities of one layer in one step, (head, query or key) each."""


@dataclass(frozen=True)
class _Pass:
    """Makes the quantities of one layer in some steps, end to end: (time, layer, head, query and key)."""

    plan: MarginalPlan
    blocks: tuple[tuple[int, ...], ...]
    source: ClassSource

    def __call__(self, block: tuple[int, ...]) -> NDArray[Any]:
        plan, steps = self.plan, self.blocks[block[0]]
        queries, keys = plan.touched()
        weights = normalised(plan.of_queries()[queries]), normalised(plan.of_keys()[keys])
        workspace = Workspace()
        made: list[Marginals | None] = []
        for values in self.source.read(steps, plan.selected.layers[block[1]], queries):
            wanted = None if values is None else select_values(values, plan.selected.heads, slice(None), keys)
            made.append(None if wanted is None else _quantities(wanted, *weights, plan, workspace))
        return _end_to_end(plan, block[1], steps, made)


@dataclass(frozen=True)
class _ContributionPass(_Pass):
    """Makes the same of the contributions of one layer in some steps."""

    def __call__(self, block: tuple[int, ...]) -> NDArray[Any]:
        plan, steps, layer = self.plan, self.blocks[block[0]], self.plan.selected.layers[block[1]]
        queries, _ = plan.touched()
        of_queries, of_keys = normalised(plan.of_queries()[queries]), normalised(plan.of_keys())
        options: dict[str, Any] = {"heads": plan.selected.heads, "by_head": plan.contribution == "head"}
        products = row_products(self.source.read_output(layer))
        made: list[Marginals | None] = []
        for values, value in zip(
            self.source.read(steps, layer, queries), self.source.read_values(steps, layer), strict=True
        ):
            if values is None or value is None:
                made.append(None)
                continue
            both = contribution_marginals(values, value, products, of_queries, of_keys, **options)
            made.append([both[quantity == "g2r"] for quantity in plan.quantities])
        return _end_to_end(plan, block[1], steps, made)


def _end_to_end(plan: MarginalPlan, layer: int, steps: Sequence[int], made: Sequence[Marginals | None]) -> NDArray[Any]:
    """The quantities of one layer in some steps in one array, NaN where there are none."""
    passed = np.full((len(steps), 1, len(plan.heads), sum(plan.lengths)), np.nan, plan.dtype)
    for place, of_step in enumerate(made):
        if of_step is not None:
            passed[place, 0] = np.concatenate(of_step, axis=1)
            if np.isnan(passed[place, 0]).any():
                path = plan.selected.paths[layer]
                warnings.warn(f"layer {path}, step {steps[place]}: {LEFT_OUT}", RuntimeWarning, stacklevel=2)
    return passed


def _quantities(
    values: SiteValues,
    of_queries: Weights,
    of_keys: Weights,
    plan: MarginalPlan,
    workspace: Workspace,
) -> Marginals:
    if plan.quantities == ("share",):
        return [key_shares(values, of_keys, workspace=workspace)]
    r2g, g2r = softmax_marginals(values, of_queries, of_keys, workspace=workspace, device=plan.device)
    return [r2g if quantity == "r2g" else g2r for quantity in plan.quantities]


def select_values(values: SiteValues, heads: Sequence[int], queries: Index, keys: Index) -> SiteValues:
    """The values of some heads, queries and keys; not copied where these are all."""
    lse = None if values.lse is None else _select(values.lse, heads, queries)
    if isinstance(values, Scores):
        scores = _select(values.scores, heads, queries)
        return Scores(scores if _is_all(keys) else scores[:, :, keys], lse)
    bias = None if values.bias is None else values.bias[keys]
    return Factors(_select(values.query, heads, queries), _select(values.key, heads, keys), values.scale, bias, lse)


def _select(array: NDArray[Any], heads: Sequence[int], tokens: Index) -> NDArray[Any]:
    """Some heads and tokens of (head, token, ...); the very array where these are all."""
    of_heads = array if len(heads) == len(array) else array[list(heads)]
    return of_heads if _is_all(tokens) else of_heads[:, tokens]


def _is_all(places: Index) -> bool:
    return isinstance(places, slice) and places == slice(None)
