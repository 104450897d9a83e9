"""Real servers on this machine: S3, WebDAV and plain HTTP give what the disk gives, to the last bit."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.rclone import rclone_serving
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, open_traces, pack, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.sharing.transfer import pull, push
from attrace.analysis.studies.aggregate import aggregate
from attrace.analysis.studies.engine import engine
from attrace.analysis.studies.trace_statistics import Settings
from attrace.schemas import TraceNotFoundError

SETTINGS = Settings(size=(8, 8))
TRACES = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `runs` with traces, the last of which lacks a layer, and one that is packed."""
    folder = tmp_path_factory.mktemp("served") / "bucket" / "runs"
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    for seed in range(TRACES):
        layers = ("down.0.attn2",) if seed == TRACES - 1 else ("down.0.attn2", "up.0.attn2")
        make_trace(folder / f"{seed}.zarr", (site_class(layers=layers),), seed=seed, images={"mask": mask})
    pack(folder / "0.zarr", folder.parent / "packed.zip")
    return folder


@pytest.fixture(scope="module")
def s3(runs: Path) -> Iterator[str]:
    with rclone_serving("s3", runs.parents[1]) as address:
        yield address


@pytest.fixture(scope="module")
def webdav(runs: Path) -> Iterator[str]:
    with rclone_serving("webdav", runs.parents[1]) as address:
        yield address


@pytest.fixture(scope="module")
def http(runs: Path) -> Iterator[str]:
    with rclone_serving("http", runs.parents[1]) as address:
        yield address


@pytest.fixture(params=["s3", "webdav"])
def writable(request: pytest.FixtureRequest) -> str:
    """A server that can be written to and lists folders."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture(params=["s3", "webdav", "http"])
def server(request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue(request.param)
    return address


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_trace_reads_as_on_disk(runs: Path, server: str) -> None:
    expected = ulam(open_trace(runs / "0.zarr"))
    for name in ("runs/0.zarr", "packed.zip"):
        trace = open_trace(f"{server}/bucket/{name}")
        np.testing.assert_array_equal(ulam(trace), expected)
        assert verify(f"{server}/bucket/{name}").issues == ()
    with pytest.raises(TraceNotFoundError):
        open_trace(f"{server}/bucket/none.zarr")


def test_there_and_back(runs: Path, writable: str, tmp_path: Path) -> None:
    folder = f"{writable}/bucket/new {writable.partition(':')[0]}"
    number = len(files(runs / "0.zarr"))
    other = Path(shutil.copytree(runs / "0.zarr", tmp_path / "other.zarr"))
    (other / "time/c/0").write_bytes(b"?")
    assert push(other, f"{folder}/run.zarr").sent == number
    again = push(runs / "0.zarr", f"{folder}/run.zarr")
    assert (again.files, again.sent) == (number, 1)
    assert pull(f"{folder}/run.zarr", tmp_path / "run.zarr").sent == number
    assert files(tmp_path / "run.zarr") == files(runs / "0.zarr")
    push(runs.parent / "packed.zip", f"{folder}/run.zip")
    pull(f"{folder}/run.zip", tmp_path / "run.zip")
    assert (tmp_path / "run.zip").read_bytes() == (runs.parent / "packed.zip").read_bytes()
    with pytest.raises(TraceNotFoundError):
        pull(f"{writable}/bucket/none.zarr", tmp_path / "none.zarr")


def test_traces_are_found(runs: Path, writable: str) -> None:
    for source in ("runs/", "runs/*.zarr", "runs/[0-3].zarr"):
        traces = open_traces(f"{writable}/bucket/{source}")
        assert [trace.path for trace in traces] == [f"{writable}/bucket/runs/{seed}.zarr" for seed in range(TRACES)]
    np.testing.assert_array_equal(ulam(traces), ulam(open_traces(runs)))
    (packed,) = open_traces(f"{writable}/bucket/*.zip")
    assert packed.steps == open_trace(runs / "0.zarr").steps


def test_a_plain_web_server_gives_what_is_named(runs: Path, http: str, tmp_path: Path) -> None:
    addresses = [f"{http}/bucket/runs/{seed}.zarr" for seed in range(TRACES)]
    np.testing.assert_array_equal(ulam(open_traces(addresses)), ulam(open_traces(runs)))
    pull(f"{http}/bucket/packed.zip", tmp_path / "run.zip")
    assert (tmp_path / "run.zip").read_bytes() == (runs.parent / "packed.zip").read_bytes()
    with pytest.raises(OSError, match=r"cannot be listed .*only WebDAV servers list folders: name each trace"):
        open_traces(f"{http}/bucket/runs/*.zarr")
    pull(addresses[0], tmp_path / "run.zarr")
    assert files(tmp_path / "run.zarr") == files(runs / "0.zarr")
    with pytest.raises(OSError, match=r"cannot be written .*expected a WebDAV server"):
        push(runs / "0.zarr", f"{http}/bucket/new.zarr")


def values(dataset: xr.Dataset) -> xr.Dataset:
    """All but where the traces lie."""
    return dataset.drop_vars("trace")


@pytest.fixture(scope="module")
def expected(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return values(aggregate(runs, tmp_path_factory.mktemp("parts"), settings=SETTINGS).dataset)


def test_aggregating_from_a_server(expected: xr.Dataset, writable: str, tmp_path: Path) -> None:
    made = aggregate(f"{writable}/bucket/runs/", tmp_path, settings=SETTINGS)
    assert made.broken == {}
    assert values(made.dataset).identical(expected)


def test_aggregating_from_s3_in_processes(expected: xr.Dataset, s3: str, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        made = aggregate(f"{s3}/bucket/runs/*.zarr", tmp_path, settings=SETTINGS, executor=pool)
    assert values(made.dataset).identical(expected)


def test_aggregating_from_s3_on_a_cluster(expected: xr.Dataset, s3: str, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="clusters are an extra")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        engine(cluster.scheduler_address) as pool,
    ):
        made = aggregate(f"{s3}/bucket/runs/", tmp_path, settings=SETTINGS, executor=pool)
    assert made.broken == {}
    assert values(made.dataset).identical(expected)
