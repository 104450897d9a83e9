"""Matches of two pictures are where the truth is, and nothing is said where there are too few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.traces import make_trace, site_class

from attrace.analysis import Trace, correspondence, match_pictures, open_trace, pck, score_trace
from attrace.analysis.scores.matches import LEAST, Matches, matches_on_grid
from attrace.schemas import InputError

transform = pytest.importorskip("skimage.transform", reason="scikit-image is an extra")

ANGLE, SCALE, MOVED = 0.3, 0.8, (40.0, 20.0)
CLASSES = (site_class(query_grid=(16, 16), key_grid=(8, 8), group="reference/256x64h2d8"),)


def scene(side: int = 192, shapes: int = 140) -> NDArray[np.uint8]:
    """Overlapping boxes of many colours and sizes: corners enough for SIFT."""
    random = np.random.default_rng(3)
    pixels = np.full((side, side, 3), 90, np.uint8)
    for _ in range(shapes):
        top, left = random.integers(0, side - 8, 2)
        height, width = random.integers(6, 40, 2)
        pixels[top : top + height, left : left + width] = random.integers(0, 256, 3)
    return pixels


def warped(reference: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The reference turned, made smaller and moved; and the place in it of each pixel, as shares."""
    to_scene = transform.SimilarityTransform(scale=SCALE, rotation=ANGLE, translation=MOVED)
    picture = transform.warp(reference, to_scene.inverse, cval=0.4, preserve_range=True).astype(np.uint8)
    rows, columns = np.mgrid[: len(reference), : len(reference)]
    source = to_scene.inverse(np.column_stack([columns.ravel(), rows.ravel()]))[:, ::-1]
    return picture, ((source + 0.5) / len(reference)).reshape(*rows.shape, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, NDArray[np.float64]]:
    reference = scene()
    generated, places = warped(reference)
    images = {"generated": generated, "reference": reference}
    path = make_trace(tmp_path_factory.mktemp("matches") / "run.zarr", CLASSES, images=images).path
    return open_trace(path), places


def test_matches_lie_where_the_reference_was_laid(made: tuple[Trace, NDArray[np.float64]]) -> None:
    trace, places = made
    matches = match_pictures(trace)
    assert len(matches) >= 4 * LEAST
    pixels = (matches.generated * places.shape[:2]).astype(int)
    errors = np.linalg.norm(places[tuple(pixels.T)] - matches.reference, axis=1)
    assert np.median(errors) < 0.005
    assert errors.max() < 0.05


def test_scores_take_matches_for_the_truth(made: tuple[Trace, NDArray[np.float64]]) -> None:
    trace, _ = made
    matches = match_pictures(trace)
    scores = score_trace(trace, places=matches)
    found, truth = correspondence(trace).values, matches_on_grid(matches, (16, 16), (8, 8))
    distances = np.linalg.norm(found - truth, axis=-1)
    known = ~np.isnan(truth[..., 0])
    np.testing.assert_allclose(scores["correspondence_error"], [np.median(one[known]) for one in distances])
    np.testing.assert_allclose(scores["pck"], [(one[known] <= 0.8).mean() for one in distances])
    assert scores.attrs["matches"] == len(matches)
    wide = pck(correspondence(trace), truth, within=1.5)
    assert (wide == 1).all()


def test_a_patch_has_the_mean_of_its_matches() -> None:
    at = np.array([[0.1, 0.1], [0.2, 0.2], [0.9, 1.0]])
    matches = Matches(at, np.array([[0.5, 0.25], [0.5, 0.75], [0.0, 1.0]]))
    truth = matches_on_grid(matches, (2, 2), (4, 4))
    np.testing.assert_allclose(truth[0, 0], [1.5, 1.5])
    np.testing.assert_allclose(truth[1, 1], [-0.5, 3.5])
    assert np.isnan(truth[0, 1]).all()


@pytest.mark.parametrize("generated", [np.zeros((64, 64, 3), np.uint8), scene(192, 90)[::-1, :, ::-1]])
def test_too_few_matches_are_told(tmp_path: Path, generated: NDArray[np.uint8]) -> None:
    images = {"generated": generated, "reference": scene()}
    trace = open_trace(make_trace(tmp_path / "run.zarr", CLASSES, images=images).path)
    with pytest.raises(InputError, match=r"\d points of the generated picture match .* expected 8 at least"):
        match_pictures(trace)


def test_points_outside_the_mask_do_not_count(made: tuple[Trace, NDArray[np.float64]], tmp_path: Path) -> None:
    trace, _ = made
    mask = np.zeros((96, 96), np.uint8)
    mask[:, :48] = 255
    images = {name: trace.images[name].values for name in ("generated", "reference")}
    part = open_trace(make_trace(tmp_path / "run.zarr", CLASSES, images=images | {"mask": mask}).path)
    assert (match_pictures(part).generated[:, 1] < 0.51).all()


def test_a_trace_without_its_pictures_is_refused(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", images={"reference": scene()}).path)
    with pytest.raises(InputError, match="it holds no generated"):
        match_pictures(trace)
