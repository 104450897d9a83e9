"""How fast the background writer takes what a model computes, beside plain files of the same bytes.

    python benchmarks/writer.py [--quick]

Queries and keys of Stable Diffusion 1.5 with 257 image keys, random and in float16, are handed over from memory, a
chunk for each layer and step, and the store is closed: every byte is on the disk. The floor writes the same bytes to as
many plain files and syncs each. Ways take turns; each has its best.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.recorder.writing.writer import BackgroundWriter
from attrace.schemas import KeySegment, Manifest, ModelIdentity, Site, SiteClass
from attrace.schemas.codecs import Codec

LAYERS = ((4096, 40, 5), (1024, 80, 5), (256, 160, 5), (64, 160, 1))
"""Queries, features of a head, and number of layers."""

QUICK_LAYERS = ((64, 8, 2),)

HEADS, KEYS = 8, 257

Chunks = dict[str, NDArray[np.float16]]
"""Queries of one layer, by group."""


def made_chunks(layers: tuple[tuple[int, int, int], ...]) -> tuple[tuple[SiteClass, ...], Chunks]:
    """The classes, and what one layer of each has in one step."""
    random, classes, chunks = np.random.default_rng(0), [], {}
    for queries, features, count in layers:
        group = f"reference/{queries}x{KEYS}h{HEADS}d{features}"
        chunks[group] = random.normal(size=(HEADS, queries, features)).astype(np.float16)
        classes.append(
            SiteClass(
                group=group,
                context="reference",
                encoding="factors",
                dtype="float16",
                heads=HEADS,
                queries=queries,
                keys=KEYS,
                features=features,
                scale=features**-0.5,
                key_segments=(KeySegment(kind="other", count=KEYS),),
                sites=tuple(Site(path=f"{group}.{number}", order=number) for number in range(count)),
            )
        )
    return tuple(classes), chunks


def write_trace(path: Path, classes: tuple[SiteClass, ...], chunks: Chunks, steps: int, codec: Codec) -> None:
    """Through the background writer, to the closed store."""
    manifest = Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Benchmark"))
    store = TraceStore(path, manifest, steps=steps, codec=codec)
    store.add_classes(classes)
    writer = BackgroundWriter(256 * 2**20)
    for step in range(steps):
        for one in classes:
            values = chunks[one.group]
            for layer in range(len(one.sites)):
                write = partial(store.write, one.group, "query_vector", step=step, layer=layer, values=values)
                writer.submit(write, values.nbytes)
        writer.submit(partial(store.finish_step, step, call=step, timestep=0.0), alone=True)
    writer.close()
    store.close("complete")
    if writer.failure is not None:
        raise writer.failure


def write_files(path: Path, classes: tuple[SiteClass, ...], chunks: Chunks, steps: int) -> None:
    """The same bytes to plain files, synced."""
    path.mkdir()
    number = 0
    for _ in range(steps):
        for one in classes:
            for _ in one.sites:
                with (path / str(number)).open("wb") as file:
                    file.write(chunks[one.group].data)
                    file.flush()
                    os.fsync(file.fileno())
                number += 1


def measure(*, quick: bool = False) -> dict[str, float]:
    """MB of values in a second, by way."""
    classes, chunks = made_chunks(QUICK_LAYERS if quick else LAYERS)
    steps, rounds = (2, 1) if quick else (20, 5)
    total = steps * sum(chunks[one.group].nbytes * len(one.sites) for one in classes) / 1e6
    ways: dict[str, Callable[[Path], Any]] = {
        "plain files": partial(write_files, classes=classes, chunks=chunks, steps=steps),
        "trace, auto": partial(write_trace, classes=classes, chunks=chunks, steps=steps, codec="auto"),
        "trace, zstd": partial(write_trace, classes=classes, chunks=chunks, steps=steps, codec="zstd"),
        "trace, none": partial(write_trace, classes=classes, chunks=chunks, steps=steps, codec="none"),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                way(Path(folder) / "run.zarr")
                best[name] = max(best[name], total / (time.perf_counter() - start))
    return best


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    best = measure(quick=parser.parse_args(arguments).quick)
    print("| way | MB/s | to plain files |")
    print("| --- | --: | --: |")
    for name, speed in best.items():
        print(f"| {name} | {speed:.0f} | {speed / best['plain files']:.2f} |")
    return best


if __name__ == "__main__":
    main(sys.argv[1:])
