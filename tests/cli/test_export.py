"""`attrace export`: everything with its labels, in files that other tools read, and nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from attrace.analysis import llam, marginals, open_trace
from attrace.cli.shared.map_files import netcdf_has_groups

from .conftest import Run

pytestmark = pytest.mark.usefixtures("trace")
GROUP = "reference/64x16h2d8"


def test_numpy_holds_maps_marginals_and_labels(run: Run) -> None:
    assert run("export", "run.zarr", "-o", "run.npz").stdout == "run.npz\n"
    trace = open_trace("run.zarr")
    with np.load("run.npz", allow_pickle=False) as stored:
        described = json.loads(str(stored["attributes"]))
        assert set(described) == {*stored.files} - {"attributes"}
        np.testing.assert_array_equal(stored["maps/g2r/llam"], llam(trace, direction="g2r"))
        np.testing.assert_array_equal(stored[f"{GROUP}/r2g"], marginals(trace)[GROUP]["r2g"])
        assert stored[f"{GROUP}/layer"].tolist() == ["up_blocks.0.attn2", "up_blocks.1.attn2"]
        assert not any("scores" in name for name in stored.files)
    assert described[f"{GROUP}/r2g"]["dims"] == ["time", "layer", "head", "query"]
    for name in (f"{GROUP}/r2g", "maps/g2r/llam"):
        assert {"units", "long_name"} <= set(described[name]["attributes"])


@pytest.mark.skipif(not netcdf_has_groups(), reason="no netCDF library with groups")
def test_netcdf_holds_every_score_when_asked(run: Run) -> None:
    told = run("export", "run.zarr", "-o", "run.nc", "--scores", "--steps", "2:4", "--context", "text")
    assert told.exit_code == 0, told.output
    assert "with every score this takes" in told.stderr
    trace = open_trace("run.zarr").sel(context="text", time=slice(2, 4))
    with xr.open_datatree("run.nc", engine="h5netcdf") as tree:
        node = tree["text/64x3h2d8"].to_dataset()
        np.testing.assert_array_equal(node["scores"], trace.scores["text/64x3h2d8"]["scores"])
        assert node["token"].values.tolist() == ["a", "red", "cat"]
        assert node["scores"].attrs["units"] == "1"
        assert "ulam" in tree["maps/r2g"].to_dataset()


def test_wrong_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("export", "run.zarr", "-o", "run.csv").exit_code == 2
    monkeypatch.setattr("attrace.cli.commands.export.netcdf_has_groups", lambda: False)
    refused = run("export", "run.zarr", "-o", "run.nc")
    assert refused.exit_code == 2
    assert "attrace[netcdf]" in refused.stderr
    assert list(Path().iterdir()) == [Path("run.zarr")]
