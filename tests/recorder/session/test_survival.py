"""A recording that fails costs neither the run nor the finished steps: with real processes, disks and files."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support import models
from support.reading import read_array, read_manifest, read_scores
from support.traces import make_trace, site_class

from attrace.analysis import open_trace
from attrace.analysis.integrity.verify import verify
from attrace.recorder import RecordingWarning, record
from attrace.recorder.capture.host_copies import HostCopier
from attrace.recorder.writing import folder as folder_module, store as store_module
from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.schemas import CaptureError, Manifest, ModelIdentity, TraceExistsError


def call(unet: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = unet(torch.zeros(1, 4, 8, 8), 5, encoder_hidden_states=torch.ones(1, 16, 32)).sample
    return result


def fill(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A disk that is full from a step on."""
    write = TraceStore.write

    def write_until_full(self: TraceStore, group: str, name: str, **place: Any) -> None:
        if place["step"] >= step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, group, name, **place)

    monkeypatch.setattr(TraceStore, "write", write_until_full)


class TestTheRunIsNotLost:
    def test_warned_of_by_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(monkeypatch, step=1)
        unet, results = models.tiny_unet(), []
        recording = record(unet, tmp_path / "run.zarr", context="text")
        with pytest.warns(RecordingWarning, match=r"ran to its end.*No space left.*1 finished steps"), recording:
            results += [call(unet) for _ in range(3)]
        assert len(results) == 3
        assert isinstance(recording.problem, CaptureError)
        assert (read_manifest(tmp_path / "run.zarr").status, read_manifest(tmp_path / "run.zarr").steps) == (
            "interrupted",
            1,
        )

    def test_raised_when_strict(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(monkeypatch, step=1)
        unet = models.tiny_unet()
        recording = record(unet, tmp_path / "run.zarr", context="text", strict=True)

        def run_on() -> None:
            with recording:
                for _ in range(3):
                    call(unet)

        with pytest.raises(CaptureError, match="No space left"):
            run_on()

    def test_a_fault_of_the_recorder_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        unet = models.tiny_unet()
        recording = record(unet, tmp_path / "run.zarr", context="text")

        def fail(*_: Any) -> None:
            raise MemoryError("of the copy")

        def run_on() -> None:
            with recording:
                call(unet)
                monkeypatch.setattr(HostCopier, "__call__", fail)
                assert torch.isfinite(call(unet)).all()

        with pytest.warns(RecordingWarning, match=r"step 1 \(MemoryError: of the copy\)"):
            run_on()
        assert read_manifest(tmp_path / "run.zarr").steps == 1

    @pytest.mark.parametrize("started", [0, 1])
    def test_threads_that_cannot_start(self, started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """None can, and the recording stops; or one can, and writes all."""
        unet, start, count = models.tiny_unet(), threading.Thread.start, iter(range(100))
        monkeypatch.setattr(os, "cpu_count", lambda: 8)

        def start_some(self: threading.Thread) -> None:
            if self.name.startswith("attrace-writer") and next(count) >= started:
                raise RuntimeError("can't start new thread")
            start(self)

        monkeypatch.setattr(threading.Thread, "start", start_some)
        recording = record(unet, tmp_path / "run.zarr", context="text")
        told = nullcontext() if started else pytest.warns(RecordingWarning, match="can't start new thread")
        with told, recording:
            assert torch.isfinite(call(unet)).all()
        assert (recording.problem is None) == bool(started)
        assert read_manifest(tmp_path / "run.zarr").status == ("complete" if started else "interrupted")

    def test_threads_that_zarr_cannot_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(zarr, "create_group", fail)
        unet = models.tiny_unet()
        with (
            pytest.warns(RecordingWarning, match="no trace could be begun .*can't start new thread"),
            record(unet, tmp_path / "run.zarr", context="text"),
        ):
            assert torch.isfinite(call(unet)).all()

    def test_a_fault_of_the_recorder_in_the_first_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        unet = models.tiny_unet()
        monkeypatch.setattr(HostCopier, "__call__", fail)

        def run() -> None:
            with record(unet, tmp_path / "run.zarr", context="text"):
                assert torch.isfinite(call(unet)).all()
                assert torch.isfinite(call(unet)).all()

        with pytest.warns(RecordingWarning, match=r"step 0 \(RuntimeError: can't start new thread\)"):
            run()

    def test_more_attention_calls_than_in_the_first_step(self, tmp_path: Path) -> None:
        """What an interception cannot place, in a later step."""
        unet = models.tiny_unet()
        module = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
        processor = module.processor

        class Twice:
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                processor(*args, **kwargs)
                return processor(*args, **kwargs)

        def run() -> None:
            with record(unet, tmp_path / "run.zarr", context="text", capture="attention"):
                call(unet)
                module.processor = Twice()
                assert torch.isfinite(call(unet)).all()

        with pytest.warns(RecordingWarning, match="makes more attention calls"):
            run()
        assert read_manifest(tmp_path / "run.zarr").steps == 1

    @pytest.mark.parametrize("name", ["picture", "class"])
    def test_an_array_that_is_there_already(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody else wrote into the folder, or a class is added twice."""
        unet, path = models.tiny_unet(), tmp_path / "run.zarr"
        add = TraceStore.add_classes

        def add_twice(self: TraceStore, classes: Any) -> None:
            add(self, classes)
            add(self, classes)

        if name == "class":
            monkeypatch.setattr(TraceStore, "add_classes", add_twice)
        recording = record(unet, path, context="text")

        def run() -> None:
            with recording:
                assert torch.isfinite(call(unet)).all()
                if name == "picture":
                    recording.images["generated"] = np.zeros((8, 8, 3), np.uint8)
                    zarr.open_group(path).create_array("images/generated", shape=(2,), dtype="uint8")

        with pytest.warns(RecordingWarning, match="could not be written .*exists"):
            run()
        assert read_manifest(path).status == "interrupted"

    def test_a_forked_child_that_leaves_the_block(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        recording = record(unet, tmp_path / "run.zarr", context="text")
        recording.__enter__()
        call(unet)
        child = os.fork()
        if child == 0:
            try:
                with pytest.warns(RecordingWarning, match="its parent goes on"):
                    recording.__exit__(None, None, None)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        call(unet)
        recording.__exit__(None, None, None)
        report = verify(tmp_path / "run.zarr")
        assert (report.issues, report.status, report.steps) == ((), "complete", 2)

    def test_no_problem_when_all_is_well(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        with record(unet, tmp_path / "run.zarr", context="text") as recording:
            call(unet)
        assert recording.problem is None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=600k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("this system does not let us mount a disk")
    try:
        yield disk
    finally:
        os.system(f"umount {disk} 2>/dev/null")


def test_a_disk_that_is_really_full(disk: Path) -> None:
    unet, results = models.tiny_unet(), []
    with pytest.warns(RecordingWarning, match="No space left"), record(unet, disk / "run.zarr", context="text"):
        results += [call(unet) for _ in range(60)]
    assert len(results) == 60
    done = np.flatnonzero(read_array(disk / "run.zarr", "step_done"))
    assert 0 < len(done) < 60
    assert all(np.isfinite(scores).all() for scores in read_scores(disk / "run.zarr").values())


def test_a_disk_that_is_read_only_is_found_before_the_run(disk: Path) -> None:
    assert os.system(f"mount -o remount,ro {disk}") == 0
    with pytest.raises(OSError, match="Read-only"), record(models.tiny_unet(), disk / "run.zarr", context="text"):
        pytest.fail("the body must not run")


def test_a_disk_that_becomes_read_only(disk: Path) -> None:
    unet, results = models.tiny_unet(), []
    recording = record(unet, disk / "run.zarr", context="text")

    def run_on() -> None:
        with recording:
            results.append(call(unet))
            while not np.flatnonzero(read_array(disk / "run.zarr", "step_done")).size:
                time.sleep(0.01)
            assert os.system(f"mount -o remount,ro {disk}") == 0
            results.extend(call(unet) for _ in range(3))

    with pytest.warns(RecordingWarning, match="Read-only"):
        run_on()
    assert len(results) == 4
    assert np.flatnonzero(read_array(disk / "run.zarr", "step_done")).tolist() == [0]


@pytest.mark.parametrize("root_is_below", [False, True])
def test_a_disk_that_vanishes(disk: Path, root_is_below: bool) -> None:
    """Unmounted while it is written to: nothing that could be taken for a trace is begun in the folder below.

    A root may be there, if it was just being written when the disk vanished.
    """
    unet, results = models.tiny_unet(), []
    recording = record(unet, disk / "run.zarr", context="text")

    def run_on() -> None:
        with recording:
            results.append(call(unet))
            while not np.flatnonzero(read_array(disk / "run.zarr", "step_done")).size:
                time.sleep(0.01)
            root = (disk / "run.zarr/zarr.json").read_bytes()
            assert os.system(f"umount -l {disk}") == 0
            if root_is_below:
                (disk / "run.zarr").mkdir(exist_ok=True)
                (disk / "run.zarr/zarr.json").write_bytes(root)
            results.extend(call(unet) for _ in range(3))

    with pytest.warns(RecordingWarning, match="vanished|No such file"):
        run_on()
    assert len(results) == 4
    assert (disk / "run.zarr/zarr.json").exists() == root_is_below


def test_a_folder_that_cannot_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), record(models.tiny_unet(), tmp_path / "file/run.zarr", context="text"):
        pytest.fail("the body must not run")


def new_store(path: Path, **options: Any) -> TraceStore:
    return TraceStore(path, Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made")), **options)


RECORDER = """
import sys
from pathlib import Path
from support.traces import make_trace
print("ready", flush=True)
sys.stdin.readline()
make_trace(Path(sys.argv[1]))
"""
"""Records as soon as it is told to."""


class TestTwoRecordersOnOnePath:
    def test_only_one_begins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder_module, "check_room", lambda *_, **__: None)  # both looked before either wrote
        exists = Path.exists
        new_store(tmp_path / "run.zarr")
        monkeypatch.setattr(Path, "exists", lambda self: False if self.name == "run.zarr" else exists(self))
        with pytest.raises(TraceExistsError, match="another recorder"):
            new_store(tmp_path / "run.zarr")

    def test_of_several_processes_one_records_and_the_others_say_why_not(self, tmp_path: Path) -> None:
        path = tmp_path / "run.zarr"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", RECORDER, str(path)]
        recorders = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(4)]
        for one in recorders:
            assert one.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        for one in recorders:
            one.stdin.write("go\n")  # type: ignore[union-attr]
            one.stdin.flush()  # type: ignore[union-attr]
        ended = [(one.communicate()[1], one.returncode) for one in recorders]
        assert sorted(code for _, code in ended) == [0, 1, 1, 1]
        for error, code in ended:
            assert code == 0 or re.search(r"TraceExistsError: .*run\.zarr (exists|is being written)", error), error
        report = verify(path)
        assert (report.issues, report.status, report.steps) == ((), "complete", 3)

    def test_the_one_that_was_replaced_stops(self, tmp_path: Path) -> None:
        first = new_store(tmp_path / "run.zarr")
        (tmp_path / "run.zarr").rename(tmp_path / "moved.zarr")
        second = new_store(tmp_path / "run.zarr")
        with pytest.raises(TraceExistsError, match="replaced by another recorder"):
            first.finish_step(0, call=0, timestep=1.0)
        second.finish_step(0, call=7, timestep=1.0)
        second.close("complete")
        assert read_manifest(tmp_path / "run.zarr").id == second.manifest.id
        assert read_array(tmp_path / "run.zarr", "time").tolist() == [7]


@pytest.mark.parametrize("arrays", range(7))
def test_a_crash_while_closing_costs_no_finished_step(
    arrays: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six arrays along time so many are cut, and an unfinished step is gone, when the recorder dies."""
    resize, calls = zarr.AsyncArray.resize, iter(range(100))

    async def resize_until_killed(self: Any, *arguments: Any, **options: Any) -> None:
        if next(calls) == arrays:
            raise RuntimeError("killed")
        await resize(self, *arguments, **options)

    def die(*_: Any) -> None:
        raise RuntimeError("killed")

    store, one = new_store(tmp_path / "run.zarr", steps=64), site_class()
    store.add_classes((one,))
    for step in range(3):
        for layer in range(2):
            for name, tokens in (("query_vector", 64), ("key_vector", 16)):
                values = np.full((2, tokens, 8), step, np.float32)
                store.write(one.group, name, step=step, layer=layer, values=values)
            store.write(one.group, "key_step", step=step, layer=layer, values=np.int32(step))
        if step < 2:
            store.finish_step(step, call=step, timestep=0.0)
    monkeypatch.setattr(zarr.AsyncArray, "resize", resize_until_killed)
    monkeypatch.setattr(store_module, "sync_tree", die)  # the manifest is written after it
    with pytest.raises(RuntimeError, match="killed"):
        store.close("complete")
    report = verify(tmp_path / "run.zarr")
    assert (report.valid, report.status, report.steps) == (True, "recording", 2)
    scores = open_trace(tmp_path / "run.zarr").scores[one.group]["scores"]
    assert scores.mean(("head", "query", "key")).values == pytest.approx(np.array([[0, 0], [8 * one.scale] * 2]))


def test_a_closed_trace_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder is synced as it is in the end, once, and all data before the manifest says so."""
    path = tmp_path / "run.zarr"
    synced: list[tuple[str, str, bytes | None]] = []
    sync = os.fsync

    def note(handle: int) -> None:
        sync(handle)
        place = Path(f"/proc/self/fd/{handle}").readlink()
        content = place.read_bytes() if place.is_file() else None
        synced.append((str(place), read_manifest(path).status, content))

    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of open files are found on Linux only")
    monkeypatch.setattr(os, "fsync", note)
    make_trace(path)
    in_the_end = {str(place): place.read_bytes() if place.is_file() else None for place in (path, *path.rglob("*"))}
    before = [(name, content) for name, status, content in synced if status == "recording"]
    after = [(name, content) for name, status, content in synced if status == "complete"]
    root = str(path / "zarr.json")
    assert sorted(name for name, _ in before) == sorted(in_the_end)
    assert {place for place in before if place[0] != root} == {
        place for place in in_the_end.items() if place[0] != root
    }
    assert after == [(root, in_the_end[root]), (str(path), None), (str(tmp_path), None)]
