"""IMACS, boxes and their overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from support.exact import no_computing

from attrace.analysis import Box, bounding_box, imacs, iou
from attrace.schemas import InputError

MASK = np.zeros((8, 8), bool)
MASK[2:5, 3:7] = True


def a_map(values: Any, **attributes: Any) -> xr.DataArray:
    array = np.asarray(values, dtype=np.float64)
    dims = ("head", "row", "column")[-array.ndim :]
    return xr.DataArray(array, dims=dims, attrs=attributes)


class TestImacs:
    def test_perfect_and_opposite(self) -> None:
        assert float(imacs(a_map(MASK), MASK)) == 1
        assert float(imacs(a_map(~MASK), MASK)) == -3
        assert float(imacs(a_map(~MASK), MASK, penalty=1.5)) == -1.5

    def test_the_mean_inside_less_the_mean_outside(self) -> None:
        values = np.random.default_rng(0).random((8, 8))
        scaled = (values - values.min()) / (values.max() - values.min())
        expected = scaled[MASK].mean() - 3 * scaled[~MASK].mean()
        assert float(imacs(a_map(values), MASK)) == pytest.approx(expected)
        assert float(imacs(a_map(5 + 2 * values), MASK)) == pytest.approx(expected)

    def test_a_mask_of_another_resolution_counts_by_area(self) -> None:
        values = np.random.default_rng(0).random((4, 4))
        scaled = (values - values.min()) / (values.max() - values.min())
        inside = MASK.reshape(4, 2, 4, 2).mean(axis=(1, 3))
        expected = (scaled * inside).sum() / inside.sum() - 3 * (scaled * (1 - inside)).sum() / (1 - inside).sum()
        assert float(imacs(a_map(values), MASK)) == pytest.approx(expected)

    def test_each_map_by_itself_and_lazily(self) -> None:
        values = a_map(np.random.default_rng(0).random((3, 8, 8)))
        with no_computing():
            scores = imacs(values.chunk(), MASK)
        assert scores.dims == ("head",)
        for head in range(3):
            assert float(scores[head]) == pytest.approx(float(imacs(values[head], MASK)))

    def test_maps_that_cannot_be_scaled_have_no_score(self) -> None:
        values = np.stack([MASK.astype(float), np.ones((8, 8)), MASK.astype(float)])
        values[2, 0, 0] = np.nan
        assert imacs(a_map(values), MASK).isnull().values.tolist() == [False, True, True]

    @pytest.mark.parametrize(("direction", "perfect"), [("r2g", -3.0), ("g2r", 1.0)])
    def test_as_published_a_perfect_map(self, direction: str, perfect: float) -> None:
        assert float(imacs(a_map(MASK, direction=direction), MASK, variant="stableviton")) == pytest.approx(perfect)

    def test_as_published_a_random_map_of_the_reference(self) -> None:
        values = np.random.default_rng(0).random((400, 400))
        score = imacs(a_map(values, direction="g2r"), np.kron(MASK, np.ones((50, 50))), variant="stableviton")
        assert float(score) == pytest.approx(0.42, abs=0.01)

    def test_as_published_step_by_step(self) -> None:
        values = np.random.default_rng(1).random((8, 8))
        turned = 1 - (values - values.min()) / (values.max() - values.min())
        turned[turned <= 0.4] = 0
        expected = turned[MASK].mean() - 3 * turned[~MASK].mean()
        assert float(imacs(a_map(values, direction="r2g"), MASK, variant="stableviton")) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("variant", "direction", "expected"),
        [
            # scaled [[0, 1/4], [1/2, 1]]
            ("plain", "r2g", (1 / 4 + 1) / 2 - 3 * (0 + 1 / 2) / 2),
            ("plain", "g2r", (1 / 4 + 1) / 2 - 3 * (0 + 1 / 2) / 2),
            # up to 0.4 is 0: [[0, 0], [1/2, 1]]
            ("viton-step-1", "r2g", (0 + 1) / 2 - 3 * (0 + 1 / 2) / 2),
            ("viton-step-1", "g2r", (0 + 1) / 2 - 3 * (0 + 1 / 2) / 2),
            # inverted: [[1, 3/4], [1/2, 0]]
            ("stableviton", "r2g", (3 / 4 + 0) / 2 - 3 * (1 + 1 / 2) / 2),
            # times the mask, then scaled: [[0, 1/4], [0, 1]], and 1/4 is 0
            ("stableviton", "g2r", (0 + 1) / 2 - 3 * (0 + 0) / 2),
        ],
    )
    def test_every_variant_by_hand(self, variant: Any, direction: str, expected: float) -> None:
        """An uneven map [[0, 2], [4, 8]], of which the mask covers the right column."""
        uneven = a_map([[0, 2], [4, 8]], direction=direction)
        found = imacs(uneven, np.array([[0, 1], [0, 1]], bool), variant=variant)
        assert float(found) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        ("attribution", "mask", "options", "message"),
        [
            (a_map(MASK), np.ones((4, 4), bool), {}, "covers the whole map"),
            (a_map(MASK), np.zeros((4, 4), bool), {}, "selects nothing"),
            (a_map(MASK).rename(row="y"), MASK, {}, "expected a map with the dims row and column"),
            (a_map(MASK), MASK, {"variant": "stableviton"}, "depend on the direction of the map"),
            (a_map(MASK), MASK, {"variant": "daam"}, "variant: expected plain, stableviton or viton-step-1"),
        ],
    )
    def test_refusals(
        self, attribution: xr.DataArray, mask: NDArray[Any], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            imacs(attribution, mask, **options)


class TestBoundingBox:
    def map_with(self, *boxes: tuple[int, int, int, int]) -> NDArray[np.float64]:
        values = np.random.default_rng(0).random((64, 64)) * 0.1
        for top, left, bottom, right in boxes:
            values[top:bottom, left:right] += 1
        return values

    def test_the_largest_region(self) -> None:
        values = self.map_with((10, 12, 34, 44), (50, 50, 58, 60))
        share_above = 100 * (values > 0.5).mean()
        assert bounding_box(a_map(values), percentile=100 - share_above) == Box(10, 12, 34, 44)

    def test_specks_are_removed_and_holes_are_filled(self) -> None:
        values = self.map_with((10, 10, 40, 40), (2, 60, 5, 63))
        values[20:22, 20:22] = 0
        assert bounding_box(values, percentile=75) == Box(10, 10, 40, 40)

    def test_a_region_at_the_edge_reaches_it(self) -> None:
        assert bounding_box(self.map_with((0, 40, 20, 64)), percentile=85) == Box(0, 40, 20, 64)

    def test_dilated(self) -> None:
        assert bounding_box(self.map_with((10, 12, 34, 44)), percentile=80, dilate=True) == Box(8, 10, 36, 46)

    def test_nothing_left(self) -> None:
        assert bounding_box(np.ones((16, 16))) is None
        assert bounding_box(np.eye(16)) is None

    @pytest.mark.parametrize(
        ("values", "options"),
        [
            (np.ones((2, 3, 3)), {}),
            (np.full((4, 4), np.nan), {}),
            (np.ones((4, 4)), {"percentile": 100}),
            (np.ones((4, 4)), {"element": 0}),
        ],
    )
    def test_refusals(self, values: NDArray[Any], options: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="expected"):
            bounding_box(values, **options)


COORDINATES = st.integers(0, 12)
BOXES = st.tuples(COORDINATES, COORDINATES, st.integers(1, 8), st.integers(1, 8)).map(
    lambda box: Box(box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@given(BOXES, BOXES)
def test_iou_counts_cells(first: Box, second: Box) -> None:
    cells = [np.zeros((20, 20), bool) for _ in range(2)]
    for one, box in zip(cells, (first, second), strict=True):
        one[box.top : box.bottom, box.left : box.right] = True
    expected = (cells[0] & cells[1]).sum() / (cells[0] | cells[1]).sum()
    assert iou(first, second) == pytest.approx(expected)


def test_iou_with_nothing() -> None:
    assert iou(None, Box(0, 0, 1, 1)) == 0
    assert iou(None, None) == 0
