"""What is recorded is what the model computed: compared with probabilities formed anew in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from support import models
from support.reading import read_array, read_manifest, read_scores
from torch import Tensor, nn

from attrace.recorder import record

Expected = dict[str, list[Tensor]]


@contextmanager
def expected_scores(unet: nn.Module) -> Iterator[Expected]:
    """Scores of every cross-attention call in float64, from what the module is called with and its weights."""
    scores: Expected = defaultdict(list)

    def note(path: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, context = args[0], kwargs["encoder_hidden_states"]
            if context is None:
                return
            query, key = (
                (one.double() @ projection.weight.double().T).unflatten(-1, (module.heads, -1)).transpose(1, 2)
                for one, projection in ((hidden, module.to_q), (context, module.to_k))
            )
            scores[path].append((query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5)

        return hook

    attention = {path: module for path, module in unet.named_modules() if path.endswith("attn2")}
    handles = [module.register_forward_pre_hook(note(path), with_kwargs=True) for path, module in attention.items()]
    yield scores
    for handle in handles:
        handle.remove()


def stacked(scores: list[Tensor], row: int) -> NDArray[np.float64]:
    return torch.stack([step[row] for step in scores]).numpy()


@pytest.mark.parametrize("capture", ["hooks", "attention"])
@pytest.mark.parametrize("encoding", ["scores", "factors", "auto"])
@pytest.mark.parametrize(("width", "prompts"), [(16, ["a cat"]), (24, ["a cat", "dog", "x"])])
def test_scores_are_those_of_the_model(
    width: int, prompts: list[str], encoding: Any, capture: Any, tmp_path: Path
) -> None:
    pipeline = models.stable_diffusion()
    paths = [tmp_path / f"{prompt}.zarr" for prompt in prompts]
    with expected_scores(pipeline.unet) as expected, record(pipeline, paths, encoding=encoding, capture=capture):
        pipeline(prompts, num_inference_steps=2, height=16, width=width, generator=models.noise())
    for sample, path in enumerate(paths):
        found = read_scores(path)
        assert len(found) == 4
        for (site, branch), scores in found.items():
            assert branch == "conditional"
            truth = stacked(expected[site], len(prompts) + sample)
            np.testing.assert_allclose(scores, truth, rtol=0, atol=2e-6 * np.abs(truth).max())
            for axis in (-1, -2):
                np.testing.assert_allclose(softmax(scores, axis), softmax(truth, axis), rtol=1e-5)


def test_both_methods_see_the_same_bits(tmp_path: Path) -> None:
    pipeline = models.demo()
    for capture in ("hooks", "attention"):
        with record(pipeline, tmp_path / capture, capture=capture, branch="both"):
            pipeline(
                models.picture(64, 64), models.box_mask(64, 64), models.picture(64, 64, 1),
                num_inference_steps=2, guidance_scale=2.0, generator=models.noise(),
            )  # fmt: skip
    hooks, attention = read_scores(tmp_path / "hooks"), read_scores(tmp_path / "attention")
    assert len(hooks) == 14
    for site, scores in hooks.items():
        np.testing.assert_array_equal(scores, attention[site])
    methods = {name: read_manifest(tmp_path / name).capture["method"] for name in ("hooks", "attention")}
    assert methods == {"hooks": "hooks", "attention": "attention"}


def test_probabilities_are_those_that_diffusers_computes(tmp_path: Path) -> None:
    pipeline = models.stable_diffusion()
    path = "up_blocks.1.attentions.1.transformer_blocks.0.attn2"
    module = pipeline.unet.get_submodule(path)
    seen: list[tuple[Tensor, Tensor]] = []
    projected: dict[str, Tensor] = {}
    handles = [
        module.to_q.register_forward_hook(lambda _m, _a, output: projected.update(query=output)),
        module.to_k.register_forward_hook(lambda _m, _a, output: projected.update(key=output)),
        module.register_forward_hook(lambda *_: seen.append((projected["query"], projected["key"]))),
    ]
    with record(pipeline, tmp_path / "run.zarr", layers=path, branch="both"):
        pipeline("a cat", num_inference_steps=2, height=16, width=24, generator=models.noise())
    for handle in handles:
        handle.remove()
    found = read_scores(tmp_path / "run.zarr")
    for step, (query, key) in enumerate(seen):
        heads = (module.head_to_batch_dim(one) for one in (query, key))
        probabilities = module.get_attention_scores(*heads).unflatten(0, (2, module.heads)).numpy()
        for row, branch in enumerate(("unconditional", "conditional")):
            np.testing.assert_allclose(softmax(found[path, branch][step], -1), probabilities[row], rtol=1e-5)


def test_bfloat16_is_stored_exactly(tmp_path: Path) -> None:
    pipeline = models.stable_diffusion().to(torch.bfloat16)
    queries: list[Tensor] = []
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    module = pipeline.unet.get_submodule(path)
    handle = module.to_q.register_forward_hook(lambda _m, _a, output: queries.append(output))
    with record(pipeline, tmp_path / "run.zarr", layers=path, encoding="factors", steps=[1]):
        pipeline("a cat", num_inference_steps=2, height=16, width=16, generator=models.noise())
    handle.remove()
    stored = read_array(tmp_path / "run.zarr", "text/64x16h2d8/query_vector")
    assert stored.dtype == np.float32
    truth = queries[1][1].float().unflatten(-1, (2, 8)).transpose(0, 1)
    np.testing.assert_array_equal(stored[0, 0], truth.numpy())


def test_what_the_model_changes_in_place_later_is_recorded_as_it_was(tmp_path: Path) -> None:
    pipeline = models.stable_diffusion()
    call = {"num_inference_steps": 2, "height": 16, "width": 16}
    with record(pipeline, tmp_path / "before.zarr", encoding="factors", steps=[0]):
        pipeline("a cat", generator=models.noise(), **call)
    for path, module in pipeline.unet.named_modules():
        if path.endswith("attn2"):
            queries: list[Tensor] = []
            module.to_q.register_forward_hook(lambda _m, _a, output, kept=queries: kept.append(output))
            module.register_forward_hook(lambda *_, kept=queries: [one.zero_() for one in kept] and None)
    with record(pipeline, tmp_path / "after.zarr", encoding="factors", steps=[0]):
        pipeline("a cat", generator=models.noise(), **call)
    first, second = read_scores(tmp_path / "before.zarr"), read_scores(tmp_path / "after.zarr")
    for site, scores in first.items():
        np.testing.assert_array_equal(second[site], scores)
        assert np.abs(scores).max() > 0
