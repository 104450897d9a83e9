"""A list of jobs is recorded: one trace each, also where processes meet at a job or one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import box_mask, demo, picture
from support.reading import read_array, read_manifest
from support.traces import make_trace

from attrace.recorder.jobs import jobs as jobs_module
from attrace.recorder.jobs.joblist import Job, read_jobs
from attrace.recorder.jobs.jobs import JobResult, record_jobs
from attrace.recorder.jobs.pipelines import generate
from attrace.schemas import CaptureError, InputError

TESTS = Path(__file__).parents[2]

INPUTS = {"image": "@scene.png", "mask_image": "@mask.png", "reference_image": "@shoe.png"}

WORKER = """
import json, sys, time
from pathlib import Path
from support.models import demo
from attrace.recorder.jobs.joblist import read_jobs
from attrace.recorder.jobs.jobs import record_jobs

folder = Path(sys.argv[1])
pipeline, jobs = demo(), read_jobs(folder / "jobs.jsonl", folder / "runs")
print("ready", flush=True)
while not (folder / "go").exists():
    time.sleep(0.01)
results = record_jobs(pipeline, jobs)
print(json.dumps({one.job.output.name: [one.state, one.problem] for one in results}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(seed=0).save(tmp_path / "scene.png")
    picture(seed=1).save(tmp_path / "shoe.png")
    box_mask().save(tmp_path / "mask.png")
    return tmp_path


def listed(folder: Path, *lines: dict[str, Any], steps: int = 2) -> tuple[Job, ...]:
    """Jobs `0`, `1`, ... with the seeds 0, 1, ..., and what is given for each."""
    made = [{"id": str(seed), "seed": seed, "steps": steps, "inputs": INPUTS} | line for seed, line in enumerate(lines)]
    (folder / "jobs.jsonl").write_text("\n".join(json.dumps(line) for line in made))
    return read_jobs(folder / "jobs.jsonl", folder / "runs")


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that waits for a file `go`, then records the list."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )


def results_of(worker: subprocess.Popen[str]) -> dict[str, list[str]]:
    output, _ = worker.communicate(timeout=300)
    assert worker.returncode == 0
    results: dict[str, list[str]] = json.loads(output.splitlines()[-1])
    return results


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def states(results: list[JobResult]) -> list[str]:
    return [one.state for one in results]


def test_jobs_are_recorded_once_with_their_pictures(folder: Path) -> None:
    jobs = listed(folder, {"reference": "reference_image", "mask": "mask_image", "save_image": "0.png"}, {"steps": 3})
    pipeline, told = demo(), list[JobResult]()
    results = record_jobs(pipeline, jobs, report=told.append, layers="up_blocks.1.*")
    assert states(results) == ["recorded", "recorded"]
    assert told == results
    assert names(folder / "runs") == ["0.png", "0.zarr", "1.zarr"]
    first, second = (read_manifest(job.output) for job in jobs)
    assert (first.status, first.steps, first.seed, second.steps, second.seed) == ("complete", 2, 0, 3, 1)
    assert np.array_equal(read_array(jobs[0].output, "images/reference"), np.asarray(picture(seed=1)))
    generated = [read_array(job.output, "images/generated") for job in jobs]
    assert not np.array_equal(generated[0], generated[1])
    assert states(record_jobs(pipeline, jobs)) == ["there", "there"]
    assert read_manifest(jobs[0].output).id == first.id


def test_an_interrupted_trace_is_replaced_when_the_new_one_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = listed(folder, {})
    make_trace(job.output, status="interrupted")
    old = read_manifest(job.output).id

    def fail(*_: Any) -> None:
        assert read_manifest(job.output).id == old
        raise CaptureError("no")

    with monkeypatch.context() as patch:
        patch.setattr(jobs_module, "generate", fail)
        (failed,) = record_jobs(demo(), [job])
    assert (failed.state, failed.problem) == ("failed", "no")
    assert read_manifest(job.output).id == old
    assert states(record_jobs(demo(), [job])) == ["recorded"]
    assert read_manifest(job.output).status == "complete"
    assert names(folder / "runs") == ["0.zarr"]


def test_a_job_that_fails_costs_no_other(folder: Path) -> None:
    jobs = listed(folder, {}, {"inputs": INPUTS | {"guidance_scale": "three"}}, {})
    results = record_jobs(demo(), jobs)
    assert states(results) == ["recorded", "failed", "recorded"]
    assert results[1].problem is not None
    assert "ReferenceInpaintPipeline does not work with these arguments" in results[1].problem
    assert names(folder / "runs") == ["0.zarr", "2.zarr"]


def test_arguments_of_every_job_are_checked_first(folder: Path) -> None:
    jobs = listed(folder, {}, {"inputs": INPUTS | {"strenght": 1}})
    with pytest.raises(InputError, match=r"jobs\.jsonl:2: inputs: .*takes no argument 'strenght'"):
        record_jobs(demo(), jobs)
    assert not (folder / "runs").exists()


def test_a_job_that_is_stopped_keeps_its_steps_and_lets_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, calls = listed(folder, {}, {}, steps=4), []

    def stop(_: object, sample: Any, *__: object) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return sample

    pipeline = demo()
    monkeypatch.setattr(type(pipeline.scheduler), "scale_model_input", stop)
    with pytest.raises(KeyboardInterrupt):
        record_jobs(pipeline, jobs)
    monkeypatch.undo()
    assert [read_manifest(job.output).status for job in jobs] == ["complete", "interrupted"]
    assert read_manifest(jobs[1].output).steps == 2
    assert names(folder / "runs") == ["0.zarr", "1.zarr"]
    assert states(record_jobs(pipeline, jobs)) == ["there", "recorded"]
    assert read_manifest(jobs[1].output).steps == 4


def test_two_processes_with_one_list_do_each_other_no_harm(folder: Path) -> None:
    jobs = listed(folder, *[{}] * 4, steps=10)
    workers = [start(folder), start(folder)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    (folder / "go").touch()
    first, second = map(results_of, workers)
    for job in jobs:
        assert "recorded" in {first[job.output.name][0], second[job.output.name][0]} <= {"recorded", "there"}
        assert read_manifest(job.output).status == "complete"
    assert names(folder / "runs") == [f"{seed}.zarr" for seed in range(4)]


@pytest.mark.parametrize("there", [False, True])
def test_of_two_that_record_one_job_the_first_to_finish_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    (job,) = listed(folder, {"save_image": "0.png"})
    if there:
        make_trace(job.output, status="interrupted")
    ids: list[str] = []

    def overtaken(pipeline: Any, arguments: Any) -> Any:
        picture = generate(pipeline, arguments)
        if not ids:
            ids.append("")
            (done,) = record_jobs(demo(), [job])
            assert done.state == "recorded"
            ids[0] = read_manifest(job.output).id
        return picture

    monkeypatch.setattr(jobs_module, "generate", overtaken)
    (late,) = record_jobs(demo(), [job])
    assert (late.state, late.problem) == ("there", None)
    assert [read_manifest(job.output).id] == ids
    assert names(folder / "runs") == ["0.png", "0.zarr"]


def test_what_is_no_trace_is_never_put_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = listed(folder, {})

    def meanwhile(pipeline: Any, arguments: Any) -> Any:
        job.output.mkdir()
        (job.output / "precious").write_text("")
        return generate(pipeline, arguments)

    monkeypatch.setattr(jobs_module, "generate", meanwhile)
    (failed,) = record_jobs(demo(), [job])
    assert failed.state == "failed"
    assert "is not a trace" in str(failed.problem)
    assert names(folder / "runs") == ["0.zarr"]
    assert names(job.output) == ["precious"]


def test_a_killed_process_is_gone_on_from(folder: Path) -> None:
    jobs = listed(folder, {}, {"steps": 300}, {})
    (folder / "go").touch()
    worker = start(folder)
    runs = folder / "runs"
    while not (found := list(runs.glob(".1.zarr.*.partial/step_done/c/0"))):
        assert worker.poll() is None
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert read_array(found[0].parents[2], "step_done").sum() < 300
    assert names(runs)[0].startswith(".1.zarr.")
    before = read_manifest(jobs[0].output).id
    listed(folder, {}, {"steps": 3}, {})
    assert {name: state for name, (state, _) in results_of(start(folder)).items()} == {
        "0.zarr": "there",
        "1.zarr": "recorded",
        "2.zarr": "recorded",
    }
    assert read_manifest(jobs[0].output).id == before
    assert read_manifest(jobs[1].output).steps == 3
    assert names(runs) == ["0.zarr", "1.zarr", "2.zarr"]
