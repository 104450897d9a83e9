"""The tokens of an IP-Adapter Plus of diffusers laid on the patches of its picture, from what its modules saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from support import models
from support.adapters import add_ip_adapter
from support.truth import Scores, true_scores

from attrace.analysis import Trace, llam, open_trace, ulam
from attrace.recorder import record

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PATCHES, TOKENS = slice(1, 257), slice(257, None)
LAYER = "encoder_hid_proj.image_projection_layers.0.layers.{}.attn"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Scores]:
    """A trace of two steps with guidance, and the scores of every attention module."""
    pipeline, path = models.stable_diffusion(), tmp_path_factory.mktemp("plus") / "run.zarr"
    embeddings = add_ip_adapter(pipeline.unet, 16)
    for name, weight in pipeline.unet.named_parameters():
        if name.endswith(("to_q.weight", "to_k_ip.0.weight")):
            weight.data *= 6  # maps that are not even
    with torch.no_grad(), true_scores(pipeline.unet) as truth, record(pipeline, path):
        pipeline(
            prompt="a cat", height=16, width=24, num_inference_steps=2, generator=models.noise(),
            ip_adapter_image_embeds=[embeddings], output_type="latent",
        )  # fmt: skip
    return open_trace(path).sel(context="image-prompt"), truth


def expected(truth: Scores, how: str) -> dict[str, NDArray[np.float64]]:
    """Map of each layer of the U-Net: (head, row, column), of the conditional row of the batch."""
    maps = {}
    for path, steps in truth.items():
        if not path.endswith("to_k_ip.0"):
            continue
        made = []
        for step, scores in enumerate(steps):
            first, last = (softmax(truth[LAYER.format(layer)][step][1], axis=-1).mean(axis=0) for layer in (0, 1))
            shares = last[:, PATCHES]
            if how == "rollout":
                before = first[:, PATCHES] / 2
                shares = (last[:, PATCHES] + last[:, TOKENS] @ before) / 2 + before / 2
            made.append(softmax(scores[1], axis=-1).mean(axis=1) @ shares)
        maps[path] = np.mean(made, axis=0).reshape(-1, 16, 16)
    return maps


@pytest.mark.supports("IP-Adapter, SD 1.5")
@pytest.mark.parametrize("how", ["last", "rollout"])
def test_tokens_lie_on_the_patches_they_were_made_of(recorded: tuple[Trace, Scores], how: str) -> None:
    trace, truth = recorded
    exact = expected(truth, how)
    assert len(exact) == 4
    found = ulam(trace, direction="g2r", resampler=how, density=False)  # type: ignore[arg-type]
    assert found.shape == (16, 16)
    unified = np.mean([head for maps in exact.values() for head in maps], axis=0)
    np.testing.assert_allclose(found, unified, rtol=0, atol=1e-5 * unified.max())
    by_layer = llam(trace, direction="g2r", resampler=how, density=False)  # type: ignore[arg-type]
    layers = np.stack([exact[path].mean(axis=0) for path in by_layer["layer"].values.tolist()])
    np.testing.assert_allclose(by_layer, layers, rtol=0, atol=1e-5 * layers.max())
    assert unified.max() > 1.5 * unified.mean()
