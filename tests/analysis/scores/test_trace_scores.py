"""Every number of a trace, against the definitions one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from support.traces import make_trace, site_class

from attrace.analysis import agreement, drift, effective_tokens, hlam, imacs, llam, open_trace, tlam, ulam
from attrace.analysis.scores.trace_scores import BETTER, score_maps, score_picture, score_trace
from attrace.schemas import InputError


def maps(*values: float, dim: str = "") -> xr.DataArray:
    """Maps of one row and two columns, of which the second is 1 - the first."""
    cells = np.array([[[value, 1 - value]] for value in values])
    return xr.DataArray(cells if dim else cells[0], dims=([dim] if dim else []) + ["row", "column"])


def test_the_numbers_of_maps_by_hand() -> None:
    scores = score_maps(
        {
            "ulam": maps(0.5),
            "tlam": maps(1, 0, 0, dim="time_group"),
            "hlam": maps(1, 0, math.nan, dim="head"),
            "llam": maps(1, 1, dim="layer"),
        }
    )
    assert scores.entropy == pytest.approx(math.log(2))
    assert scores.effective_tokens == pytest.approx(2)
    assert scores.cells == 2
    # the head without a grid does not count; the other two share nothing
    assert scores.head_agreement == pytest.approx(0)
    assert scores.layer_agreement == pytest.approx(1)
    assert scores.drift == pytest.approx(0.25)  # half the width, then nothing


def test_a_single_head_and_layer_agree_with_nothing(tmp_path: Path) -> None:
    classes = (site_class(heads=1, layers=("only.attn2",)),)
    scores = score_trace(open_trace(make_trace(tmp_path / "run.zarr", classes, steps=1).path), {})
    for one in scores.maps.values():
        assert np.isnan([one.head_agreement, one.layer_agreement, one.drift]).all()


def test_a_trace_is_scored_as_its_maps_are(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", steps=10).path)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:20] = True
    scores = score_trace(trace, {"r2g": mask}, size=(8, 8), groups=2, density=True)
    options: dict[str, Any] = {"size": (8, 8), "density": True}
    assert list(scores.cards) == ["ulam_r2g"]
    assert scores.cards["ulam_r2g"].imacs == pytest.approx(float(imacs(ulam(trace, **options), mask)))
    for direction, found in scores.maps.items():
        assert found.effective_tokens == pytest.approx(
            float(effective_tokens(ulam(trace, direction=direction, **options)))
        )
        assert found.head_agreement == pytest.approx(
            float(agreement(hlam(trace, direction=direction, **options), "head"))
        )
        assert found.layer_agreement == pytest.approx(
            float(agreement(llam(trace, direction=direction, **options), "layer"))
        )
        assert found.drift == pytest.approx(float(drift(tlam(trace, direction=direction, groups=2, **options))))
    assert (scores.picture, scores.correspondence) == (None, {})


def test_a_picture_is_compared_with_the_truth_inside_and_outside(tmp_path: Path) -> None:
    truth = np.zeros((16, 16, 3), np.uint8)
    generated = truth.copy()
    generated[0, 0] = 255
    mask = np.zeros((8, 8), bool)
    mask[4:, 4:] = True
    path = make_trace(tmp_path / "run.zarr", images={"generated": generated, "truth": truth}).path
    scores = score_picture(open_trace(path), mask=mask)
    assert scores is not None
    assert scores.psnr == pytest.approx(10 * math.log10(256))
    assert scores.psnr_inside == math.inf
    given = score_picture(open_trace(path), generated)
    assert given is not None
    assert (given.psnr, given.psnr_inside) == (math.inf, None)
    with pytest.raises(InputError, match="two uint8 pictures of one shape"):
        score_picture(open_trace(path), truth[:8])
    with pytest.raises(InputError, match="no generated picture"):
        score_picture(open_trace(make_trace(tmp_path / "bare.zarr").path), truth)


def test_every_number_is_a_row_that_says_which_way_is_better(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    trace = open_trace(make_trace(tmp_path / "run.zarr", images={"generated": pixels, "truth": pixels}).path)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:20] = True
    rows = score_trace(trace, {"r2g": mask}, places=np.full((32, 32, 2), 0.5)).rows()
    found = {(row.score, row.of): row for row in rows}
    assert len(found) == len(rows)
    assert found["psnr", "generated"].value == math.inf
    assert found["correspondence_error", "up.0.attn2"].better == "lower"
    assert {row.score for row in rows} | {"ssim", "ssim_inside", "lpips"} == set(BETTER)
