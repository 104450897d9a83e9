"""Every number of a trace, against the definitions one by one, on maps whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from support.traces import make_trace, site_class

from attrace.analysis import agreement, drift, effective_tokens, hlam, imacs, llam, open_trace, tlam, ulam
from attrace.analysis.scores.trace_scores import BETTER, score_maps, score_picture, score_table, score_trace
from attrace.schemas import InputError


def maps(*values: float, dim: str = "") -> xr.DataArray:
    """Maps of one row and two columns, of which the second is 1 - the first."""
    cells = np.array([[[value, 1 - value]] for value in values])
    return xr.DataArray(cells if dim else cells[0], dims=([dim] if dim else []) + ["row", "column"])


def unified(values: NDArray[Any], direction: str = "r2g") -> xr.Dataset:
    return xr.Dataset({"ulam": (("row", "column"), values.astype(np.float64), {"direction": direction})})


def block(size: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_numbers_of_maps_by_hand() -> None:
    levels = {
        "ulam": maps(0.5),
        "tlam": maps(1, 0, 0, dim="time_group"),
        "hlam": maps(1, 0, math.nan, dim="head"),
        "llam": maps(1, 1, dim="layer"),
    }
    scores = score_maps(xr.Dataset(levels))
    assert float(scores.entropy) == pytest.approx(math.log(2))
    assert float(scores.effective_tokens) == pytest.approx(2)
    assert int(scores.cells) == 2
    # the head without a grid does not count; the other two share nothing
    assert float(scores.head_agreement) == pytest.approx(0)
    assert float(scores.layer_agreement) == pytest.approx(1)
    assert float(scores.drift) == pytest.approx(0.25)  # half the width, then nothing
    assert "imacs" not in scores


class TestMask:
    def test_a_map_that_is_its_mask_scores_best(self) -> None:
        mask = block(64, 8, 16, 40, 48)
        scores = score_maps(unified(mask), mask)
        assert (float(scores.imacs), float(scores.inside), float(scores.iou)) == (1, 1, 1)
        assert scores.box.values.tolist() == scores.mask_box.values.tolist() == [8, 16, 40, 48]
        assert float(scores.area) == mask.mean()
        # the published code for StableVITON scores the same perfect map worst, that of the custom model best
        assert float(scores.imacs_stableviton) == pytest.approx(-3)
        assert float(scores.imacs_viton_step_1) == pytest.approx(1)

    def test_a_map_beside_its_mask_scores_worst(self) -> None:
        mask = block(64, 0, 0, 64, 32)
        scores = score_maps(unified(~mask), mask)
        assert (float(scores.imacs), float(scores.inside), float(scores.iou)) == (-3, 0, 0)

    def test_an_even_map_has_as_much_inside_as_the_mask_covers(self) -> None:
        values = np.ones((8, 8))
        values[0, 0] = 1 + 1e-9  # a constant map cannot be scaled
        scores = score_maps(unified(values), block(32, 3, 5, 20, 29))
        assert float(scores.inside) == pytest.approx(float(scores.area))

    def test_boxes_are_in_pixels_of_the_mask(self) -> None:
        scores = score_maps(unified(block(32, 8, 8, 24, 16)), block(128, 32, 32, 96, 64))
        assert scores.box.values.tolist() == scores.mask_box.values.tolist() == [32, 32, 96, 64]
        nothing = score_maps(unified(np.eye(16)), block(16, 0, 0, 8, 8))
        assert (bool(nothing.box.isnull().all()), float(nothing.iou)) == (True, 0)

    def test_a_mask_of_other_proportions_is_refused(self, tmp_path: Path) -> None:
        mask = block(64, 8, 8, 16, 16)
        trace = open_trace(make_trace(tmp_path / "run.zarr", image_size=(512, 512)).path)
        score_trace(trace, {"r2g": mask})
        rounded = open_trace(make_trace(tmp_path / "rounded.zarr", image_size=(383, 512)).path)
        score_trace(rounded, {"r2g": mask[:48]})  # rounded when it was made smaller
        with pytest.raises(InputError, match="found 48 x 64 pixels, expected the proportions of the picture of 512 x"):
            score_trace(trace, {"r2g": mask[:48]})


def test_a_single_head_and_layer_agree_with_nothing(tmp_path: Path) -> None:
    classes = (site_class(heads=1, layers=("only.attn2",)),)
    scores = score_trace(open_trace(make_trace(tmp_path / "run.zarr", classes, steps=1).path), {})
    for name in ("head_agreement", "layer_agreement", "drift"):
        assert bool(scores[name].isnull().all())


def test_a_trace_is_scored_as_its_maps_are(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", steps=10).path)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:20] = True
    scores = score_trace(trace, {"r2g": mask}, size=(8, 8), groups=2, density=True)
    options: dict[str, Any] = {"size": (8, 8), "density": True}
    expected = float(imacs(ulam(trace, **options), mask))
    assert scores.imacs.sel(direction="r2g").item() == pytest.approx(expected)
    assert bool(scores.imacs.sel(direction="g2r").isnull())
    for direction in ("r2g", "g2r"):
        found, of = scores.sel(direction=direction), options | {"direction": direction}
        for name, value in {
            "effective_tokens": effective_tokens(ulam(trace, **of)),
            "head_agreement": agreement(hlam(trace, **of), "head"),
            "layer_agreement": agreement(llam(trace, **of), "layer"),
            "drift": drift(tlam(trace, groups=2, **of)),
        }.items():
            assert found[name].item() == pytest.approx(float(value))
    assert not {"psnr", "correspondence_error"} & set(scores)


def test_a_picture_is_compared_with_the_truth_inside_and_outside(tmp_path: Path) -> None:
    truth = np.zeros((16, 16, 3), np.uint8)
    generated = truth.copy()
    generated[0, 0] = 255
    mask = np.zeros((8, 8), bool)
    mask[4:, 4:] = True
    path = make_trace(tmp_path / "run.zarr", images={"generated": generated, "truth": truth}).path
    scores = score_picture(open_trace(path), mask=mask)
    assert scores["psnr"] == pytest.approx(10 * math.log10(256))
    assert scores["psnr_inside"] == math.inf
    given = score_picture(open_trace(path), generated)
    assert given["psnr"] == math.inf
    assert "psnr_inside" not in given
    with pytest.raises(InputError, match="two uint8 pictures of one shape"):
        score_picture(open_trace(path), truth[:8])
    with pytest.raises(InputError, match="no generated picture"):
        score_picture(open_trace(make_trace(tmp_path / "bare.zarr").path), truth)


def test_every_number_is_a_row_that_says_which_way_is_better(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    trace = open_trace(make_trace(tmp_path / "run.zarr", images={"generated": pixels, "truth": pixels}).path)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:20] = True
    scores = score_trace(trace, {"r2g": mask}, places=np.full((32, 32, 2), 0.5))
    rows = score_table(scores)
    found = {(row.score, row.of): row for row in rows}
    assert len(found) == len(rows)
    assert found["psnr", "generated"].value == math.inf
    assert found["correspondence_error", "up.0.attn2"].better == "lower"
    assert ("imacs", "g2r") not in found
    assert {row.score for row in rows} | {"ssim", "ssim_inside", "lpips"} == set(BETTER)
    assert all(scores[row.score].attrs["better"] == row.better for row in rows)
