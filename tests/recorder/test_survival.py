"""A recording that fails costs neither the run nor the finished steps: with real processes, disks and files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import models
from support.reading import read_array, read_manifest, read_scores
from support.traces import make_trace

from attrace.recorder import RecordingWarning, record
from attrace.recorder import store as store_module
from attrace.recorder.store import TraceStore, new_manifest_fields
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
                assert recording._parts is not None
                monkeypatch.setattr(recording._parts.run, "_copy", fail)
                assert torch.isfinite(call(unet)).all()

        with pytest.warns(RecordingWarning, match=r"step 1 \(MemoryError: of the copy\)"):
            run_on()
        assert read_manifest(tmp_path / "run.zarr").steps == 1

    def test_no_problem_when_all_is_well(self, tmp_path: Path) -> None:
        unet = models.tiny_unet()
        with record(unet, tmp_path / "run.zarr", context="text") as recording:
            call(unet)
        assert recording.problem is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=600k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("this system does not let root mount")
    try:
        unet, results = models.tiny_unet(), []
        with pytest.warns(RecordingWarning, match="No space left"), record(unet, disk / "run.zarr", context="text"):
            results += [call(unet) for _ in range(60)]
        assert len(results) == 60
        done = np.flatnonzero(read_array(disk / "run.zarr", "step_done"))
        assert 0 < len(done) < 60
        assert all(np.isfinite(scores).all() for scores in read_scores(disk / "run.zarr").values())
    finally:
        os.system(f"umount {disk}")


def test_a_folder_that_cannot_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), record(models.tiny_unet(), tmp_path / "file/run.zarr", context="text"):
        pytest.fail("the body must not run")


def new_store(path: Path, **options: Any) -> TraceStore:
    return TraceStore(path, Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made")), **options)


class TestTwoRecordersOnOnePath:
    def test_only_one_begins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "check_room", lambda *_, **__: None)  # both looked before either wrote
        exists = Path.exists
        new_store(tmp_path / "run.zarr")
        monkeypatch.setattr(Path, "exists", lambda self: False if self.name == "run.zarr" else exists(self))
        with pytest.raises(TraceExistsError, match="another recorder"):
            new_store(tmp_path / "run.zarr")

    def test_the_one_that_was_replaced_stops(self, tmp_path: Path) -> None:
        first = new_store(tmp_path / "run.zarr")
        second = new_store(tmp_path / "run.zarr", overwrite=True)
        with pytest.raises(TraceExistsError, match="replaced by another recorder"):
            first.finish_step(0, call=0, timestep=1.0)
        second.finish_step(0, call=7, timestep=1.0)
        second.close("complete")
        assert read_manifest(tmp_path / "run.zarr").id == second.manifest.id
        assert read_array(tmp_path / "run.zarr", "time").tolist() == [7]


def test_a_closed_trace_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder is synced, and the data before the manifest says that they are there."""
    synced: list[tuple[str, str]] = []
    sync = os.fsync

    def note(handle: int) -> None:
        sync(handle)
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), read_manifest(tmp_path / "run.zarr").status))

    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of open files are found on Linux only")
    monkeypatch.setattr(os, "fsync", note)
    path = make_trace(tmp_path / "run.zarr").path
    everything = {str(tmp_path), str(path), *map(str, path.rglob("*"))}
    assert everything <= {name for name, status in synced if status == "complete"}
    chunks = {str(file) for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"}
    assert chunks <= {name for name, status in synced if status == "recording"}
