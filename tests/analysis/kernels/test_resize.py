"""Resizing gives torch's bicubic numbers, and those of the definition."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support.exact import bicubic

from attrace.analysis.kernels.resize import bicubic_matrix, resize

SIDES = st.integers(1, 12)


@settings(max_examples=40)
@given(rows=SIDES, columns=SIDES, new_rows=SIDES, new_columns=SIDES)
def test_equal_to_the_definition(rows: int, columns: int, new_rows: int, new_columns: int) -> None:
    image = np.random.default_rng(rows * 13 + columns).normal(size=(rows, columns))
    expected = bicubic(image, (new_rows, new_columns))
    np.testing.assert_allclose(resize(image, (new_rows, new_columns)), expected, atol=1e-12)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="compares with torch")
@pytest.mark.parametrize(
    ("old", "new"),
    [((8, 8), (64, 64)), ((16, 12), (64, 48)), ((64, 48), (16, 12)), ((5, 7), (3, 11)), ((1, 1), (4, 4))],
)
def test_equal_to_torch(old: tuple[int, int], new: tuple[int, int]) -> None:
    import torch

    maps = np.random.default_rng(0).normal(size=(2, 3, *old))
    expected = torch.nn.functional.interpolate(torch.from_numpy(maps), size=new, mode="bicubic").numpy()
    np.testing.assert_allclose(resize(maps, new), expected, atol=1e-12)


def test_the_same_size_gives_the_same_numbers() -> None:
    image = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(resize(image, (5, 7)), image)
    np.testing.assert_array_equal(bicubic_matrix(6, 6), np.eye(6))


def test_float32_stays_float32() -> None:
    assert resize(np.ones((2, 4, 4), np.float32), (8, 8)).dtype == np.float32
