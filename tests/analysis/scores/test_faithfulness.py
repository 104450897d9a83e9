"""Orders of patches, changes of pictures, curves and areas, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from attrace.analysis.figures.curves import draw_curves
from attrace.analysis.scores.faithfulness import Order, first_of, patch_orders, picture_change, summarise
from attrace.schemas import InputError


def test_patches_are_ordered_by_the_map() -> None:
    heat = xr.DataArray([[1.0, 4.0, 0.0], [3.0, 5.0, 2.0]], dims=("row", "column"))
    orders = patch_orders(heat, draws=3, seed=0)
    assert orders["top"][0].tolist() == [4, 1, 3, 5, 0, 2]
    assert orders["bottom"][0].tolist() == [2, 0, 5, 3, 1, 4]
    assert len({tuple(one) for one in orders["random"]}) == 3
    assert all(sorted(one.tolist()) == list(range(6)) for one in orders["random"])
    again = patch_orders(heat.T, draws=3, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(orders["random"], again["random"], strict=True))
    assert again["top"][0].tolist() == orders["top"][0].tolist()
    with pytest.raises(InputError, match="finite"):
        patch_orders(heat.where(heat > 0), draws=1, seed=0)


def test_the_first_of_an_order_are_cells() -> None:
    order = np.array([4, 1, 3, 5, 0, 2])
    assert first_of(order, 0.5, (2, 3)).tolist() == [[False, True, False], [True, True, False]]
    assert not first_of(order, 0.0, (2, 3)).any()
    assert first_of(order, 1.0, (2, 3)).all()


def test_the_change_of_a_picture_is_a_mean_inside_the_mask() -> None:
    before = np.zeros((2, 2, 3), np.uint8)
    after = before.copy()
    after[0, 0] = 255
    after[0, 1, 0] = 255
    assert picture_change(after, before) == pytest.approx((1 + 1 / 3) / 4)
    assert picture_change(after, before, np.array([[True, False], [False, False]])) == 1
    assert picture_change(before[..., 0], before[..., 0]) == 0
    with pytest.raises(InputError, match="one shape"):
        picture_change(after, before[:1])


def curves(
    top: list[float], random: list[float], bottom: list[float], inputs: int = 4
) -> dict[Order, NDArray[np.float64]]:
    return {
        "top": np.array([top] * inputs),
        "random": np.array([random] * inputs),
        "bottom": np.array([bottom] * inputs),
    }


def test_areas_and_ratios_of_a_faithful_ranking() -> None:
    found = summarise((0, 0.5, 1), curves([0, 0.8, 1], [0, 0.4, 1], [0, 0.1, 1]))
    # trapezoids: 0.5 * (0 + 0.8) / 2 + 0.5 * (0.8 + 1) / 2
    assert found.areas["top"].value == pytest.approx(0.65)
    assert found.areas["random"].value == pytest.approx(0.45)
    assert found.deletion_ratio.value == pytest.approx(0.65 / 0.45)
    # to show the highest half is to hide the lowest half
    assert found.insertion["top"][0].tolist() == [1, 0.1, 0]
    assert found.insertion_areas["top"].value == pytest.approx(0.3)
    assert found.insertion_ratio.value == pytest.approx(0.3 / 0.45)
    # equal inputs leave nothing to draw
    assert (found.deletion_ratio.low, found.deletion_ratio.high) == pytest.approx((0.65 / 0.45, 0.65 / 0.45))


def test_the_interval_is_over_inputs() -> None:
    made = curves([0, 0.8, 1], [0, 0.4, 1], [0, 0.1, 1])
    made["top"][:2, 1] = 0.2
    found = summarise((0, 0.5, 1), made, seed=1)
    assert found.deletion_ratio.low < found.deletion_ratio.value < found.deletion_ratio.high
    assert summarise((0, 0.5, 1), made, seed=1).deletion_ratio == found.deletion_ratio


def test_a_model_that_does_not_look_at_its_reference_has_no_ratio() -> None:
    found = summarise((0, 1), curves([0, 0], [0, 0], [0, 0]))
    assert np.isnan(found.deletion_ratio.value)


@pytest.mark.parametrize("fractions", [(0, 0.5), (0.1, 1), (0, 0.5, 0.5, 1), (0,)])
def test_shares_must_rise_from_none_to_all(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="rise from 0 to 1"):
        summarise(fractions, curves([0, 0.8, 1], [0, 0.4, 1], [0, 0.1, 1]))


def test_both_curves_of_every_order_are_drawn() -> None:
    figure = draw_curves(summarise((0, 0.5, 1), curves([0, 0.8, 1], [0, 0.4, 1], [0, 0.1, 1])))
    deletion, insertion = figure.axes
    assert np.asarray(deletion.get_lines()[0].get_ydata()) == pytest.approx([0, 0.8, 1])
    assert np.asarray(insertion.get_lines()[0].get_xdata()) == pytest.approx([0, 0.5, 1])
    assert np.asarray(insertion.get_lines()[0].get_ydata()) == pytest.approx([1, 0.1, 0])
