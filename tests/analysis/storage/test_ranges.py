"""A packed trace on a real S3 server: what is needed is asked for by range requests; a proxy counts what comes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.proxy import counting
from support.rclone import rclone_serving
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack
from attrace.analysis.storage.zip_files import TAIL_BYTES
from attrace.cli import main

pytest.importorskip("obstore")


def test_opening_and_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tuple(f"up.{number}.attn2" for number in range(4))
    one = site_class("reference/256x16h4d32", heads=4, query_grid=(16, 16), features=32, layers=layers)
    bucket = tmp_path / "served/bucket"
    bucket.mkdir(parents=True)
    packed = pack(make_trace(tmp_path / "run.zarr", (one,), steps=8).path, bucket / "run.zip")
    assert packed.stat().st_size > 3_000_000
    with (
        rclone_serving("s3", tmp_path / "served") as root,
        counting(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")) as proxy,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        url = f"{root}/bucket/run.zip"
        result = CliRunner().invoke(main, ["info", url, "--json"])
        assert json.loads(result.stdout)["finished_steps"] == 8
        assert proxy.statuses == [200, 206]  # its length, and its end
        assert TAIL_BYTES < proxy.received < TAIL_BYTES + 4096  # with headers
        trace = open_trace(url)
        before = proxy.received
        expected = open_trace(packed).stored.array(f"{one.group}/query_vector")[3, 2]
        np.testing.assert_array_equal(trace.stored.array(f"{one.group}/query_vector")[3, 2], expected)
        stored = (tmp_path / f"run.zarr/{one.group}/query_vector/c/3/2/0/0/0").stat().st_size
        assert stored < proxy.received - before < stored + 2048
        assert proxy.statuses[4:] == [206]
