"""The folder that a trace is written to: who may write there, and what becomes of a trace that is replaced."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.reading import read_manifest
from support.traces import make_trace

from attrace.analysis import open_trace
from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.analysis.trace.summary import facts
from attrace.recorder import record
from attrace.recorder.writing import store as store_module
from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.schemas import Manifest, ModelIdentity, TraceExistsError, TraceNotFoundError
from attrace.schemas.folders import asides


def new_store(path: Path, **options: Any) -> TraceStore:
    return TraceStore(path, Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made")), **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A complete trace."""
    return make_trace(tmp_path / "run.zarr").path


class TestATraceThatIsBeingRecorded:
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_is_not_replaced(self, overwrite: bool, tmp_path: Path) -> None:
        store = new_store(tmp_path / "run.zarr")
        with pytest.raises(TraceExistsError, match="is being recorded" if overwrite else "exists"):
            new_store(tmp_path / "run.zarr", overwrite=overwrite)
        store.finish_step(0, call=0, timestep=1.0)
        store.close("complete")
        new_store(tmp_path / "run.zarr", overwrite=True)

    def test_nor_is_it_repaired_in_place(self, tmp_path: Path) -> None:
        store = new_store(tmp_path / "run.zarr")
        store.finish_step(0, call=0, timestep=1.0)
        with pytest.raises(TraceExistsError, match="is being recorded"):
            repair(tmp_path / "run.zarr")
        store.close("complete")
        assert repair(tmp_path / "run.zarr") == 1

    def test_which_a_forked_child_does_not_keep_so(self, tmp_path: Path) -> None:
        store = new_store(tmp_path / "run.zarr")
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        try:
            with pytest.raises(TraceExistsError, match="is being recorded"):
                new_store(tmp_path / "run.zarr", overwrite=True)
            store.discard()
            new_store(tmp_path / "run.zarr", overwrite=True)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class TestATraceThatIsReplaced:
    def test_is_there_until_the_new_one_is_complete(self, path: Path) -> None:
        old = read_manifest(path).id
        store = new_store(path, overwrite=True)
        (aside,) = asides(path)
        assert verify(aside).issues == ()
        assert read_manifest(aside).id == old
        store.finish_step(0, call=0, timestep=1.0)
        store.close("complete")
        assert asides(path) == []
        assert read_manifest(path).id == store.manifest.id

    @pytest.mark.parametrize("steps", [0, 1])
    def test_is_back_after_an_exception_in_the_block(
        self, steps: int, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old, unet = read_manifest(path).id, models.tiny_unet()

        def run() -> None:
            with record(unet, path, context="text", overwrite=True), torch.no_grad():
                for _ in range(steps):
                    unet(torch.zeros(1, 4, 8, 8), 5, encoder_hidden_states=torch.ones(1, 16, 32))
                raise ZeroDivisionError

        with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
            run()
        assert read_manifest(path).id == old
        assert verify(path).issues == ()
        assert "the trace that was there before is back" in caplog.text
        assert [open_trace(aside).steps for aside in asides(path)] == [1] * steps
        assert all(str(aside) in caplog.text for aside in asides(path))

    def test_is_back_where_the_new_one_could_not_be_made(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = read_manifest(path).id

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("No space left")

        monkeypatch.setattr(store_module, "create_array", fail)
        with pytest.raises(OSError, match="No space left"):
            new_store(path, overwrite=True)
        assert read_manifest(path).id == old
        assert asides(path) == []

    def test_is_back_where_the_trace_of_another_sample_could_not_be_made(self, path: Path) -> None:
        old = read_manifest(path).id
        (path.parent / "file").write_text("")
        recording = record(models.tiny_unet(), [path, path.parent / "file/b.zarr"], context="text", overwrite=True)
        with pytest.raises(OSError, match="file"), recording:
            pytest.fail("the body must not run")
        assert read_manifest(path).id == old

    def test_is_replaced_where_a_link_points_to(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "elsewhere/link.zarr"
        link.symlink_to(path)
        store = new_store(link, overwrite=True)
        store.finish_step(0, call=0, timestep=1.0)
        store.close("complete")
        assert link.is_symlink()
        assert read_manifest(path).id == store.manifest.id


OVERWRITER = """
import sys, time
from pathlib import Path
from support.traces import make_trace
from attrace.recorder.writing import store

class SlowStore(store.TraceStore):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options, overwrite=True)
    def finish_step(self, *arguments, **options):
        time.sleep(0.01)
        super().finish_step(*arguments, **options)

import support.traces
support.traces.TraceStore = SlowStore
print("ready", flush=True)
for line in sys.stdin:
    try:
        make_trace(Path(line.strip()), steps=8)
        print("complete", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""
"""Replaces a trace whenever it is told to."""


def start(command: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", command], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tell(process: subprocess.Popen[str], path: Path) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{path}\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def is_complete(path: Path) -> bool:
    try:
        report = verify(path)
    except (TraceNotFoundError, ValueError):
        return False
    return report.valid and report.status == "complete"


def test_of_two_that_replace_a_trace_at_once_one_does_and_the_other_says_why_not(tmp_path: Path) -> None:
    both = [start(OVERWRITER), start(OVERWRITER)]
    try:
        for attempt in range(20):
            path = make_trace(tmp_path / f"{attempt}.zarr").path
            for one in both:
                tell(one, path)
            results = sorted(map(said, both))
            assert results in (["TraceExistsError", "complete"], ["complete", "complete"])  # one after the other
            assert is_complete(path)
            assert asides(path) == []
    finally:
        for one in both:
            one.kill()
            one.communicate()


@pytest.mark.slow
def test_of_two_that_replace_a_trace_and_are_killed_a_complete_trace_is_left(tmp_path: Path) -> None:
    """Twenty tries: it is at the path or set aside beside it, and what is at the path says so."""
    moments = random.Random(0)
    for attempt in range(20):
        path = make_trace(tmp_path / f"{attempt}.zarr").path
        both = [start(OVERWRITER), start(OVERWRITER)]
        for one in both:
            tell(one, path)
        for one in both:
            time.sleep(moments.uniform(0, 0.2))
            one.kill()
        for one in both:
            one.communicate()
        complete = [one for one in (path, *asides(path)) if is_complete(one)]
        assert complete
        if is_complete(path):
            continue
        try:
            text = facts(open_trace(path))["status"]
        except (TraceNotFoundError, ValueError) as error:
            text = str(error)
        assert str(complete[0]) in text
        make_trace_anew(path)
        assert asides(path) == []


def make_trace_anew(path: Path) -> None:
    """Replace what a killed recorder left."""
    store = new_store(path, overwrite=True)
    store.finish_step(0, call=0, timestep=1.0)
    store.close("complete")


def test_what_a_killed_recorder_left_is_named_and_replaced(path: Path) -> None:
    store = new_store(path, overwrite=True)
    store.finish_step(0, call=0, timestep=1.0)
    for lock in store._folder._locks:  # as the system does where a process is killed
        lock.release()
    (aside,) = asides(path)
    assert f"set aside in {aside}" in facts(open_trace(path))["status"]
    assert f"set aside in {aside}" in str(verify(path).issues)
    make_trace_anew(path)
    assert verify(path).issues == ()
    assert asides(path) == []


def test_a_trace_that_is_only_set_aside_is_named(path: Path) -> None:
    aside = path.rename(path.with_name(".run.zarr.0123456789abcdef.aside"))
    with pytest.raises(TraceNotFoundError, match=str(aside)):
        open_trace(path)
