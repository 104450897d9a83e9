"""Scores of maps and pictures against cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from numpy.typing import ArrayLike

from attrace.analysis import agreement, correspondence_error, drift, effective_tokens, entropy, mass, psnr, ssim
from attrace.analysis.scores.measures import centre_of_mass
from attrace.schemas import InputError


def maps(values: ArrayLike, *dims: str) -> xr.DataArray:
    return xr.DataArray(np.asarray(values, float), dims=(*dims, "row", "column"))


def test_mass_is_the_share_inside() -> None:
    heat, mask = maps([[3, 1], [4, 2]]), np.array([[True, False], [False, False]])
    assert float(mass(heat, mask)) == pytest.approx(0.3)


def test_entropy_counts_the_cells_that_share_evenly() -> None:
    one, even = maps([[0, 5], [0, 0]]), maps([[2, 2], [2, 2]])
    assert (float(entropy(one)), float(effective_tokens(one))) == (0, 1)
    assert float(entropy(even)) == pytest.approx(math.log(4))
    assert float(effective_tokens(maps([[1, 1], [0, 0]]))) == pytest.approx(2)


def test_agreement_is_one_for_equal_maps_and_zero_for_separate_ones() -> None:
    first, second = [[1, 0]], [[0, 1]]
    assert float(agreement(maps([first, first], "head"), "head")) == pytest.approx(1)
    assert float(agreement(maps([first, second], "head"), "head")) == pytest.approx(0)
    # pairs: one equal, two separate
    assert float(agreement(maps([first, first, second], "head"), "head")) == pytest.approx(1 / 3)
    # H(3/4, 1/4) - (H(1, 0) + H(1/2, 1/2)) / 2 = 0.8113 - 0.5 bits
    assert float(agreement(maps([first, [[1, 1]]], "head"), "head")) == pytest.approx(1 - 0.3112781, abs=1e-6)


def test_agreement_leaves_the_other_dimensions() -> None:
    values = maps(np.ones((3, 2, 1, 2)), "time_group", "head")
    assert agreement(values, "head").dims == ("time_group",)


def test_drift_is_the_mean_distance_of_the_centres() -> None:
    moving = maps([[[1, 0, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 1, 0]]], "time_group")
    assert centre_of_mass(moving).isel(time_group=0).values.tolist() == [0.5, 0.125]
    assert float(drift(moving)) == pytest.approx(0.25)  # half the width, then nothing


def test_correspondence_error_is_a_median_over_known_places() -> None:
    found = xr.DataArray(np.zeros((1, 1, 4, 2)), dims=("layer", "query_row", "query_column", "axis"))
    truth = np.array([[[3, 4], [0, 1], [0, 0], [np.nan, np.nan]]])
    assert correspondence_error(found, truth).values.tolist() == [1]
    with pytest.raises(InputError, match="truth: expected the shape"):
        correspondence_error(found, np.zeros((4, 2)))


def test_psnr_and_ssim_of_pictures() -> None:
    truth = np.zeros((8, 8), np.uint8)
    picture = truth.copy()
    picture[0, 0] = 255
    assert psnr(picture, truth) == pytest.approx(10 * math.log10(64))
    mask = np.ones((8, 8), bool)
    mask[0, 0] = False
    assert psnr(picture, truth, mask=mask) == math.inf
    with pytest.raises(InputError, match="two uint8 pictures of one shape"):
        psnr(picture.astype(float), truth)


def test_ssim_of_even_pictures() -> None:
    pytest.importorskip("skimage")
    black, white = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    constant = (0.01 * 255) ** 2
    assert ssim(white, white) == pytest.approx(1)
    assert ssim(black, white) == pytest.approx(constant / (255**2 + constant))


def test_a_map_without_attention_has_no_scores() -> None:
    zero = maps([[0, 0]])
    assert np.isnan([entropy(zero), mass(zero, np.array([[True, False]])), *centre_of_mass(zero)]).all()


def refuse_to_compute(*_: Any, **__: Any) -> None:
    raise AssertionError("computed")


def test_nothing_is_computed_before_it_is_asked() -> None:
    lazy = maps(np.ones((4, 3, 2)), "head").chunk(head=1)
    with dask.config.set(scheduler=refuse_to_compute):
        scores = [entropy(lazy), agreement(lazy, "head"), drift(lazy, "head"), mass(lazy, np.eye(3, 2, dtype=bool))]
    assert float(scores[1]) == pytest.approx(1)


def test_one_map_agrees_with_nothing() -> None:
    with pytest.raises(InputError, match="two maps or more along 'head'"):
        agreement(maps([[[1]]], "head"), "head")
    with pytest.raises(InputError, match="two maps or more along 'time_group'"):
        drift(maps([[1]]))
