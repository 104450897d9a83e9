"""Trees of maps of several levels and directions, and the strongest patches of a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from support.traces import make_trace, site_class

from attrace.analysis import open_trace
from attrace.analysis.maps.attribution import hlam, level_maps, mappable_directions, tlam
from attrace.analysis.maps.sram import strongest_patches
from attrace.schemas import InputError


def a_map(values: NDArray[np.float64], direction: str = "r2g") -> xr.DataArray:
    return xr.DataArray(values, dims=("row", "column"), attrs={"direction": direction})


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
    nodes = {direction: node.to_dataset() for direction, node in lazy.children.items()}
    assert {direction: list(node.data_vars) for direction, node in nodes.items()} == {
        "r2g": ["tlam", "hlam"],
        "g2r": ["tlam", "hlam"],
    }
    assert all(heat.chunks for node in nodes.values() for heat in node.data_vars.values())
    computed = lazy.compute()
    expected = tlam(trace, groups=2, size=(5, 6), density=True).compute()
    xr.testing.assert_identical(computed["r2g/tlam"], expected.rename("tlam"))
    expected = hlam(trace, direction="g2r", size=(5, 6), density=True).compute()
    xr.testing.assert_identical(computed["g2r/hlam"], expected.rename("hlam"))


def test_a_reference_of_one_vector_has_one_direction(tmp_path: Path) -> None:
    classes = (site_class("reference/64x1h2d8", key_grid=None, cls=True),)
    trace = open_trace(make_trace(tmp_path / "run.zarr", classes).path)
    assert mappable_directions(trace) == ("r2g",)
    assert list(level_maps(trace, levels=("ulam",)).children) == ["r2g"]
    with pytest.raises(InputError, match="one key"):
        level_maps(trace, directions=("g2r",))


def test_a_trace_without_a_step_has_no_direction(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", steps=0).path)
    with pytest.raises(InputError, match="no finished step"):
        mappable_directions(trace)
