"""The token maps of `daam` are DAAM's formula, written anew from what the U-Net's modules saw."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import softmax
from support import models
from support.truth import Scores, true_scores

from attrace.analysis import open_trace
from attrace.analysis.maps import daam as daam_tool
from attrace.recorder import record
from attrace.schemas import KeySegment, Level

WIDTH = 16
DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP, UP),
}
"""Attention on 32 x 32, 16 x 16 and 8 x 8, the last of which DAAM leaves out, with the middle block."""

SD2: dict[str, Any] = {**SD15, "use_linear_projection": True, "attention_head_dim": (1, 2, 4, 4)}
"""Linear projections and heads of one width, more of them in deeper layers, as Stable Diffusion 2 has."""

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (8, 8, 8),
    "down_block_types": (DOWN, DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, UP, UP),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
}
"""Attention on 32 x 32 only; the middle block has that grid too, and DAAM leaves it out all the same."""


def daam(truth: Scores, places: list[int], side: int = 64) -> dict[str, NDArray[np.float64]]:
    """DAAM's maps of some tokens, for each layer it takes: float64 (head, row, column)."""
    maps = {}
    for path, steps in truth.items():
        queries, keys = steps[0].shape[2:]
        factor = int(math.sqrt(side * side // queries))
        if not path.startswith(("up_blocks", "down_blocks")) or not path.endswith("attn2"):
            continue
        if keys != 77 or factor == 8:
            continue
        summed = sum(softmax(step[1], axis=-1) for step in steps)  # the conditional half of the batch
        heads = torch.from_numpy(np.moveaxis(summed, 2, 1)).unflatten(2, (math.isqrt(queries),) * 2)
        resized = F.interpolate(heads, size=(side, side), mode="bicubic").clamp(min=0)
        maps[path] = resized[:, places].mean(1).numpy()
    return maps


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.supports(f"Stable Diffusion {version} (DAAM)"))
        for name, version in (("sd15", "1.5"), ("sd2", "2"), ("sdxl", "XL"))
    ],
)
def recorded(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scores, int]:
    """A trace of two calls with guidance, what its modules saw, and how many layers DAAM takes."""
    described, layers = {"sd15": (SD15, 6), "sd2": (SD2, 6), "sdxl": (SDXL, 6)}[request.param]
    unet = models.tiny_unet(cross_attention_dim=WIDTH, **described)
    for module in unet.modules():
        if hasattr(module, "to_q"):
            module.to_q.weight.data *= 8  # maps that are not even
    random, side = models.noise(), described["sample_size"]
    path = tmp_path_factory.mktemp("daam") / "run.zarr"
    options: Any = {"context": "text", "guidance": ("unconditional", "conditional"), "branch": "conditional"}
    with torch.no_grad(), true_scores(unet) as truth, record(unet, path, **options):
        for step in (500, 1):
            context = torch.randn(2, 77, WIDTH, generator=random)
            unet(torch.randn(2, 4, side, side, generator=random), step, encoder_hidden_states=context)
    return path, truth, layers


@pytest.mark.parametrize("level", ["ulam", "hlam", "llam"])
def test_daams_own_formula(recorded: tuple[Path, Scores, int], level: Level) -> None:
    path, truth, layers = recorded
    expected = daam(truth, [3, 4, 9])
    assert len(expected) == layers
    trace = open_trace(path)
    assert trace.manifest.classes[0].keys == 77
    found = daam_tool.token_map(trace, [3, 4, 9], level=level)
    if level == "ulam":
        exact = np.mean([one for maps in expected.values() for one in maps], axis=0)
    elif level == "hlam":
        heads = max(map(len, expected.values()))
        exact = np.stack([np.mean([one[n] for one in expected.values() if len(one) > n], axis=0) for n in range(heads)])
    else:
        assert set(found["layer"].values.tolist()) == set(expected)
        exact = np.stack([expected[name].mean(axis=0) for name in found["layer"].values.tolist()])
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * exact.max())
    assert found.shape[-2:] == (64, 64)


def test_normalised_by_all_words(recorded: tuple[Path, Scores, int]) -> None:
    path, truth, _ = recorded
    trace = open_trace(path)
    words = list(range(1, 6))
    of_words = [np.mean([one for maps in daam(truth, [place]).values() for one in maps], axis=0) for place in words]
    tokens = ["<|startoftext|>", *(f"{letter}</w>" for letter in "abcde"), "<|endoftext|>"]
    named = with_tokens(trace, tokens)
    found = daam_tool.token_map(named, "c", normalise=True)
    np.testing.assert_allclose(found, of_words[2] / (sum(of_words) + 1e-6), rtol=0, atol=1e-5)


def with_tokens(trace: Any, tokens: list[str]) -> Any:
    """The trace, with these tokens and padding."""
    padding = 77 - len(tokens)
    segments = (KeySegment(kind="text", count=len(tokens)), KeySegment(kind="pad", count=padding))
    update = {"tokens": (*tokens, *[""] * padding), "key_segments": segments}
    classes = tuple(one.model_copy(update=update) for one in trace.manifest.classes)
    stored = replace(trace.stored, manifest=trace.manifest.model_copy(update={"classes": classes}))
    return replace(trace, stored=stored)
