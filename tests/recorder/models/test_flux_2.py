"""Flux 2 Klein: guidance that calls the denoiser for each branch, and references whose keys are kept over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import Flux2KleinKVPipeline
from numpy.typing import NDArray
from scipy.special import logsumexp
from support import models, text_pipelines, transformers
from support.reading import read_array, read_class_scores, read_manifest

from attrace.recorder import LabelWarning, record
from attrace.schemas import CaptureError

ROWS, COLUMNS = 4, 6
"""Patches of the picture that is generated."""
TEXT = slice(0, 512)
QUERIES = slice(TEXT.stop, TEXT.stop + ROWS * COLUMNS)
REFERENCE = slice(QUERIES.stop, None)


def paint(pipeline: Any, **arguments: Any) -> NDArray[np.float64]:
    size = {"height": 8 * ROWS, "width": 8 * COLUMNS, "num_inference_steps": 2, "output_type": "np"}
    return np.asarray(pipeline(prompt="a cat", generator=models.noise(), **size, **arguments).images)


@pytest.mark.supports("Flux 2")
@pytest.mark.parametrize("is_distilled", [False, True])
def test_klein(is_distilled: bool, tmp_path: Path) -> None:
    pipeline, path = text_pipelines.flux_2_klein(is_distilled=is_distilled), tmp_path / "run.zarr"
    picture = models.picture(64, 96)
    expected = paint(pipeline, image=picture)
    with (
        transformers.joint_calls(pipeline.transformer) as calls,
        record(pipeline, path, branch="both", context=("reference", "text")),
    ):
        found = paint(pipeline, image=picture)
    np.testing.assert_array_equal(found, expected)
    manifest = read_manifest(path)
    branches = ("conditional",) if is_distilled else ("conditional", "unconditional")
    assert (manifest.steps, manifest.guidance.branches, manifest.capture["warnings"]) == (2, branches, [])
    assert {(one.context, one.branch) for one in manifest.classes} == {
        (context, branch) for context in ("reference", "text") for branch in branches
    }
    for one in manifest.classes:
        assert one.query_grid == (ROWS, COLUMNS)
        assert one.key_segments[0].grid == ((8, 12) if one.context == "reference" else None)
        for layer, site in enumerate(one.sites):
            for step in range(2):
                call = calls.by_path[site.path][step * len(branches) + branches.index(one.branch)]
                whole = call.scores()[:, QUERIES]
                part = whole[..., REFERENCE if one.context == "reference" else TEXT]
                np.testing.assert_allclose(read_class_scores(path, one, layer)[step], part, atol=1e-5)
                lse = read_array(path, f"{one.group}/lse")[step, layer]
                np.testing.assert_allclose(lse, logsumexp(whole, axis=-1), atol=2e-6)


def test_references_whose_keys_are_kept_are_refused(tmp_path: Path) -> None:
    pipeline = text_pipelines.flux_2_klein(is_distilled=True, pipeline=Flux2KleinKVPipeline)
    with (
        pytest.raises(CaptureError, match=r"attends with .* queries to .* keys"),
        record(pipeline, tmp_path / "run.zarr"),
    ):
        paint(pipeline, image=models.picture(64, 96))
    with pytest.warns(LabelWarning, match="nothing is known of Flux2KleinKVPipeline"), record(pipeline, tmp_path / "t"):
        paint(pipeline)
    assert [(one.context, one.tokens) for one in read_manifest(tmp_path / "t").classes] == [("text", None)]
