"""What compression leaves of queries and keys, and how fast it is on one core.

    python benchmarks/codecs.py [--quick]

Values are normal, with a spread of their own for each head and feature, as queries are behind a trained norm: 24 heads,
1024 tokens, 128 features (a layer of Flux at 512 x 512). A bfloat16 model's are stored as float32. Ways take turns; of
each, the least processor time of its thread counts. MB are those of what the model computed: 2 bytes for a bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numcodecs import Blosc, Zstd, blosc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from attrace.schemas.codecs import compressor

SHAPE, QUICK_SHAPE = (24, 1024, 128), (2, 512, 128)
MODELS = (torch.bfloat16, torch.float16, torch.float32)

blosc.use_threads = False  # as zarr sets it


@dataclass(frozen=True)
class Row:
    """What was measured of one way to compress what one kind of model computes."""

    model: str
    """Data type that the model computes in."""
    way: str
    value_bytes: float
    """Stored bytes of a value."""
    write_speed: float
    """MB in a second."""
    read_speed: float


def made_values(shape: tuple[int, int, int], model: torch.dtype) -> torch.Tensor:
    """Queries of one layer and step: (head, query, feature)."""
    random = torch.Generator().manual_seed(0)
    heads, _, features = shape
    of_feature = torch.exp(0.5 * torch.randn(1, 1, features, generator=random))
    of_head = torch.exp(0.3 * torch.randn(heads, 1, 1, generator=random))
    return (torch.randn(shape, generator=random) * of_feature * of_head).to(model)


def ways_to_store(stored: NDArray[Any]) -> dict[str, Any]:
    """What may compress values, by name."""
    size = stored.itemsize
    ways = {
        "zstd": Zstd(level=1),
        "lz4, shuffle": Blosc("lz4", 1, Blosc.SHUFFLE, typesize=size),
        "zstd, bitshuffle": Blosc("zstd", 1, Blosc.BITSHUFFLE, typesize=size),
        "zstd, shuffle, blocks as blosc likes": Blosc("zstd", 1, Blosc.SHUFFLE, typesize=size),
    }
    auto = compressor("auto", stored.dtype.name, stored.shape)
    if auto is not None and auto["name"] == "blosc":
        ways["auto: zstd, shuffle, long blocks"] = Blosc(**auto["configuration"] | {"shuffle": Blosc.SHUFFLE})
    return ways


def processor_seconds(work: Callable[[Any], Any], given: Any) -> float:
    """Processor time of one call."""
    start = time.thread_time()
    work(given)
    return time.thread_time() - start


def measure_ways(model: str, stored: NDArray[Any], ways: dict[str, Any], megabytes: float, rounds: int) -> list[Row]:
    """Compress and decompress in every way, in turns."""
    compressed = {name: way.encode(stored) for name, way in ways.items()}
    write, read = dict.fromkeys(ways, np.inf), dict.fromkeys(ways, np.inf)
    for _ in range(rounds):
        for name, way in ways.items():
            write[name] = min(write[name], processor_seconds(way.encode, stored))
            read[name] = min(read[name], processor_seconds(way.decode, compressed[name]))
    return [
        Row(model, name, len(compressed[name]) / stored.size, megabytes / write[name], megabytes / read[name])
        for name in ways
    ]


def measure(*, quick: bool = False) -> list[Row]:
    """Every way, for every data type that models compute in."""
    rounds, rows = 1 if quick else 7, []
    for model in MODELS:
        values = made_values(QUICK_SHAPE if quick else SHAPE, model)
        name, megabytes = str(model).removeprefix("torch."), values.nbytes / 1e6
        stored = (values.float() if model == torch.bfloat16 else values).numpy()
        rows += measure_ways(name, stored, ways_to_store(stored), megabytes, rounds)
        if model == torch.bfloat16:
            bits = values.view(torch.int16).numpy()
            rows += measure_ways(name, bits, {"its 2 bytes alone, zstd": Zstd(level=1)}, megabytes, rounds)
    return rows


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small chunk")
    rows = measure(quick=parser.parse_args(arguments).quick)
    print("| model | compression | bytes a value | written, MB/s | read, MB/s |")
    print("| --- | --- | --: | --: | --: |")
    for row in rows:
        speeds = f"{row.write_speed:.0f} | {row.read_speed:.0f}"
        print(f"| {row.model} | {row.way} | {row.value_bytes:.2f} | {speeds} |")
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
