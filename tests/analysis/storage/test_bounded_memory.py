"""A trace larger than the memory that a process may take is analysed in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.traces import site_class

from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.schemas import Manifest, ModelIdentity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="only Linux counts what RLIMIT_DATA limits and says how much of it there is"
    ),
]

STEPS = 200
GROUP = "reference/1024x256h8d8"
ROOM = 96
"""MiB that the work may take beside what Python, the libraries and the compiled kernel hold: two threads, each with
one chunk of 8 MiB as it is read, checked and decoded. One task's chunks of scores held together take 80 MiB."""

LIMITED = """
import resource, sys, threading
threading.stack_size(2**20)  # stacks count, whether used or not
import dask
from attrace.analysis import open_trace, precompute, ulam

def megabytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData")) / 1024

small, large, room, work = sys.argv[1:]
dask.config.set(scheduler="threads", num_workers=2)
ulam(precompute(small, overwrite=True)).compute()  # imports, threads and the compiled kernel are not limited
limit = int((megabytes() + float(room)) * 2**20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
trace = open_trace(large)
if work == "maps":
    before = ulam(trace).compute()
    after = ulam(precompute(trace, overwrite=True)).compute()
    assert abs(after - before).max() < 1e-6 * before.max()
elif work == "naive":
    trace.scores[trace.classes[0].group]["scores"].values
print(limit, float(before.sum()) if work == "maps" else "")
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of 1.7 GB of scores, whose steps are the same file under many names, and one of its steps."""
    folder = tmp_path_factory.mktemp("large")
    for name, steps in (("small", 2), ("large", STEPS)):
        one = site_class(GROUP, encoding="scores", heads=8, query_grid=(32, 32), key_grid=(16, 16), layers=("only",))
        manifest = Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made"))
        store = TraceStore(folder / name, manifest, steps=steps, codec="none")
        store.add_classes((one,))
        scores = np.random.default_rng(0).normal(size=(8, 1024, 256)).astype(np.float32)
        chunks = folder / name / GROUP / "scores/c"
        for step in range(steps):
            store.write(GROUP, "scores", step=step, layer=0, values=scores)
            if step:
                copy = chunks / f"{step}/0/0/0/0"
                copy.unlink()
                os.link(chunks / "0/0/0/0/0", copy)
            store.finish_step(step, call=step, timestep=float(steps - step))
        store.close("complete")
    return folder


def run(traces: Path, work: str, *, setting: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", setting + LIMITED, str(traces / "small"), str(traces / "large"), str(ROOM), work]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_maps_and_precompute_stay_below_the_limit(traces: Path) -> None:
    done = run(traces, "maps")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) < STEPS * 8 * 1024 * 256 * 4  # the trace is larger than all that was allowed


def test_the_limit_is_one_that_all_scores_break(traces: Path) -> None:
    done = run(traces, "naive")
    assert "MemoryError" in done.stderr


HOARD = """
from attrace.analysis.trace.source import ClassSource
read = ClassSource.read
ClassSource.read = lambda *arguments: iter(list(read(*arguments)))
"""


def test_the_limit_is_one_that_a_task_breaks_that_holds_its_steps_together(traces: Path) -> None:
    assert "MemoryError" in run(traces, "maps", setting=HOARD).stderr
