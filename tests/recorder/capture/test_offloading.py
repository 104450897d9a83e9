"""Weights that are elsewhere until they are needed, or kept in a smaller type: recorded as the whole model would be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from numpy.typing import NDArray
from support import models, transformers
from support.reading import read_manifest, read_scores
from torch import nn

from attrace.recorder import record

CPU = torch.device("cpu")

Change = Callable[[Any, Any, Path], None]
"""What is done to a pipeline and its denoiser; the folder is for what goes to disk."""


def offload_sequentially(_pipeline: Any, denoiser: Any, _folder: Path) -> None:
    """As `enable_sequential_cpu_offload`: between calls the weights are on no device."""
    accelerate.cpu_offload(denoiser, CPU)


def offload_groups(_pipeline: Any, denoiser: Any, _folder: Path, **options: Any) -> None:
    apply_group_offloading(denoiser, onload_device=CPU, offload_device=CPU, **options)


def offload_leaves(pipeline: Any, denoiser: Any, folder: Path) -> None:
    offload_groups(pipeline, denoiser, folder, offload_type="leaf_level")


def offload_blocks(pipeline: Any, denoiser: Any, folder: Path) -> None:
    offload_groups(pipeline, denoiser, folder, offload_type="block_level", num_blocks_per_group=1)


def offload_to_disk(pipeline: Any, denoiser: Any, folder: Path) -> None:
    offload_groups(pipeline, denoiser, folder, offload_type="leaf_level", offload_to_disk_path=str(folder / "weights"))


def offload_models(pipeline: Any, _denoiser: Any, _folder: Path) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


def make_smaller(_pipeline: Any, denoiser: Any, _folder: Path) -> None:
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def quantise_by_torch(_pipeline: Any, denoiser: Any, _folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have everybody use torchao
        torch.ao.quantization.quantize_dynamic(denoiser, {nn.Linear}, inplace=True)


def quantise_by_torchao(_pipeline: Any, denoiser: Any, _folder: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torchao.quantize_(denoiser, torchao.Int8WeightOnlyConfig())


def quantise_by_bitsandbytes(_pipeline: Any, denoiser: Any, _folder: Path) -> None:
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    for path, module in list(denoiser.named_modules()):
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in ("to_q", "to_k", "add_q_proj", "add_k_proj"):
            small = library.nn.Linear4bit(
                module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=torch.float32
            )
            small.load_state_dict(module.state_dict())
            denoiser.set_submodule(path, small.to(CPU))


OFFLOADED = [offload_sequentially, offload_leaves, offload_blocks, offload_to_disk, offload_models]
SMALLER = [make_smaller, quantise_by_torch, quantise_by_torchao, quantise_by_bitsandbytes]
PIPELINES: list[Callable[[], Any]] = [models.stable_diffusion, transformers.flux]


def run(pipeline: Any) -> NDArray[np.float64]:
    longest = {"max_sequence_length": transformers.TEXT_TOKENS} if hasattr(pipeline, "text_encoder_2") else {}
    size = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "np"}
    return np.asarray(pipeline(prompt="a cat", generator=models.noise(), **size, **longest).images)


def recorded(pipeline: Any, path: Path, **options: Any) -> dict[Any, NDArray[np.float64]]:
    """The scores of a run; its result is that of a run without a recording, bit for bit."""
    expected = run(pipeline)
    with record(pipeline, path, **options):
        found = run(pipeline)
    np.testing.assert_array_equal(found, expected)
    manifest = read_manifest(path)
    assert (manifest.status, manifest.device, manifest.model_dtype) == ("complete", "cpu", "float32")
    return read_scores(path)


@pytest.mark.parametrize("make", PIPELINES)
@pytest.mark.parametrize("change", OFFLOADED)
def test_offloaded_weights(make: Callable[[], Any], change: Change, tmp_path: Path) -> None:
    whole = recorded(make(), tmp_path / "whole.zarr")
    pipeline = make()
    change(pipeline, getattr(pipeline, "unet", None) or pipeline.transformer, tmp_path)
    found = recorded(pipeline, tmp_path / "offloaded.zarr")
    assert found.keys() == whole.keys()
    for site, scores in whole.items():
        # what comes from disk lies elsewhere in memory, where kernels round in another way
        np.testing.assert_allclose(found[site], scores, rtol=0, atol=5e-6)


@pytest.mark.parametrize("change", SMALLER)
def test_smaller_weights_of_a_unet(change: Change, tmp_path: Path) -> None:
    pipeline = models.stable_diffusion()
    change(pipeline, pipeline.unet, tmp_path)
    # what the projections gave is what the attention call was made with
    hooked = recorded(pipeline, tmp_path / "hooks.zarr", capture="hooks")
    seen = recorded(pipeline, tmp_path / "attention.zarr", capture="attention")
    assert hooked.keys() == seen.keys()
    for site, scores in seen.items():
        np.testing.assert_array_equal(hooked[site], scores)


@pytest.mark.parametrize("change", SMALLER)
def test_smaller_weights_of_a_transformer(change: Change, tmp_path: Path) -> None:
    pipeline = transformers.flux()
    change(pipeline, pipeline.transformer, tmp_path)
    with transformers.joint_calls(pipeline.transformer) as calls:
        run(pipeline)
    text = slice(0, transformers.TEXT_TOKENS)
    for (path, _), scores in recorded(pipeline, tmp_path / "run.zarr").items():
        for step, call in enumerate(calls.by_path[path]):
            exact = call.scores()[:, text.stop :, text]
            np.testing.assert_allclose(scores[step], exact, atol=1e-5)
