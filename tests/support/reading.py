"""Reading a trace with plain zarr: what the recorder's tests compare with, independent of the analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attrace.schemas import Manifest, SiteClass, parse_manifest


def read_manifest(path: Path) -> Manifest:
    return parse_manifest(_root(path).attrs["attrace"], where=str(path))


def read_array(path: Path, name: str) -> NDArray[Any]:
    array = _root(path)[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[...])


def read_scores(path: Path) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Scores by (module path, branch): float64 (time, head, query, key) over the finished steps; NaN where missing."""
    scores = {}
    for one in read_manifest(path).classes:
        for layer, site in enumerate(one.sites):
            scores[site.path, one.branch] = read_class_scores(path, one, layer)
    return scores


def read_class_scores(path: Path, one: SiteClass, layer: int) -> NDArray[np.float64]:
    """Scores of one site of a class, as those of `read_scores`."""
    done = read_array(path, "step_done") == 1
    if one.encoding == "scores":
        return np.asarray(read_array(path, f"{one.group}/scores")[done, layer], np.float64)
    query = read_array(path, f"{one.group}/query_vector")[done, layer].astype(np.float64)
    steps = read_array(path, f"{one.group}/key_step")[done, layer]
    key = read_array(path, f"{one.group}/key_vector")[steps, layer].astype(np.float64)
    scores = one.scale * np.einsum("thqf,thkf->thqk", query, key)
    if one.has_bias:
        scores = scores + read_array(path, f"{one.group}/bias")[done, layer][:, None, None, :]
    return np.where((steps < 0)[:, None, None, None], np.nan, scores)


def _root(path: Path) -> zarr.Group:
    return zarr.open_group(path, mode="r")
