"""Dask records a list of jobs: none is lost or done twice, whatever happens to its workers."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from support.models import box_mask, demo, picture
from support.reading import read_array, read_manifest

from attrace.recorder.jobs import cluster
from attrace.recorder.jobs.cluster import record_jobs_in_processes, record_jobs_on
from attrace.recorder.jobs.joblist import Job, read_jobs
from attrace.recorder.jobs.jobs import JobResult, record_job
from attrace.recorder.jobs.pipelines import load_pipeline
from attrace.schemas import InputError

distributed = pytest.importorskip("distributed", reason="clusters are an extra")

INPUTS = {"image": "@scene.png", "mask_image": "@mask.png", "reference_image": "@shoe.png"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with pictures and a pipeline."""
    picture(seed=0).save(tmp_path / "scene.png")
    picture(seed=1).save(tmp_path / "shoe.png")
    box_mask().save(tmp_path / "mask.png")
    demo().save_pretrained(tmp_path / "pipeline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client() -> Iterator[Any]:
    """A cluster of threads of this process."""
    web = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    options = {"nthreads": 2, "memory_limit": None, **web}
    workers = {number: {"cls": distributed.Worker, "options": options} for number in range(2)}
    scheduler = {"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "port": 0, **web}}
    quiet = logging.CRITICAL
    with (
        distributed.SpecCluster(workers, scheduler, silence_logs=quiet) as local,
        distributed.Client(local) as made,
    ):
        yield made
    cluster._loaded.cache_clear()


def loading(folder: Path, device: str = "cpu") -> dict[str, Any]:
    class_name = "attrace.demo.pipeline:ReferenceInpaintPipeline"
    return {"source": str(folder / "pipeline"), "class_name": class_name, "device": device}


def listed(*lines: dict[str, Any], steps: int = 2) -> tuple[Job, ...]:
    """Jobs `0`, `1`, ... with the seeds 0, 1, ..., and what is given for each, in a list of relative paths."""
    made = [{"id": str(seed), "seed": seed, "steps": steps, "inputs": INPUTS} | line for seed, line in enumerate(lines)]
    Path("jobs.jsonl").write_text("\n".join(json.dumps(line) for line in made))
    return read_jobs(Path("jobs.jsonl"), Path("runs"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_workers_record_what_is_listed_and_tell_of_it(folder: Path, client: Any) -> None:
    jobs = listed({}, {"inputs": INPUTS | {"guidance_scale": "three"}}, {"save_image": "2.png"}, {})
    told: list[JobResult] = []
    results = record_jobs_on(client, loading(folder), jobs, report=told.append, layers="up_blocks.1.*")
    assert told == results
    by_seed = {one.job.seed: one for one in results}
    assert [by_seed[seed].state for seed in range(4)] == ["recorded", "failed", "recorded", "recorded"]
    assert [by_seed[seed].job for seed in range(4)] == list(jobs)
    assert "does not work with these arguments" in str(by_seed[1].problem)
    assert by_seed[0].statistics is not None
    assert by_seed[0].statistics.steps == 2
    assert names(folder / "runs") == ["0.zarr", "2.png", "2.zarr", "3.zarr"]
    assert {one.state for one in record_jobs_on(client, loading(folder), (jobs[0], *jobs[2:]))} == {"there"}


def test_a_worker_records_one_job_at_a_time_and_loads_once(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, most, loads = Counter[str](), [], []

    def counted(*arguments: Any) -> JobResult:
        at_work["jobs"] += 1
        most.append(at_work["jobs"])
        time.sleep(0.05)
        at_work["jobs"] -= 1
        return record_job(*arguments)

    def loaded(**arguments: Any) -> Any:
        loads.append(arguments)
        return load_pipeline(**arguments)

    monkeypatch.setattr(cluster, "record_job", counted)
    monkeypatch.setattr(cluster, "_loaded", lru_cache(maxsize=1)(loaded))
    results = record_jobs_on(client, loading(folder), listed(*[{}] * 4))
    assert [one.state for one in results] == ["recorded"] * 4
    assert set(most) == {1}  # the workers of this cluster are threads of one process
    assert len(loads) == 1


def test_what_a_worker_is_warned_of_is_told(folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:

    def warned(*arguments: Any) -> JobResult:
        warnings.warn("layers are guessed", stacklevel=1)
        return record_job(*arguments)

    monkeypatch.setattr(cluster, "record_job", warned)
    (result,) = record_jobs_on(client, loading(folder), listed({}))
    assert result.warnings == ("layers are guessed",)


def test_what_does_not_fit_is_refused_before_anything_is_recorded(folder: Path, client: Any) -> None:
    with pytest.raises(InputError, match=r"jobs\.jsonl:2: inputs: .*takes no argument 'strenght'"):
        record_jobs_on(client, loading(folder), listed({}, {"inputs": INPUTS | {"strenght": 1}}))
    with pytest.raises(InputError, match=r"offer no GPU: start each as dask worker .*--resources"):
        record_jobs_on(client, loading(folder, "cuda"), listed({}))
    with pytest.raises(InputError, match="cannot load a pipeline"):
        record_jobs_on(client, loading(folder / "runs"), listed({}))
    assert not (folder / "runs").exists()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-1f,6")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in cluster._environments(2, "cuda")] == ["4", "GPU-1f"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in cluster._environments(3, "cuda")] == ["0", "1", "2"]
    assert cluster._environments(2, "cpu") == [{}, {}]
    with pytest.raises(InputError, match="4 workers need as many GPUs, torch sees 3"):
        cluster._environments(4, "cuda")
    with pytest.raises(InputError, match="expected cuda"):
        cluster._environments(1, "cuda:1")


def test_a_lost_cluster_is_said(folder: Path, client: Any) -> None:
    def end(_: JobResult) -> None:
        client.cluster.close()

    with pytest.raises(ConnectionError, match="run the same command again"):
        record_jobs_on(client, loading(folder), listed(*[{}] * 5), report=end)


@pytest.mark.slow
def test_jobs_of_workers_that_are_killed_at_random_are_neither_lost_nor_done_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, choice, killed = listed(*[{}] * 16, steps=12), random.Random(0), Counter[str]()
    finished, progress = threading.Event(), threading.Event()
    made = cluster._local_cluster

    def kill(client: Any) -> None:
        """Kill a worker at work after each job that is done; none at a job for the third time, which Dask gives up."""
        while killed.total() < 6 and progress.wait(600) and not finished.wait(choice.uniform(0, 1)):
            at_work = {worker: keys[0] for worker, keys in client.processing().items() if keys}
            victims = [worker for worker, key in at_work.items() if killed[key] < 3]
            if victims:
                victim = choice.choice(victims)
                process = client.run(os.getpid, workers=[victim])[victim]
                killed[at_work[victim]] += 1
                progress.clear()
                os.kill(process, signal.SIGKILL)

    @contextmanager
    def watched(*arguments: Any) -> Iterator[Any]:
        with made(*arguments) as client:
            killer = threading.Thread(target=kill, args=(client,))
            killer.start()
            try:
                yield client
            finally:
                finished.set()
                progress.set()
                killer.join()

    monkeypatch.setattr(cluster, "_local_cluster", watched)
    results = record_jobs_in_processes(4, loading(folder), jobs, report=lambda _: progress.set())
    assert killed.total() >= 3
    assert sorted(one.job.seed for one in results if one.job.seed is not None) == list(range(16))
    assert {one.state for one in results} <= {"recorded", "there"}  # `there`: its worker died before it said so
    assert names(folder / "runs") == sorted(f"{seed}.zarr" for seed in range(16))
    for job in jobs:
        assert (read_manifest(job.output).status, read_manifest(job.output).steps) == ("complete", 12)
        assert read_array(job.output, "step_done").sum() == 12


STOPPED = """
import sys
from pathlib import Path
from attrace.recorder.jobs.cluster import record_jobs_in_processes
from attrace.recorder.jobs.joblist import read_jobs

if __name__ == "__main__":
    class_name = "attrace.demo.pipeline:ReferenceInpaintPipeline"
    loading = {"source": "pipeline", "class_name": class_name, "device": "cpu"}
    record_jobs_in_processes(2, loading, read_jobs(Path("jobs.jsonl"), Path("runs")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True])
def test_a_list_that_is_stopped_keeps_the_finished_steps(folder: Path, everyone: bool) -> None:
    """As a batch system stops one process, and as Ctrl-C on a terminal reaches all of them."""
    jobs = listed({}, {"steps": 900}, {"steps": 900})
    Path("stopped.py").write_text(STOPPED)
    process = subprocess.Popen([sys.executable, "stopped.py"], start_new_session=True)
    while len(list((folder / "runs").glob(".[12].zarr.*/step_done/c/0"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    if everyone:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    process.wait(60)
    assert names(folder / "runs") == ["0.zarr", "1.zarr", "2.zarr"]
    assert [job.is_complete for job in jobs] == [True, False, False]
    for job in jobs[1:]:
        assert 0 < read_array(job.output, "step_done").sum() < 900
