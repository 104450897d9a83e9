"""A whole trace from the disk to its maps: time and memory, before and after `precompute`.

    python benchmarks/analysis.py [--quick] [--keep FOLDER]

Makes a trace of the shapes of Stable Diffusion 1.5 with 257 image keys (or tiny ones), then measures in fresh
processes, so that memory is that of the work alone:

- opening it;
- every level in both directions, from one pass over the data;
- `precompute`;
- one level after that.

Then `precompute` with one thread and more of them, in turn: what the cores of the machine give. Then, with traces of
one class of layers, how bytes, opening, `precompute` and a level after it grow with the steps, the queries and the
layers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import dask
import dask.base
import numpy as np

from attrace.analysis import hlam, llam, open_trace, precompute, tlam, ulam
from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.schemas import KeySegment, Manifest, ModelIdentity, Site, SiteClass

LAYERS: Final = ((64, 40, 5), (32, 80, 5), (16, 160, 5), (8, 160, 1))
"""Side of the query grid, features of a head, and number of layers, of Stable Diffusion 1.5."""

QUICK_LAYERS: Final = ((8, 4, 2), (4, 8, 1))

Layers = tuple[tuple[int, int, int], ...]

KEY_GRID: Final = (16, 16)
HEADS: Final = 8


GROWN: Final = {
    "at first": (10, ((32, 80, 4),)),
    "2 x steps": (20, ((32, 80, 4),)),
    "4 x steps": (40, ((32, 80, 4),)),
    "4 x queries": (10, ((64, 80, 4),)),
    "2 x layers": (10, ((32, 80, 8),)),
    "4 x layers": (10, ((32, 80, 16),)),
}
"""Steps and layers of the traces that grow."""

QUICK_GROWN: Final = {"at first": (2, QUICK_LAYERS), "2 x steps": (4, QUICK_LAYERS)}


def make_trace(path: Path, steps: int, layers: Layers) -> int:
    """Write a trace of random queries and keys, the keys the same in every step; its bytes on the disk."""
    classes = tuple(_site_class(*layer, first=sum(count for *_, count in layers[:i])) for i, layer in enumerate(layers))
    manifest = Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Benchmark"), image_size=(512, 512))
    store = TraceStore(path, manifest, steps=steps)
    store.add_classes(classes)
    random = np.random.default_rng(0)
    for step in range(steps):
        for one in classes:
            for layer in range(len(one.sites)):
                _write(store, one, random, step, layer)
        store.finish_step(step, call=step, timestep=float(1000 - step))
    store.close("complete")
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _site_class(side: int, features: int, count: int, first: int) -> SiteClass:
    patches = KeySegment(kind="patch", count=KEY_GRID[0] * KEY_GRID[1], grid=KEY_GRID)
    return SiteClass(
        group=f"reference/{side * side}x257h{HEADS}d{features}",
        context="reference",
        encoding="factors",
        dtype="float16",
        heads=HEADS,
        queries=side * side,
        keys=patches.count + 1,
        features=features,
        scale=features**-0.5,
        query_grid=(side, side),
        key_segments=(KeySegment(kind="cls", count=1), patches),
        sites=tuple(Site(path=f"block_{side}.{i}.attn2", order=first + i) for i in range(count)),
    )


def _write(store: TraceStore, one: SiteClass, random: np.random.Generator, step: int, layer: int) -> None:
    place: dict[str, int] = {"step": step, "layer": layer}
    # drawing fresh numbers for every step would take longer than what is measured: their bytes are moved about
    query = random.integers(0, 2**16, size=(one.heads, one.queries, one.features), dtype=np.uint16)
    store.write(one.group, "query_vector", values=_spread(query), **place)
    if step == 0:
        key = random.integers(0, 2**16, size=(one.heads, one.keys, one.features), dtype=np.uint16)
        store.write(one.group, "key_vector", values=_spread(key) * np.float16(2), **place)
    store.write(one.group, "key_step", values=np.array(0, np.int32), **place)


def _spread(bits: np.ndarray[Any, np.dtype[np.uint16]]) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Random float16 numbers of a standard deviation near 1."""
    return ((bits.astype(np.float32) - 2**15) * np.float32(1.7 / 2**15)).astype(np.float16)


def _open(path: Path) -> None:
    open_trace(path)


def _one_level(path: Path) -> None:
    ulam(open_trace(path)).compute()


def _every_level(path: Path) -> None:
    trace = open_trace(path)
    makers: tuple[Any, ...] = (ulam, tlam, hlam, llam)
    dask.base.compute(*(make(trace, direction=direction) for make in makers for direction in ("r2g", "g2r")))


def _precompute(path: Path) -> None:
    precompute(path, overwrite=True)


TASKS: Final[dict[str, Callable[[Path], None]]] = {
    "open": _open,
    "one level": _one_level,
    "every level": _every_level,
    "precompute": _precompute,
}


def scale(path: Path, *, rounds: int) -> dict[int, dict[str, float]]:
    """Seconds and processor seconds of `precompute`, the least of some rounds in turn, by number of threads."""
    numbers = [1, 2, *(number for number in (4, 8, 16, 32, 64) if number <= (os.cpu_count() or 1))]
    measured: dict[int, list[dict[str, float]]] = {number: [] for number in numbers}
    for _ in range(rounds):
        for number, found in measured.items():
            found.append(measure(path, "precompute", repeats=2, threads=number))
    return {
        number: {name: min(one[name] for one in found) for name in ("best", "cpu")}
        for number, found in measured.items()
    }


def report_scaling(scaled: dict[int, dict[str, float]]) -> None:
    """Print how much faster more threads are, and what they cost."""
    one = scaled[1]
    print(f"\n`precompute` on threads, of {os.cpu_count()} cores:\n")
    print("| threads | s | times faster | processor, s | more processor time |")
    print("| --: | --: | --: | --: | --: |")
    for number, row in scaled.items():
        print(
            f"| {number} | {row['best']:.2f} | {one['best'] / row['best']:.2f} | {row['cpu']:.2f} "
            f"| {row['cpu'] / one['cpu']:.2f} x |"
        )


def grow(folder: Path, *, quick: bool = False) -> dict[str, dict[str, float]]:
    """Measure traces of growing size, by what grew."""
    grown: dict[str, dict[str, float]] = {}
    for name, (steps, layers) in (QUICK_GROWN if quick else GROWN).items():
        path = folder / f"{len(grown)}.zarr"
        size = make_trace(path, steps, layers)
        kept = measure(path, "precompute", repeats=2)
        grown[name] = {
            "megabytes": size / 1e6,
            "open": measure(path, "open", repeats=5)["best"],
            "precompute": kept["cpu"],
            "level": measure(path, "one level", repeats=5)["best"],
            "peak": kept["peak"] - kept["imported"],
        }
    return grown


def report_growth(grown: dict[str, dict[str, float]]) -> None:
    """Print a table: ratios to the first trace, in brackets."""
    first = next(iter(grown.values()))
    print("| trace | MB | open, ms | precompute, processor s | level after it, ms | memory of precompute, MB |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, row in grown.items():
        shown = {one: f"{row[one] / first[one]:.2f}" for one in row}
        print(
            f"| {name} | {row['megabytes']:.0f} ({shown['megabytes']}) | {1e3 * row['open']:.0f} ({shown['open']}) "
            f"| {row['precompute']:.2f} ({shown['precompute']}) | {1e3 * row['level']:.0f} ({shown['level']}) "
            f"| {row['peak']:.0f} ({shown['peak']}) |"
        )


def measure(path: Path, task: str, *, repeats: int, threads: int | None = None) -> dict[str, float]:
    """Seconds of a task the first time and at best, processor seconds at best, and the largest resident memory in MB.

    In a fresh process, with what was resident once it had imported everything; on as many threads as Dask takes by
    default, or as are given.
    """
    command = [sys.executable, __file__, "--task", task, "--path", str(path), "--repeats", str(repeats)]
    command += [] if threads is None else ["--threads", str(threads)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(printed)
    return measured


def _measure_here(path: Path, task: str, repeats: int, threads: int | None) -> dict[str, float]:
    before = _peak_megabytes()
    seconds, cpu = [], []
    with dask.config.set(num_workers=threads):
        for _ in range(repeats):
            start, cpu_start = time.perf_counter(), time.process_time()
            TASKS[task](path)
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
    peak = _peak_megabytes()
    return {"first": seconds[0], "best": min(seconds), "cpu": min(cpu), "peak": peak, "imported": before}


def _peak_megabytes() -> float:
    in_kilobytes = sys.platform != "darwin"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if in_kilobytes else 1) / 1e6


def run(folder: Path, *, quick: bool = False) -> dict[str, dict[str, float]]:
    """Make the trace and measure everything, by name."""
    path = folder / "run.zarr"
    size = make_trace(path, *((3, QUICK_LAYERS) if quick else (50, LAYERS)))
    print(f"A trace of {size / 1e6:.0f} MB.\n")
    measured = {
        "open": measure(path, "open", repeats=5),
        "one level": measure(path, "one level", repeats=2),
        "every level": measure(path, "every level", repeats=2),
        "precompute": measure(path, "precompute", repeats=1),
        "open, precomputed": measure(path, "open", repeats=5),
        "one level, precomputed": measure(path, "one level", repeats=10),
        "every level, precomputed": measure(path, "every level", repeats=5),
    }
    print("| | first, s | best, s | processor, s | peak memory, MB | of which imports |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, row in measured.items():
        print(
            f"| {name} | {row['first']:.3f} | {row['best']:.3f} | {row['cpu']:.3f} | {row['peak']:.0f} "
            f"| {row['imported']:.0f} |"
        )
    report_scaling(scale(path, rounds=1 if quick else 2))
    print()
    report_growth(grow(folder, quick=quick))
    return measured


def main() -> None:
    """Measure and print, or do one task for the process that measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny trace, to see that it runs")
    parser.add_argument("--keep", type=Path, help="folder for the trace, which then stays")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(_measure_here(arguments.path, arguments.task, arguments.repeats, arguments.threads)))
    elif arguments.keep:
        run(arguments.keep, quick=arguments.quick)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), quick=arguments.quick)


if __name__ == "__main__":
    main()
