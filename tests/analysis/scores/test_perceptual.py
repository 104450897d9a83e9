"""LPIPS, FID and KID: what is missing is said, and where the libraries are the numbers are those of the formulas."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg
from support.traces import make_trace

from attrace.analysis import open_trace
from attrace.analysis.explorer.compare_page import compare_page
from attrace.analysis.scores import perceptual as measured
from attrace.analysis.scores.perceptual import ALEXNET, INCEPTION, PictureSets, lpips, set_distance
from attrace.analysis.scores.trace_scores import score_table, score_trace
from attrace.analysis.studies.compare import compare
from attrace.schemas import InputError

LIBRARIES = ("torch", "torchmetrics", "torchvision", "torch_fidelity")


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} not installed: torchvision has no wheel beside the tested torch"
    )


needs_all = needs(*LIBRARIES)
needs_metrics = needs("torch", "torchmetrics")


def pictures(seed: int, count: int, shift: int = 0) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return [random.integers(shift, 128 + shift, (64, 48, 3)).astype(np.uint8) for _ in range(count)]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty folder where torch would keep weights; networks are made anew."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for network in (measured._lpips_network, measured._inception):
        network.cache_clear()
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("missing", ["torch", "torchmetrics", "torchvision"])
def test_a_missing_library_is_one_clear_error(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "find_spec", lambda name: None if name == missing else "there")
    one = pictures(0, 1)[0]
    with pytest.raises(
        InputError, match=rf'{missing} must be installed for LPIPS: pip install "attrace\[perceptual\]"'
    ):
        lpips(one, one)
    if missing != "torchvision":
        with pytest.raises(InputError, match=f"{missing} must be installed for FID and KID"):
            PictureSets()


@needs("torch")
def test_missing_weights_are_named_and_not_downloaded(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    monkeypatch.setattr(measured, "find_spec", lambda _: "there")
    one = pictures(0, 1)[0]
    with pytest.raises(InputError) as error:
        lpips(one, one)
    assert str(hub / ALEXNET) in str(error.value)
    assert f"https://download.pytorch.org/models/{ALEXNET}" in str(error.value)
    with pytest.raises(InputError) as error:
        PictureSets()
    assert str(hub / INCEPTION) in str(error.value)
    assert not hub.exists()


def scored_trace(path: Path, seed: int = 0, truth: bool = True) -> Path:
    generated, true = pictures(seed, 2)
    images = {"generated": generated, **({"truth": true} if truth else {})}
    return make_trace(path, images=images, image_size=(64, 48)).path


def test_a_trace_without_a_true_picture_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrace.analysis.scores.trace_scores.require_lpips", lambda: None)
    trace = open_trace(scored_trace(tmp_path / "run.zarr", truth=False))
    with pytest.raises(InputError, match=r"LPIPS needs its generated picture and a true one \(--truth\)"):
        score_trace(trace, {}, perceptual=True)


def test_lpips_is_a_score_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrace.analysis.scores.trace_scores.require_lpips", lambda: None)
    monkeypatch.setattr("attrace.analysis.scores.trace_scores.lpips", lambda *_: 0.25)
    trace = open_trace(scored_trace(tmp_path / "run.zarr"))
    rows = {row.score: row for row in score_table(score_trace(trace, {}, perceptual=True))}
    assert (rows["lpips"].value, rows["lpips"].of, rows["lpips"].better) == (0.25, "generated", "lower")
    assert "lpips" not in score_trace(trace, {})


def mean_colours(batch: Any) -> Any:
    """Six features that need no weights: the mean and the mean square of each channel."""
    import torch

    values = batch.float() / 255
    return torch.cat([values.mean((2, 3)), values.pow(2).mean((2, 3))], dim=1)


def features_of(several: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    values = np.stack(several).astype(np.float64) / 255
    return np.concatenate([values.mean((1, 2)), (values**2).mean((1, 2))], axis=1)


@needs_metrics
def test_fid_and_kid_are_those_of_their_formulas() -> None:
    generated, true = pictures(0, 9, shift=20), pictures(1, 9)
    sets = PictureSets(mean_colours)
    for pair in zip(generated, true, strict=True):
        sets.add(*pair)
    found = sets.distance()
    first, second = features_of(generated), features_of(true)
    covariances = [np.cov(one, rowvar=False) for one in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    assert found.fid == pytest.approx(means + np.trace(sum(covariances) - 2 * root), rel=1e-3)
    kernels = [(one @ other.T / 6 + 1) ** 3 for one, other in ((first, first), (second, second), (first, second))]
    unbiased = sum((kernel.sum() - np.trace(kernel)) / (9 * 8) for kernel in kernels[:2])
    assert found.kid == pytest.approx(unbiased - 2 * kernels[2].mean(), rel=1e-3)
    assert found.pictures == 9
    assert found.kid_deviation == pytest.approx(0, abs=1e-6)


@needs_metrics
def test_equal_sets_have_no_distance_and_one_picture_is_no_set() -> None:
    sets = PictureSets(mean_colours)
    sets.add(pictures(0, 1)[0], pictures(0, 1)[0])
    with pytest.raises(InputError, match="two pictures or more, found 1"):
        sets.distance()
    for one in pictures(1, 4):
        sets.add(one[..., 0], one[..., 0])  # a grey one counts as grey
    found = sets.distance()
    assert found.fid == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="of 1 or 3 channels"):
        sets.add(np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8))


@needs_metrics
def test_a_comparison_tells_the_distances_of_both_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_inception", lambda: mean_colours)
    for side in ("a", "b"):
        for number in range(3):
            scored_trace(tmp_path / side / f"{number}.zarr", seed=10 * (side == "b") + number)
    made = compare(tmp_path / "a", tmp_path / "b", sets=True)
    expected = {side: set_distance(map(str, sorted((tmp_path / side).glob("*.zarr")))) for side in ("a", "b")}
    assert made.sets == expected
    assert made.sets["a"].fid != made.sets["b"].fid
    assert "Sets of pictures" in compare_page(made, ("one", "two"), paired_by="name")
    lacking = scored_trace(tmp_path / "c" / "0.zarr", truth=False)
    with pytest.raises(InputError, match=f"{lacking}.*`generated` and `truth`"):
        set_distance([str(lacking)])


@pytest.fixture
def random_weights(hub: Path) -> None:
    """Files of weights as torchvision and torch-fidelity lay them out, with random numbers in them."""
    import torch
    import torch_fidelity.feature_extractor_inceptionv3 as fidelity
    from torchvision.models import alexnet

    hub.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), hub / ALEXNET)
    made: Any = fidelity.FeatureExtractorInceptionV3.__new__(fidelity.FeatureExtractorInceptionV3)
    loaded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: loaded.append(True))
        patch.setattr(type(made), "load_state_dict", lambda *_, **__: None)
        made.__init__("inception-v3-compat", ["2048"])
    assert loaded
    torch.save(made.state_dict(), hub / INCEPTION)


@needs_all
@pytest.mark.usefixtures("random_weights")
def test_the_files_are_read_where_they_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def no_download(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    one, other = pictures(0, 2)
    assert lpips(one, one) == 0
    assert lpips(one, other) > 0.01
    sets = PictureSets()
    for pair in zip(pictures(0, 3), pictures(1, 3, shift=60), strict=True):
        sets.add(*pair)
    assert sets.distance().fid > 0
