"""True places of pixels on the grids of layers, against cases worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.traces import make_trace, site_class

from attrace.analysis import correspondence, open_trace
from attrace.analysis.scores.ground_truth import correspondence_scores, places_of_box, places_on_grid
from attrace.schemas import InputError


def test_a_box_holds_the_whole_reference() -> None:
    places = places_of_box((2, 0, 6, 8), (8, 8))
    # the first row of the box lies half a pixel below its top: 0.5 / 4 of the reference
    assert places[2, 0].tolist() == [0.125, 0.0625]
    assert places[5, 7].tolist() == [0.875, 0.9375]
    assert np.isnan(places[1]).all()
    assert np.isnan(places[6]).all()
    assert np.isfinite(places[2:6]).all()


def test_a_mask_of_any_resolution_hides_places() -> None:
    mask = np.array([[True, False], [True, True]])
    places = places_of_box((0, 0, 4, 4), (4, 4), mask)
    assert np.isfinite(places[..., 0]).tolist() == np.kron(mask, np.ones((2, 2))).astype(bool).tolist()


def test_places_on_a_grid_are_cells_of_the_keys() -> None:
    places = places_of_box((0, 0, 4, 4), (4, 4))
    # laid one to one, a grid of queries finds itself
    expected = np.moveaxis(np.mgrid[:2, :2], 0, -1)
    assert places_on_grid(places, (2, 2), (2, 2)) == pytest.approx(expected)
    # keys twice as fine: the centre of a query lies between two keys
    assert places_on_grid(places, (2, 2), (4, 4)) == pytest.approx(2 * expected + 0.5)


def test_a_patch_with_an_unknown_pixel_has_no_place() -> None:
    places = places_of_box((0, 0, 4, 4), (4, 4))
    places[0, 0] = np.nan
    on_grid = places_on_grid(places, (2, 2), (2, 2))
    assert np.isnan(on_grid[0, 0]).all()
    assert np.isfinite(on_grid.reshape(4, 2)[1:]).all()


def test_the_error_of_every_layer_is_the_median_distance(tmp_path: Path) -> None:
    classes = (
        site_class(),
        site_class("reference/16x16h2d8", query_grid=(4, 4), layers=("mid.attn2",), first_order=2),
        site_class("reference/64x1h2d8", key_grid=None, cls=True, layers=("one.attn2",), first_order=3),
    )
    trace = open_trace(make_trace(tmp_path / "run.zarr", classes).path)
    errors = correspondence_scores(trace, places_of_box((0, 0, 8, 8), (8, 8)))["correspondence_error"]
    assert errors["layer"].values.tolist() == ["down.0.attn2", "up.0.attn2", "mid.attn2"]
    found = correspondence(trace, layers="mid.attn2").values[0]
    distances = np.linalg.norm(found - np.moveaxis(np.mgrid[:4, :4], 0, -1), axis=-1)
    assert float(errors.sel(layer="mid.attn2")) == pytest.approx(np.median(distances))


def test_a_layer_too_coarse_for_the_places_has_no_error(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", (site_class(query_grid=(2, 2)),)).path)
    errors = correspondence_scores(trace, places_of_box((0, 0, 3, 3), (8, 8)))
    assert errors["correspondence_error"].isnull().all()
    assert errors["pck"].isnull().all()


def test_heads_have_errors_of_their_own(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr").path)
    places = places_of_box((0, 0, 8, 8), (8, 8))
    scores = correspondence_scores(trace, places, heads=True)
    assert scores["pck"].dims == ("layer", "head")
    for head in (0, 1):
        alone = correspondence_scores(trace.sel(head=head), places)
        xr.testing.assert_equal(scores.sel(head=head, drop=True), alone)


def test_what_is_no_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"within the picture of 8 x 8"):
        places_of_box((0, 0, 9, 8), (8, 8))
    with pytest.raises(InputError, match=r"expected the shape \(row, column, 2\)"):
        places_on_grid(np.zeros((4, 4)), (2, 2), (2, 2))
    trace = open_trace(make_trace(tmp_path / "run.zarr", (site_class(key_grid=None, cls=True),)).path)
    with pytest.raises(InputError, match="no selected layer has both"):
        correspondence_scores(trace, np.zeros((4, 4, 2)))
