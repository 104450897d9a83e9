"""Small traces with known content, written through the recorder's store: what the analysis tests read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.schemas import KeySegment, Manifest, ModelIdentity, Site, SiteClass


@dataclass
class MadeTrace:
    """A trace on disk and, in float64, the scores it was made from."""

    path: Path
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """By group: (time, layer, head, query, key)."""
    classes: dict[str, SiteClass] = field(default_factory=dict)
    """By group."""


def site_class(
    group: str = "reference/64x16h2d8",
    *,
    encoding: str = "factors",
    heads: int = 2,
    query_grid: tuple[int, int] = (8, 8),
    key_grid: tuple[int, int] | None = (4, 4),
    cls: bool = False,
    features: int = 8,
    layers: tuple[str, ...] = ("down.0.attn2", "up.0.attn2"),
    first_order: int = 0,
    dtype: str = "float32",
    **members: Any,
) -> SiteClass:
    """A class of sites whose keys are patches on a grid, after an optional class token."""
    segments = [KeySegment(kind="cls", count=1)] if cls else []
    if key_grid is not None:
        segments.append(KeySegment(kind="patch", count=key_grid[0] * key_grid[1], grid=key_grid))
    sites = tuple(Site(path=path, order=first_order + order, module="Attention") for order, path in enumerate(layers))
    described: dict[str, Any] = {
        "group": group,
        "context": group.partition("/")[0],
        "encoding": encoding,
        "dtype": dtype,
        "heads": heads,
        "queries": query_grid[0] * query_grid[1],
        "keys": sum(segment.count for segment in segments),
        "features": features,
        "scale": features**-0.5,
        "query_grid": query_grid,
        "key_segments": tuple(segments),
        "sites": sites,
    }
    return SiteClass(**(described | members))


def make_trace(
    path: Path,
    classes: tuple[SiteClass, ...] = (),
    *,
    steps: int = 3,
    seed: int = 0,
    spread: float = 1.0,
    static_keys: bool = True,
    images: dict[str, NDArray[np.uint8]] | None = None,
    status: str | None = "complete",
    **members: Any,
) -> MadeTrace:
    """Write a trace of random queries and keys; `status=None` leaves it unclosed, as a killed recorder would."""
    random = np.random.default_rng(seed)
    classes = classes or (site_class(),)
    manifest = Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made"), **members)
    store = TraceStore(path, manifest, steps=steps)
    store.add_classes(classes)
    made = MadeTrace(path, classes={one.group: one for one in classes})
    factors = {one.group: _factors(one, steps, random, spread, static_keys) for one in classes}
    for one in classes:
        query, key = (part.astype(np.float64) for part in factors[one.group])
        made.scores[one.group] = one.scale * np.einsum("tlhqf,tlhkf->tlhqk", query, key)
    for step in range(steps):
        for one in classes:
            query, key = factors[one.group]
            for layer in range(len(one.sites)):
                place = {"step": step, "layer": layer}
                if one.encoding == "scores":
                    values = made.scores[one.group][step, layer].astype(one.dtype)
                    store.write(one.group, "scores", values=values, **place)
                    made.scores[one.group][step, layer] = values
                    continue
                store.write(one.group, "query_vector", values=query[step, layer], **place)
                stored = 0 if static_keys else step
                if stored == step:
                    store.write(one.group, "key_vector", values=key[step, layer], **place)
                store.write(one.group, "key_step", values=np.int32(stored), **place)
        store.finish_step(step, call=step, timestep=float(1000 - 100 * step))
    for name, image in (images or {}).items():
        store.write_image(name, image)
    if status is not None:
        store.close(status)  # type: ignore[arg-type]
    return made


def _factors(
    one: SiteClass, steps: int, random: np.random.Generator, spread: float, static_keys: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    shape = (steps, len(one.sites), one.heads)
    query = random.normal(size=(*shape, one.queries, one.features)) * spread
    key = random.normal(size=(*shape, one.keys, one.features)) * spread
    if static_keys:
        key[:] = key[:1]
    return query.astype(one.dtype), key.astype(one.dtype)
