"""Statistics over many traces: right, resumed, and the same bits on threads, processes and a cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from support.traces import make_trace, site_class

from attrace.analysis import agreement, entropy, hlam, imacs, mass, open_traces, ulam
from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.analysis.studies.aggregate import aggregate, summary_table
from attrace.analysis.studies.engine import engine
from attrace.analysis.studies.moments import Moments, merge_pairwise
from attrace.analysis.studies.trace_statistics import Settings
from attrace.schemas import Direction, InputError

SETTINGS = Settings(size=(8, 8))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five traces with masks, the last of which lacks a layer."""
    folder = tmp_path_factory.mktemp("runs")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    for seed in range(5):
        layers = ("down.0.attn2",) if seed == 4 else ("down.0.attn2", "up.0.attn2")
        make_trace(folder / f"{seed}.zarr", (site_class(layers=layers),), seed=seed, steps=6, images={"mask": mask})
    return folder


@pytest.fixture(scope="module")
def expected(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return aggregate(runs, tmp_path_factory.mktemp("parts"), settings=SETTINGS).dataset


def test_moments_are_those_of_the_maps(runs: Path, expected: xr.Dataset) -> None:
    maps = ulam(open_traces(runs), size=(8, 8)).compute().values.astype(np.float64)
    assert np.allclose(expected["ulam_mean"].sel(direction="r2g"), maps.mean(axis=0), rtol=1e-12)
    assert np.allclose(expected["ulam_variance"].sel(direction="r2g"), maps.var(axis=0, ddof=1), rtol=1e-9)
    assert (expected["ulam_count"].sel(direction="r2g") == 5).all()


def test_a_layer_counts_the_traces_that_have_it(expected: xr.Dataset) -> None:
    counts = expected["llam_count"].sel(direction="g2r").max(["row", "column"])
    assert dict(zip(counts["layer"].values.tolist(), counts.values.tolist(), strict=True)) == {
        "down.0.attn2": 5,
        "up.0.attn2": 4,
    }
    assert not expected["llam_mean"].sel(direction="g2r").isnull().any()


@pytest.mark.parametrize(("direction", "size"), [("r2g", (8, 8)), ("g2r", (4, 4))])
def test_head_statistics_are_the_scores_of_the_maps(
    runs: Path, expected: xr.Dataset, direction: Direction, size: tuple[int, int]
) -> None:
    by_head = [hlam(trace, direction=direction, layers="down*", size=size).compute() for trace in open_traces(runs)]
    found = expected.sel(layer="down.0.attn2", direction=direction)
    np.testing.assert_allclose(found["entropy_mean"], np.mean([entropy(one) for one in by_head], axis=0))
    alike = np.mean([agreement(one, "head") for one in by_head])
    np.testing.assert_allclose(found["agreement_mean"], alike)
    if direction == "r2g":
        mask = next(iter(open_traces(runs))).images["mask"].values > 127
        np.testing.assert_allclose(found["inside_mean"], np.mean([mass(one, mask) for one in by_head], axis=0))
        assert found["inside_mean"].dims == ("head",)


def test_one_head_agrees_with_none(tmp_path: Path) -> None:
    make_trace(tmp_path / "runs/one.zarr", (site_class(heads=1),))
    made = aggregate(tmp_path / "runs", tmp_path / "parts", settings=SETTINGS).dataset
    assert "agreement_mean" not in made
    assert (made["entropy_mean"] > 0).all()


def test_scores_are_those_of_every_trace(runs: Path, expected: xr.Dataset) -> None:
    traces = open_traces(runs)
    masks = [trace.images["mask"].values > 127 for trace in traces]
    scores = [float(imacs(ulam(trace, size=(8, 8)), mask)) for trace, mask in zip(traces, masks, strict=True)]
    assert np.allclose(expected["scores"].sel(score="imacs"), scores)
    low, high = expected["scores_interval"].sel(score="imacs").values
    assert low <= np.mean(scores) <= high


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="clusters are an extra")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local:
        yield local


def test_processes_give_the_same_bits(runs: Path, expected: xr.Dataset, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert aggregate(runs, tmp_path, settings=SETTINGS, executor=pool).dataset.identical(expected)


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits_though_a_worker_dies(
    runs: Path, expected: xr.Dataset, tmp_path: Path, cluster: Any
) -> None:
    victims = [worker.pid for worker in cluster.workers.values()]

    def kill_one(done: int, _total: int) -> None:
        if done == 1:
            os.kill(victims[0], signal.SIGKILL)

    with engine(cluster.scheduler_address) as pool:
        made = aggregate(runs, tmp_path, settings=SETTINGS, executor=pool, progress=kill_one)
    assert made.broken == {}
    assert made.dataset.identical(expected)


class Counting(ThreadPoolExecutor):
    """Counts what it is asked to do, and stops after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(1)
        self.sizes: list[int] = []
        self._stop_after = stop_after

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if len(self.sizes) == self._stop_after:
            raise KeyboardInterrupt
        self.sizes.append(len(pickle.dumps((fn, args, kwargs))))
        return super().submit(fn, *args, **kwargs)


def test_tasks_are_small(runs: Path, tmp_path: Path) -> None:
    with Counting() as pool:
        aggregate(runs, tmp_path, settings=SETTINGS, executor=pool)
    assert len(pool.sizes) == 5
    assert max(pool.sizes) < 1000


def test_an_interrupted_run_goes_on(runs: Path, expected: xr.Dataset, tmp_path: Path) -> None:
    stop_after = 2 * (os.cpu_count() or 1) + 1
    with Counting(min(stop_after, 4)) as pool, pytest.raises(KeyboardInterrupt):
        aggregate(runs, tmp_path, settings=SETTINGS, executor=pool)
    saved = len(list(tmp_path.glob("*.nc")))
    with Counting() as pool:
        made = aggregate(runs, tmp_path, settings=SETTINGS, executor=pool)
    assert len(pool.sizes) == 5 - saved
    assert made.dataset.identical(expected)


@pytest.mark.parametrize("length", [0, 100, 3000, -1])
def test_a_part_that_was_cut_off_is_computed_again(
    runs: Path, expected: xr.Dataset, tmp_path: Path, length: int
) -> None:
    aggregate(runs, tmp_path, settings=SETTINGS)
    part = next(tmp_path.glob("*.nc"))
    part.write_bytes(part.read_bytes()[:length])
    with Counting() as pool:
        made = aggregate(runs, tmp_path, settings=SETTINGS, executor=pool)
    assert len(pool.sizes) == 1
    assert made.dataset.identical(expected)


def test_copies_of_a_trace_are_computed_once_and_told(runs: Path, tmp_path: Path) -> None:
    for name in ("0.zarr", "again.zarr", "more.zarr"):
        shutil.copytree(runs / "0.zarr", tmp_path / "runs" / name)
    with Counting() as pool:
        made = aggregate(tmp_path / "runs", tmp_path / "parts", settings=SETTINGS, executor=pool)
    assert len(pool.sizes) == 1
    names = {Path(path).name: Path(original).name for path, original in made.copies.items()}
    assert names == {"again.zarr": "0.zarr", "more.zarr": "0.zarr"}
    assert made.dataset.sizes["trace"] == 3


def test_a_broken_trace_is_reported_and_stops_no_other(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs/0.zarr/zarr.json").write_text("{")
    chunk = tmp_path / "runs/1.zarr/reference/64x16h2d8/query_vector/c/0/0/0/0/0"
    chunk.write_bytes(b"broken" + chunk.read_bytes()[6:])
    made = aggregate(tmp_path / "runs", tmp_path / "parts", settings=SETTINGS)
    assert [Path(path).name for path in made.broken] == ["0.zarr", "1.zarr"]
    assert made.dataset.sizes["trace"] == 3


def test_nothing_but_broken_traces_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.zarr"):
        aggregate(tmp_path, tmp_path / "parts")


def test_maps_can_be_aligned_to_the_mask(runs: Path, expected: xr.Dataset, tmp_path: Path) -> None:
    aligned = aggregate(runs, tmp_path, settings=Settings(size=(8, 8), align=True)).dataset
    whole = expected["ulam_mean"].sel(direction="r2g").values
    # the mask covers rows 2 to 5 and columns 1 to 4 of 8; a cell of the box is half a cell of the whole
    assert np.allclose(
        aligned["ulam_mean"].sel(direction="r2g")[1, 1], whole[2:4, 1:3].ravel() @ np.array([9, 3, 3, 1]) / 16
    )
    assert np.array_equal(aligned["ulam_mean"].sel(direction="g2r"), expected["ulam_mean"].sel(direction="g2r"))


def test_the_table_has_every_score_and_statistic(expected: xr.Dataset) -> None:
    table = summary_table(expected)
    of_all = table[(table["statistic"] == "imacs") & table["trace"].isna()]
    assert of_all["mean"].item() == pytest.approx(float(expected["scores"].sel(score="imacs").mean()))
    assert ((table["statistic"] == "entropy_r2g") & table["layer"].notna()).sum() == 4
    assert table["trace"].nunique() == 5


@given(st.lists(st.floats(-1e3, 1e3) | st.just(float("nan")), min_size=1, max_size=40))
def test_merging_is_mean_and_variance(values: list[float]) -> None:
    merged = merge_pairwise(Moments.of(xr.Dataset({"value": value})) for value in values)
    known = np.array(values)[~np.isnan(values)]
    assert merged.count["value"] == known.size
    if known.size:
        assert float(merged.mean["value"]) == pytest.approx(known.mean(), abs=1e-9)
        assert float(merged.squares["value"]) == pytest.approx(((known - known.mean()) ** 2).sum(), rel=1e-9, abs=1e-6)


def test_the_interval_is_seeded_and_leaves_out_nan() -> None:
    values = np.append(np.random.default_rng(0).normal(3, 1, 400), np.nan)
    low, high = bootstrap_interval(values, seed=1)
    assert np.array_equal([low, high], bootstrap_interval(values, seed=1))
    half_width = 1.96 / 20
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.15)
    assert low < 3.05 < high or low < 2.95 < high
    assert np.isnan(bootstrap_interval(np.array([np.nan]), seed=0)).all()
