"""What every attention call of a model is by its inputs and weights, in float64: independent of how it is captured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn

from attrace.recorder import record
from attrace.schemas import Manifest, SiteClass

from .reading import read_manifest, read_scores

Scores = dict[str, list[NDArray[np.float64]]]


@contextmanager
def true_scores(denoiser: nn.Module) -> Iterator[Scores]:
    """Scores of every attention call, (row, head, query, key) for each, by the label that a trace gives it."""
    scores: Scores = defaultdict(list)
    found = {path: one for path, one in denoiser.named_modules() if hasattr(one, "to_q") and hasattr(one, "to_k")}

    def note(path: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            context = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states", kwargs.get("context"))
            pictures: list[Tensor] = []
            if isinstance(context, tuple):
                context, pictures = context
            scores[path].append(_scores(module, hidden, module.to_k, hidden if context is None else context))
            for number, (picture, to_key) in enumerate(
                zip(pictures, getattr(getattr(module, "processor", None), "to_k_ip", ()), strict=False)
            ):
                label = f"{path}.processor.to_k_ip.{number}"
                scores[label].append(_scores(module, hidden, to_key, picture.flatten(1, 2)))

        return hook

    handles = [module.register_forward_pre_hook(note(path), with_kwargs=True) for path, module in found.items()]
    try:
        yield scores
    finally:
        for handle in handles:
            handle.remove()


def _scores(module: Any, hidden: Tensor, to_key: Any, context: Tensor) -> NDArray[np.float64]:
    query = _in_float64(hidden, module.to_q, module.heads)
    key = _in_float64(context, to_key, module.heads)
    return np.asarray((query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).detach())


def _in_float64(tokens: Tensor, projection: Any, heads: int) -> Tensor:
    bias = None if projection.bias is None else projection.bias.double()
    projected: Tensor = F.linear(tokens.double(), projection.weight.double(), bias)
    split: Tensor = projected.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def check_recording(
    model: Any, denoiser: nn.Module, call: Callable[[], Any], path: Path, **options: Any
) -> dict[str, SiteClass]:
    """Run twice, recorded the second time: the same result bit for bit, and every score as it should be.

    Returns the class of each site, by its path (of several branches, the last).
    """
    expected = np.asarray(call())
    with true_scores(denoiser) as truth, record(model, path, **options):
        found = np.asarray(call())
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(expected).all()
    manifest = read_manifest(path)
    assert manifest.status == "complete"
    _compare(manifest, read_scores(path), truth)
    return {site.path: one for one in manifest.classes for site in one.sites}


def _compare(manifest: Manifest, recorded: dict[Any, NDArray[np.float64]], truth: Scores) -> None:
    assert recorded
    for (site, branch, *_), scores in recorded.items():
        row = manifest.guidance.branches.index(branch)
        exact = np.stack([step[row] for step in truth[site]])
        np.testing.assert_allclose(scores, exact, rtol=0, atol=1e-5 * np.abs(exact).max() + 1e-9)
        np.testing.assert_allclose(softmax(scores, -1), softmax(exact, -1), rtol=0, atol=1e-5)


def kinds(one: SiteClass) -> list[tuple[str, int, Any]]:
    """Kind, number and grid of the keys of a class."""
    return [(part.kind, part.count, part.grid) for part in one.key_segments]
