"""Bootstrap intervals: seeded, over samples, right where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from attrace.analysis.scores.bootstrap import bootstrap_interval, bootstrap_ratio


def test_every_element_has_an_interval_of_its_own() -> None:
    random = np.random.default_rng(0)
    values = random.normal([[0, 5], [10, 100]], 1.0, (50, 2, 2))
    values[:, 0, 1] = np.nan
    values[::2, 1, 0] = np.nan
    interval = bootstrap_interval(values, seed=3)
    assert interval.shape == (2, 2, 2)
    assert np.isnan(interval[:, 0, 1]).all()
    # an element without NaN has the interval that it has alone: the same samples are drawn
    assert interval[:, 1, 1] == pytest.approx(bootstrap_interval(values[:, 1, 1], seed=3))
    # 1.96 standard errors of 25 known values
    assert (interval[1, 1, 0] - interval[0, 1, 0]) / 2 == pytest.approx(1.96 / 5, rel=0.3)


def test_one_sample_has_an_interval_of_no_width() -> None:
    assert bootstrap_interval(np.array([3.0]), seed=0).tolist() == [3, 3]


def test_a_ratio_is_of_the_means_of_the_same_samples() -> None:
    below = np.array([1.0, 2.0, 3.0, 4.0])
    # twice as much in every sample: the ratio does not vary, though the means do
    assert bootstrap_ratio(2 * below, below, seed=0) == pytest.approx([2, 2])
    low, high = bootstrap_ratio(np.array([2.0, 2.0, 9.0, 8.0]), below, seed=0)
    assert low < 2.1 < high
    assert np.isnan(bootstrap_ratio(below, np.zeros(4), seed=0)).all()
