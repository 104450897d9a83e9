"""Masks become weights by area; kinds and places of keys are found; what selects nothing is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings, strategies as st
from support.traces import site_class

from attrace.analysis.maps.masks import area_matrix, as_mask, coverage, key_weights, query_weights, read_mask
from attrace.analysis.trace.key_segments import picture_keys
from attrace.schemas import InputError, KeySegment

WITH_CLS = site_class(cls=True)
TEXT = site_class(
    "text/64x5h2d8",
    key_grid=None,
    keys=5,
    key_segments=(KeySegment(kind="text", count=3), KeySegment(kind="pad", count=2)),
)


@settings(max_examples=60)
@given(length=st.integers(1, 40), cells=st.integers(1, 40))
def test_area_shares_are_those_of_fine_subdivision(length: int, cells: int) -> None:
    shares = area_matrix(length, cells)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    # every pixel and every cell is a whole number of subdivisions
    pixel_of, cell_of = np.repeat(np.arange(length), cells), np.repeat(np.arange(cells), length)
    counted = np.zeros((cells, length))
    np.add.at(counted, (cell_of, pixel_of), 1 / length)
    np.testing.assert_allclose(shares, counted, atol=1e-12)


def test_a_cell_counts_by_how_much_of_it_is_covered() -> None:
    mask = np.zeros((4, 4))
    mask[:2, :3] = 1
    np.testing.assert_allclose(coverage(mask, (2, 2)), np.array([[1, 0.5], [0, 0]]))
    np.testing.assert_allclose(coverage(mask, (8, 8))[:, :6].sum(), 24)


def test_queries_under_a_mask_of_any_resolution() -> None:
    one = site_class(query_grid=(4, 2), group="reference/8x16h2d8")
    assert query_weights(one, None).tolist() == [1] * 8
    mask = np.zeros((8, 8), bool)
    mask[:2, :4] = True
    assert query_weights(one, mask).tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (None, [0] + [1] * 16),
        ("patch", [0] + [1] * 16),
        ("cls", [1] + [0] * 16),
        ("all", [1] * 17),
        ("text", [0] * 17),
        ([0, 3], [1, 0, 0, 1] + [0] * 13),
        (np.ones((8, 8), bool), [0] + [1] * 16),
    ],
)
def test_keys_by_kind_place_and_mask(keys: Any, expected: list[float]) -> None:
    assert key_weights(WITH_CLS, keys).tolist() == expected


def test_all_keys_count_where_there_are_no_patches() -> None:
    assert key_weights(TEXT, None).tolist() == [1] * 5
    assert key_weights(TEXT, "pad").tolist() == [0, 0, 0, 1, 1]
    assert key_weights(TEXT, np.ones((4, 4), bool)).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("patches", "no kind of key 'patches'; use 'all' or one of patch"),
        ([17], "has keys 0 to 16, found"),
        ([-1], "has keys 0 to 16, found"),
        ([], "expected numbers of keys"),
        ([0.5], "expected numbers of keys"),
        ([True, False], r"expected numbers of keys, .* found \[True, False\]"),
        (["cls"], "expected numbers of keys"),
        (np.zeros((4, 4), bool), "the mask selects nothing"),
        (np.zeros((4, 4, 3)), "expected a mask"),
    ],
)
def test_keys_that_are_none_are_refused(keys: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        key_weights(WITH_CLS, keys)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((4, 4), 255, np.uint8), "integers up to 255: compare first"),
        (np.full((4, 4), -0.5), "values in"),
        (np.full((4, 4), np.nan), "values in"),
        (np.ones(4), "of shape"),
        ([["a"]], "expected a mask"),
    ],
)
def test_what_is_no_mask_is_refused(mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_mask(mask, "queries")


def test_a_mask_is_read_from_a_picture_in_one_way() -> None:
    grey = np.array([[127, 128], [0, 255]], np.uint8)
    expected = [[False, True], [False, True]]
    for picture in (grey, grey[..., None], np.repeat(grey[..., None], 3, axis=2), PIL.Image.fromarray(grey)):
        assert read_mask(picture).tolist() == expected
    red = np.zeros((1, 2, 3), np.uint8)
    red[0, 0, 0], red[0, 1, 1] = 255, 255
    assert read_mask(red).tolist() == [[False, True]]  # by luminance: red is dark, green is not


def test_a_mask_needs_a_grid() -> None:
    loose = site_class(query_grid=(4, 4), group="reference/16x16h2d8").model_copy(update={"query_grid": None})
    with pytest.raises(InputError, match="lie on no grid"):
        query_weights(loose, np.ones((4, 4)))


def test_two_pictures_among_the_keys_are_not_one_map() -> None:
    grid = KeySegment(kind="patch", count=4, grid=(2, 2))
    two = site_class("reference/64x8h2d8", key_grid=None, keys=8, key_segments=(grid, grid))
    with pytest.raises(InputError, match=r"2 pictures \(2 x 2 and 2 x 2\)"):
        picture_keys(two)
