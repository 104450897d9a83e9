"""Numbers of a map and a mask, and the strongest patches, on maps whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from support.traces import make_trace, site_class

from attrace.analysis import open_trace
from attrace.analysis.maps.attribution import hlam, tlam
from attrace.analysis.maps.levels import compute_together, level_maps, mappable_directions
from attrace.analysis.maps.strongest import strongest_patches
from attrace.analysis.scores.scorecard import score_map
from attrace.schemas import InputError


def a_map(values: NDArray[np.float64], direction: str = "r2g") -> xr.DataArray:
    return xr.DataArray(values, dims=("row", "column"), attrs={"direction": direction})


def block(size: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_map_that_is_its_mask_scores_best() -> None:
    mask = block(64, 8, 16, 40, 48)
    card = score_map(a_map(mask.astype(float)), mask)
    assert (card.imacs, card.inside, card.iou) == (1, 1, 1)
    assert card.box == card.mask_box == (8, 16, 40, 48)
    assert card.area == mask.mean()
    # the published code scores the same perfect map worst
    assert card.imacs_i2am == -3


def test_a_map_beside_its_mask_scores_worst() -> None:
    mask = block(64, 0, 0, 64, 32)
    card = score_map(a_map((~mask).astype(float)), mask)
    assert (card.imacs, card.inside, card.iou) == (-3, 0, 0)


def test_an_even_map_has_as_much_inside_as_the_mask_covers() -> None:
    mask = block(32, 3, 5, 20, 29)
    values = np.ones((8, 8))
    values[0, 0] = 1 + 1e-9  # a constant map cannot be scaled
    card = score_map(a_map(values), mask)
    assert card.inside == pytest.approx(card.area)


def test_boxes_are_in_pixels_of_the_mask() -> None:
    mask = block(128, 32, 32, 96, 64)
    card = score_map(a_map(block(32, 8, 8, 24, 16).astype(float)), mask)
    assert card.box == card.mask_box == (32, 32, 96, 64)


def test_a_mask_of_other_proportions_is_refused() -> None:
    heat = a_map(np.random.default_rng(0).random((8, 8)))
    mask = block(64, 8, 8, 16, 16)
    score_map(heat, mask, picture_size=(512, 512))
    score_map(heat, mask[:48], picture_size=(383, 512))  # rounded when it was made smaller
    with pytest.raises(InputError, match=r"found 48 x 64 pixels, expected the proportions of the picture of 512 x 512"):
        score_map(heat, mask[:48], picture_size=(512, 512))


def test_the_strongest_patches_come_first_with_their_pixels(tmp_path: Path) -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    trace = open_trace(make_trace(tmp_path / "run.zarr", images={"generated": picture, "reference": picture[:20]}).path)
    values = np.zeros((4, 8))
    values[2, 5], values[0, 1], values[3, 7] = 3, 2, np.nan
    first, second = strongest_patches(trace, a_map(values), 2)
    assert first == (2, 5, (25, 55), 3.0, 0.6)
    assert second == (0, 1, (5, 15), 2.0, 0.4)
    assert strongest_patches(trace, a_map(values, "g2r"))[0].pixel == (12, 55)
    assert len(strongest_patches(trace, a_map(values), 1000)) == 31


def test_a_map_without_patches_is_refused(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr").path)
    with pytest.raises(InputError, match="no finite value"):
        strongest_patches(trace, a_map(np.full((2, 2), np.nan)))
    with pytest.raises(InputError, match="select one first"):
        strongest_patches(trace, xr.DataArray(np.zeros((2, 2, 2)), dims=("head", "row", "column")))


def test_levels_are_named_and_lazy_and_equal_to_the_single_maps(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr").path)
    lazy = level_maps(trace, levels=("tlam", "hlam"), groups=2, size=(5, 6), density=True)
    assert list(lazy) == ["tlam_r2g", "hlam_r2g", "tlam_g2r", "hlam_g2r"]
    assert all(heat.chunks for heat in lazy.values())
    computed = compute_together(lazy)
    expected = tlam(trace, groups=2, size=(5, 6), density=True).compute()
    xr.testing.assert_identical(computed["tlam_r2g"], expected)
    expected = hlam(trace, direction="g2r", size=(5, 6), density=True).compute()
    xr.testing.assert_identical(computed["hlam_g2r"], expected)


def test_a_reference_of_one_vector_has_one_direction(tmp_path: Path) -> None:
    classes = (site_class("reference/64x1h2d8", key_grid=None, cls=True),)
    trace = open_trace(make_trace(tmp_path / "run.zarr", classes).path)
    assert mappable_directions(trace) == ("r2g",)
    assert set(level_maps(trace, levels=("ulam",))) == {"ulam_r2g"}
    with pytest.raises(InputError, match="one key"):
        level_maps(trace, directions=("g2r",))


def test_a_trace_without_a_step_has_no_direction(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", steps=0).path)
    with pytest.raises(InputError, match="no finished step"):
        mappable_directions(trace)
