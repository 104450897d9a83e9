"""Other Zarr implementations read a trace, as docs/format.md shows it, and get the numbers of `sram`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, sram

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
EXAMPLES = dict(
    zip(
        ("xarray", "digest", "zarr", "tensorstore", "zarrs", "zarrita"),
        re.findall(r"```(?:python|js)\n(.*?)```", DOCUMENT, re.DOTALL),
        strict=True,
    )
)
NODE_MODULES = os.environ.get("ATTRACE_NODE_MODULES", "")
STEP, LAYER, QUERY = 1, 0, 5
"""The row that the examples read."""


@pytest.fixture(params=["float16", "float32", "float16, shuffled", "float32, shuffled"])
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> NDArray[np.float64]:
    """What one generated patch uses of each patch of the reference in `run.zarr`, by `sram`."""
    dtype, _, shuffled = request.param.partition(", ")
    rows, columns = (64, 80) if shuffled else (8, 8)  # a block of blosc and a part of one
    features = 64 if shuffled else 8
    one = site_class(dtype=dtype, query_grid=(rows, columns), features=features)
    path = make_trace(tmp_path / "run.zarr", (one,), steps=2, static_keys=False).path
    codecs = json.loads((path / one.group / "query_vector/zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "blosc" if shuffled else "zstd", "crc32c"]
    monkeypatch.chdir(tmp_path)
    trace = open_trace(path).sel(layer=one.sites[LAYER].path, time=STEP)
    return sram(trace, at=divmod(QUERY, columns), size=(4, 4), density=False).values.ravel().astype(np.float64)


def test_xarray(expected: NDArray[np.float64]) -> None:
    row = f"softmax.isel(time={STEP}, query={QUERY}).mean('head').values"
    softmax = "softmax = (weights := __import__('numpy').exp(scores)) / weights.sum('key')"
    np.testing.assert_allclose(_python(f"{EXAMPLES['xarray']}\n{softmax}\nshares = {row}"), expected, rtol=1e-5)


def _printed(*command: str) -> NDArray[np.float64]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


def _python(example: str) -> NDArray[np.float64]:
    return _printed(sys.executable, "-c", f"{example}\nprint(shares.tolist())")


@pytest.mark.skipif(not find_spec("tensorstore"), reason="tensorstore is not installed")
def test_tensorstore(expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(_python(EXAMPLES["tensorstore"]), expected, rtol=1e-5)


@pytest.mark.skipif(not find_spec("zarrs"), reason="zarrs is not installed")
def test_zarrs(expected: NDArray[np.float64]) -> None:
    row = f"softmax_over_keys(manifest['classes'][0], {STEP}, {LAYER}, {QUERY})"
    used = "assert 'Zarrs' in type(root['time']._async_array.codec_pipeline).__name__"
    found = _python("\n".join([EXAMPLES["zarrs"], EXAMPLES["zarr"], used, f"shares = {row}.mean(axis=0)"]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.skipif(not (shutil.which("node") and NODE_MODULES), reason="no node, or ATTRACE_NODE_MODULES is not set")
def test_zarrita(expected: NDArray[np.float64]) -> None:
    Path("node_modules").symlink_to(NODE_MODULES)
    Path("read.mjs").write_text(f"{EXAMPLES['zarrita']}\nconsole.log(JSON.stringify(Array.from(shares)));\n")
    np.testing.assert_allclose(_printed("node", "read.mjs"), expected, rtol=1e-5)
