"""`attrace aggregate` writes statistics over many traces, and says what it left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr
from support.rclone import rclone_serving

from .conftest import Run


@pytest.fixture
def two(trace: Path) -> Path:
    shutil.copytree(trace, trace.parent / "runs" / "a.zarr")
    shutil.copytree(trace, trace.parent / "runs" / "b.zarr")
    return trace.parent


def test_statistics_are_written_and_the_parts_go(run: Run, two: Path) -> None:
    result = run("aggregate", "runs", "-o", "stats.zarr", "--size", "8x8", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    printed = json.loads(result.stdout)
    assert printed["traces"] == 2
    assert "runs/b.zarr is a copy of runs/a.zarr: both count" in result.stderr
    with xr.open_zarr(two / "stats.zarr", consolidated=False) as stats:
        assert stats["ulam_mean"].sel(direction="r2g").sizes == {"row": 8, "column": 8}
        assert float(stats["scores"].sel(score="imacs").mean()) == pytest.approx(printed["scores"]["imacs"]["mean"])
    assert not (two / "stats.zarr.parts").exists()


def test_a_table_is_written(run: Run, two: Path) -> None:
    result = run("aggregate", "runs/a.zarr", "runs/b.zarr", "-o", "stats.csv")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "imacs" in result.stdout
    assert set(pd.read_csv(two / "stats.csv")["statistic"]) >= {"imacs", "entropy_g2r", "inside_r2g"}


def test_a_parquet_file_is_the_table(run: Run, two: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet is an extra")
    for name in ("stats.parquet", "stats.csv"):
        assert run("aggregate", "runs", "-o", name, "--size", "8x8").exit_code == 0
    written = pd.read_parquet(two / "stats.parquet")
    pd.testing.assert_frame_equal(written, pd.read_csv(two / "stats.csv"), check_dtype=False, rtol=1e-12)


@pytest.mark.usefixtures("two")
def test_a_parquet_file_needs_its_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrace.cli.commands.aggregate.find_spec", lambda _: None)
    assert "pip install 'attrace[parquet]'" in run("aggregate", "runs", "-o", "stats.parquet").stderr


def test_traces_on_s3_are_aggregated(run: Run, two: Path) -> None:
    expected = run("aggregate", "runs", "-o", "local.csv", "--size", "8x8", "--json")
    (two / "served").mkdir()
    (two / "runs").rename(two / "served/bucket")
    with rclone_serving("s3", two / "served") as address:
        result = run("aggregate", f"{address}/bucket/", "-o", "stats.csv", "--size", "8x8", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout) == json.loads(expected.stdout)


def test_a_broken_trace_is_named_at_the_end(run: Run, two: Path) -> None:
    (two / "runs/a.zarr/zarr.json").write_text("{")
    result = run("aggregate", "runs", "-o", "stats.csv")
    assert result.exit_code == 1
    assert "a.zarr" in result.stderr
    assert (two / "stats.csv").exists()


@pytest.mark.usefixtures("two")
def test_what_does_not_fit_is_refused(run: Run) -> None:
    assert run("aggregate", "runs", "-o", "stats.xlsx").exit_code == 2
    assert run("aggregate", "runs", "-o", "stats.csv", "--layers", "none.*").exit_code == 2
    assert "there is no such file" in run("aggregate", "none.zarr", "-o", "stats.csv").stderr


def test_only_what_we_wrote_is_replaced(run: Run, two: Path) -> None:
    (two / "stats.zarr").mkdir()
    assert run("aggregate", "runs", "-o", "stats.zarr").exit_code == 1
    assert "did not write" in run("aggregate", "runs", "-o", "stats.zarr", "--overwrite").stderr
