"""How much the generated picture changes without the attention of each layer or head."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike, NDArray

from attrace.recorder.jobs.ablation import Ablation, Baseline, Site, Survey, surveyed
from attrace.recorder.jobs.hidden_runs import KeptChanges, digest_of_inputs
from attrace.recorder.jobs.pipelines import call_arguments, generate
from attrace.recorder.labels.keys import Grid
from attrace.recorder.labels.profile import Profile
from attrace.recorder.labels.target import find_target
from attrace.schemas import Context, InputError

if TYPE_CHECKING:
    import xarray as xr

REGIONS: Final = ("whole", "inside")
"""Parts of the picture in which changes are measured: all of it, and what the mask covers."""

MEASURES: Final = ("absolute", "squared")
"""Means of the absolute and of the squared difference of pixels in [0, 1]."""

Picture = NDArray[np.uint8]


def ablate(
    pipeline: Any,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    seeds: int | Sequence[int] = 0,
    masks: ArrayLike | Sequence[ArrayLike | None] | None = None,
    layers: str | Sequence[str] | None = None,
    heads: bool = False,
    baseline: Baseline = "zero",
    context: Context | None = None,
    profile: Profile | str | PathLike[str] | None = None,
    network: str | None = None,
    key_grid: Grid | None = None,
    names: Sequence[str] | None = None,
    kept: str | PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Take the attention of one layer or head away at a time, and measure how much the picture changes.

    Parameters
    ----------
    pipeline
        A diffusers pipeline.
    inputs
        Arguments of its call, of one run or of several; everything but the noise.
    seeds
        Of the noise: one for all inputs, or one for each.
    masks
        (row, column) over the picture, bool or in [0, 1], one for each input (None where there is none): changes are
        measured inside it, too.
    layers
        Module paths, globs or short labels of the layers to take away; all by default.
    heads
        Take away one head at a time, in place of whole layers.
    baseline
        What stands in for the output of the attention, before its output projection: `zero`, or its `mean` over the
        queries. Where a layer attends to several contexts at once (Flux, SD3, Qwen-Image), `zero` hides the keys of
        the context from the queries of the generated picture, and there is no `mean`.
    context
        Attention to what: by default the first of reference, image prompt, text and self that the model has.
    profile, network, key_grid
        As for `record`.
    names
        Of the inputs; their numbers by default.
    kept
        A file that keeps the result of every run at once, a line of JSON each: the same call goes on where it was
        stopped.
    progress
        Called after every run with the number of runs done and of all.

    Returns
    -------
    xarray.Dataset
        `absolute` and `squared` (input, region, layer[, head]): mean absolute and squared difference from the picture
        with all attention, of pixels in [0, 1]; NaN `inside` where there is no mask, and for a head that a layer does
        not have. `attrace.effects` makes the effect of each layer or head of them, which maps take as `weights=`.

    Raises
    ------
    InputError
        If the inputs do not fit the pipeline, it makes no picture, or nothing attends to the context.
    CaptureError
        If the attention of a layer cannot be taken away.
    """
    listed = _listed(inputs, seeds, masks, names)
    target = find_target(pipeline, profile, network, None)
    patterns = (layers,) if isinstance(layers, str) else None if layers is None else tuple(layers)
    results = KeptChanges(None if kept is None else Path(kept))
    survey: Survey | None = None
    found: list[NDArray[np.float64]] = []
    for number, one in enumerate(listed):
        generated = _Generated(pipeline, one.arguments, one.seed)
        with nullcontext(survey) if survey is not None else surveyed(target, patterns, key_grid) as survey:
            picture = generated()
        sites = survey.sites(context)
        runs = [(place, site, head) for place, site in enumerate(sites) for head in _heads_of(site, heads)]
        done = itertools.count(number * (len(runs) + 1) + 1)

        def tell(done: Iterator[int] = done, total: int = len(listed) * (len(runs) + 1)) -> None:
            if progress is not None:
                progress(next(done), total)

        tell()
        measured = _Measured(picture, _weights(one.mask, picture), results, generated.digest)
        values = np.full((len(MEASURES), len(REGIONS), len(sites), _most_heads(sites) if heads else 1), np.nan)
        for place, site, head in runs:
            ablation = Ablation(target, site, head=head, baseline=baseline, key_grid=key_grid)
            values[:, :, place, head or 0] = measured.changes(generated, ablation, site, head, baseline)
            tell()
        found.append(values)
    attributes = {"context": sites[0].context, "baseline": baseline, "pipeline": type(pipeline).__name__}
    return _dataset(np.stack(found, axis=1), [one.name for one in listed], sites, by_head=heads, attributes=attributes)


@dataclass(frozen=True)
class _Input:
    """What one picture is made of, and where its changes are measured."""

    name: str
    arguments: Mapping[str, Any]
    seed: int
    mask: ArrayLike | None


def _listed(inputs: Any, seeds: Any, masks: Any, names: Sequence[str] | None) -> list[_Input]:
    """The inputs one by one, each with its seed and mask."""
    runs = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    of_seeds = [seeds] * len(runs) if isinstance(seeds, int) else list(seeds)
    of_masks = [None] * len(runs) if masks is None else [masks] if isinstance(inputs, Mapping) else list(masks)
    labels = [str(number) for number in range(len(runs))] if names is None else list(names)
    if not runs or not len(runs) == len(of_seeds) == len(of_masks) == len(labels):
        raise InputError(
            f"expected a seed, a mask and a name for each input, found {len(runs)} inputs, {len(of_seeds)} seeds, "
            f"{len(of_masks)} masks and {len(labels)} names"
        )
    return [_Input(*one) for one in zip(labels, runs, of_seeds, of_masks, strict=True)]


def _heads_of(site: Site, heads: bool) -> Sequence[int | None]:
    """What is taken away of a site, one at a time: its heads, or None for all of it."""
    return range(site.candidate.heads) if heads else (None,)


def _most_heads(sites: Sequence[Site]) -> int:
    return max(one.candidate.heads for one in sites)


def _dataset(
    values: NDArray[np.float64],
    names: list[str],
    sites: Sequence[Site],
    *,
    by_head: bool,
    attributes: Mapping[str, str],
) -> xr.Dataset:
    """Changes (measure, input, region, layer, head) with their labels."""
    import xarray as xr  # slow to import, and no recording needs it

    coordinates: dict[str, Any] = {"input": names, "region": list(REGIONS), "layer": [one.path for one in sites]}
    if by_head:
        coordinates["head"] = list(range(_most_heads(sites)))
    variables = {
        measure: (tuple(coordinates), of_measure, {"long_name": f"mean {measure} difference of pixels", "units": "1"})
        for measure, of_measure in zip(MEASURES, values if by_head else values[..., 0], strict=True)
    }
    return xr.Dataset(variables, coordinates, attributes)


class _Generated:
    """Makes the picture of an input, always from the same noise."""

    def __init__(self, pipeline: Any, inputs: Mapping[str, Any], seed: int) -> None:
        self._pipeline, self._inputs, self._seed = pipeline, inputs, seed
        self.digest = digest_of_inputs({**inputs, "seed of the noise": seed})

    def __call__(self) -> Picture:
        made = generate(self._pipeline, call_arguments(self._pipeline, self._inputs, steps=None, seed=self._seed))
        if not isinstance(made, PIL.Image.Image):
            raise InputError(f"{type(self._pipeline).__name__} made no picture to compare: leave output_type as it is")
        return np.asarray(made)


class _Measured:
    """Changes from the picture of an input, kept as they are measured."""

    def __init__(
        self, picture: Picture, weights: list[NDArray[np.float64] | None], kept: KeptChanges, inputs: str
    ) -> None:
        self._picture, self._weights, self._kept = picture, weights, kept
        shown = hashlib.sha256(picture.tobytes())
        for one in weights[1:]:
            shown.update(b"" if one is None else one.tobytes())
        self._facts = [inputs, shown.hexdigest()]

    def changes(
        self, generated: _Generated, ablation: Ablation, site: Site, head: int | None, baseline: str
    ) -> list[list[float]]:
        """Change by measure and region, as it was kept or by a run."""
        described = {"layer": site.path, "head": head, "context": site.context, "baseline": baseline}
        keys = [[_key([*self._facts, described, measure, region]) for region in REGIONS] for measure in MEASURES]
        wanted = [[key for key, weights in zip(row, self._weights, strict=True) if weights is not None] for row in keys]
        if not all(key in self._kept.changes for row in wanted for key in row):
            with ablation:
                picture = generated()
            for measure, row in zip(MEASURES, keys, strict=True):
                for region, key, weights in zip(REGIONS, row, self._weights, strict=True):
                    if weights is not None:
                        change = _change(picture, self._picture, weights, measure)
                        self._kept.add(key, change, **described, measure=measure, region=region)
        return [[self._kept.changes.get(key, np.nan) for key in row] for row in keys]


def _change(picture: Picture, before: Picture, weights: NDArray[np.float64], measure: str) -> float:
    """Weighted mean over the pixels of the difference of two pictures."""
    if picture.shape != before.shape:
        raise InputError(f"expected pictures of one size, found {before.shape} and {picture.shape} without a layer")
    difference = np.abs(picture.astype(np.float64) - before) / 255
    difference = difference**2 if measure == "squared" else difference
    by_pixel = difference.mean(axis=2) if difference.ndim == 3 else difference
    return float((by_pixel * weights).sum() / weights.sum())


def _weights(mask: ArrayLike | None, picture: Picture) -> list[NDArray[np.float64] | None]:
    """How far each pixel counts in each region."""
    whole = np.ones(picture.shape[:2])
    if mask is None:
        return [whole, None]
    values = np.asarray(mask, np.float64)
    if values.ndim != 2 or not values.any() or values.min() < 0 or values.max() > 1:
        raise InputError("masks: expected (row, column), bool or in [0, 1], that selects something")
    if values.shape != picture.shape[:2]:
        size = (picture.shape[1], picture.shape[0])
        scaled = PIL.Image.fromarray(values.astype(np.float32)).resize(size, PIL.Image.Resampling.BOX)
        values = np.asarray(scaled, np.float64)
    return [whole, values]


def _key(described: list[Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
