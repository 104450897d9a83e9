"""How much the generated picture changes without the attention of each layer or head."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
from attrace.recorder.session.target import find_target
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
        (row, column) over the picture, bool or in [0, 1], for all inputs or one for each (None where there is none):
        changes are measured inside it, too.
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
    import xarray as xr  # slow to import, and no recording needs it

    runs = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    given_masks = [None] * len(runs) if masks is None else [masks] if isinstance(inputs, Mapping) else list(masks)  # type: ignore[arg-type]
    given_seeds = [seeds] * len(runs) if isinstance(seeds, int) else list(seeds)
    labels = [str(number) for number in range(len(runs))] if names is None else list(names)
    if not runs or not len(runs) == len(given_masks) == len(given_seeds) == len(labels):
        raise InputError(
            f"expected a seed, a mask and a name for each input, found {len(runs)} inputs, {len(given_seeds)} seeds, "
            f"{len(given_masks)} masks and {len(labels)} names"
        )
    target = find_target(pipeline, profile, network, None)
    patterns = (layers,) if isinstance(layers, str) else None if layers is None else tuple(layers)
    results = KeptChanges(None if kept is None else Path(kept))
    survey: Survey | None = None
    found: list[NDArray[np.float64]] = []
    for number, (arguments, seed, mask) in enumerate(zip(runs, given_seeds, given_masks, strict=True)):
        generated = _Generated(pipeline, arguments, seed)
        with nullcontext(survey) if survey is not None else surveyed(target, patterns, key_grid) as survey:
            picture = generated()
        sites = survey.sites(context)
        measured = _Measured(picture, _weights(mask, picture), results, generated.digest)
        per_input = sum(one.candidate.heads if heads else 1 for one in sites) + 1
        done = itertools.count(number * per_input + 2)
        if progress is not None:
            progress(number * per_input + 1, len(runs) * per_input)
        values = np.full((len(MEASURES), len(REGIONS), len(sites), _most_heads(sites) if heads else 1), np.nan)
        for place, site in enumerate(sites):
            for head in range(site.candidate.heads) if heads else (None,):
                ablation = Ablation(target, site, head=head, baseline=baseline, key_grid=key_grid)
                values[:, :, place, head or 0] = measured.changes(generated, ablation, site, head, baseline)
                if progress is not None:
                    progress(next(done), len(runs) * per_input)
        found.append(values)
    dims = ("input", "region", "layer", "head") if heads else ("input", "region", "layer")
    coordinates = {"input": labels, "region": list(REGIONS), "layer": [one.path for one in sites]}
    stacked = np.stack(found, axis=1) if heads else np.stack(found, axis=1)[..., 0]
    variables = {
        name: (dims, values, {"long_name": f"mean {name} difference of pixels", "units": "1"})
        for name, values in zip(MEASURES, stacked, strict=True)
    }
    attributes = {"context": sites[0].context, "baseline": baseline, "pipeline": type(pipeline).__name__}
    coordinates |= {"head": list(range(_most_heads(sites)))} if heads else {}
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


def _most_heads(sites: Sequence[Site]) -> int:
    return max(one.candidate.heads for one in sites)


def _key(described: list[Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
