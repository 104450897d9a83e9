"""Diffusers' caches that skip attention in some steps: refused unless gaps are allowed, and then gaps are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from numpy.typing import NDArray
from support import models, transformers
from support.reading import read_scores

from attrace.recorder import record
from attrace.schemas import CaptureError

STEPS = 5
BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def first_block(_pipeline: Any) -> Any:
    return FirstBlockCacheConfig(threshold=10.0)


def pyramid(pipeline: Any) -> Any:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        spatial_attention_block_identifiers=BLOCKS,
        current_timestep_callback=lambda: pipeline.current_timestep,
    )


def faster(pipeline: Any) -> Any:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 990),
        spatial_attention_block_identifiers=BLOCKS,
        current_timestep_callback=lambda: pipeline.current_timestep,
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        tensor_format="BCHW",
    )


def taylor(_pipeline: Any) -> Any:
    return TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1)


def magnitude(_pipeline: Any) -> Any:
    return MagCacheConfig(
        threshold=10.0, max_skip_steps=2, retention_ratio=0.1, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS
    )


def run(pipeline: Any) -> NDArray[np.float64]:
    arguments: dict[str, Any] = {"prompt": "a cat", "height": 32, "width": 48, "num_inference_steps": STEPS}
    longest = transformers.TEXT_TOKENS
    return np.asarray(
        pipeline(**arguments, max_sequence_length=longest, generator=models.noise(), output_type="np").images
    )


@pytest.mark.parametrize("cache", [first_block, pyramid, faster, taylor, magnitude])
def test_skipped_attention_is_a_gap(cache: Callable[[Any], Any], tmp_path: Path) -> None:
    pipeline = transformers.flux()
    pipeline.transformer.enable_cache(cache(pipeline))
    with transformers.joint_calls(pipeline.transformer) as calls:
        expected = run(pipeline)
    with pytest.raises(CaptureError, match=r"not called in every recorded step.*allow_gaps=True"):  # noqa: SIM117
        with record(pipeline, tmp_path / "refused.zarr", strict=True):
            np.testing.assert_array_equal(run(pipeline), expected)

    with record(pipeline, tmp_path / "run.zarr", allow_gaps=True):
        np.testing.assert_array_equal(run(pipeline), expected)
    text = slice(0, transformers.TEXT_TOKENS)
    scores = read_scores(tmp_path / "run.zarr")
    gaps = 0
    for (path, _), found in scores.items():
        there = np.asarray(np.isfinite(found).any(axis=(1, 2, 3)))
        made = np.stack([call.scores()[:, text.stop :, text] for call in calls.by_path[path]])
        assert there[0]
        assert there.sum() == len(made)
        np.testing.assert_allclose(found[there], made, atol=1e-5)
        gaps += int((~there).sum())
    assert gaps > 0


def test_a_first_step_that_is_not_whole_is_told(tmp_path: Path) -> None:
    pipeline = transformers.flux()
    pipeline.transformer.enable_cache(pyramid(pipeline))
    with (
        pytest.raises(CaptureError, match="not seen to attend"),
        record(pipeline, tmp_path / "run.zarr", steps=slice(1, None)),
    ):
        run(pipeline)
