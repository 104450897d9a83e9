"""What a trace takes on the disk, beside attention scores in float16.

    python benchmarks/size.py [--quick] [--steps 4]

Denoisers that are nothing but attention of the published shapes, with random queries and keys in the precision that the
model is used in (float16 if it does not say), are recorded for a few steps. Bytes on the disk (all files, compressed)
are given for a step, and for a whole run: what a step adds times its steps, and what is stored once. The ratio is that
of float16 scores, uncompressed, to the trace.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attrace.recorder import record
from attrace.recorder.writing.encode import EncodingChoice


@dataclass(frozen=True)
class Layer:
    """Some layers of one shape."""

    count: int
    heads: int
    queries: int
    keys: int
    features: int


@dataclass(frozen=True)
class Workload:
    """A model's attention in a default run."""

    name: str
    steps: int
    static_keys: bool
    layers: tuple[Layer, ...]
    dtype: torch.dtype = torch.float16

    @property
    def score_bytes(self) -> int:
        """Float16 scores of one step."""
        return sum(2 * one.count * one.heads * one.queries * one.keys for one in self.layers)


def _dense(count: int, queries: int, features: int) -> Layer:
    return Layer(count, 8, queries, queries, features)


WORKLOADS = (
    Workload(
        "W1 SD1.5, 257 image keys",
        50,
        True,
        (
            Layer(5, 8, 4096, 257, 40),
            Layer(5, 8, 1024, 257, 80),
            Layer(5, 8, 256, 257, 160),
            Layer(1, 8, 64, 257, 160),
        ),
    ),
    Workload(
        "W2 StableVITON 64x48, dense",
        50,
        False,
        (_dense(3, 192, 160), _dense(1, 768, 160), _dense(2, 768, 80), _dense(1, 3072, 80), _dense(2, 3072, 40)),
    ),
    Workload("W3 SDXL, 77 text keys", 30, True, (Layer(10, 10, 4096, 77, 64), Layer(60, 20, 1024, 77, 64))),
    Workload(
        "PBE, 1 class token",
        51,
        True,
        (Layer(5, 8, 4096, 1, 40), Layer(5, 8, 1024, 1, 80), Layer(5, 8, 256, 1, 160), Layer(1, 8, 64, 1, 160)),
    ),
    Workload(
        "Flux Kontext 512x512, one of 57 layers, bfloat16", 28, False, (Layer(1, 24, 1024, 1024, 128),), torch.bfloat16
    ),
)

QUICK_WORKLOADS = (
    Workload("tiny, dense", 10, False, (Layer(2, 2, 256, 256, 8), Layer(1, 2, 64, 64, 16))),
    Workload("tiny, few keys", 10, True, (Layer(2, 2, 256, 2, 8),)),
    Workload("tiny, bfloat16", 10, False, (Layer(1, 4, 1024, 48, 64),), torch.bfloat16),
)


class Source(nn.Module):
    """Stands in for a projection: random values, new ones in each call or always the same."""

    def __init__(self, shape: tuple[int, ...], seed: int, dtype: torch.dtype, *, static: bool) -> None:
        super().__init__()
        self.shape, self.seed, self.dtype, self.static, self.calls = shape, seed, dtype, static, 0

    def forward(self, _given: Tensor) -> Tensor:
        """Values of the shape, whatever is given."""
        self.calls += not self.static
        random = torch.Generator().manual_seed(1000 * self.seed + self.calls)
        return torch.randn(self.shape, generator=random).to(self.dtype)


class AttentionOnly(nn.Module):
    """A site: what it attends with is all there is."""

    def __init__(self, layer: Layer, seed: int, workload: Workload) -> None:
        super().__init__()
        self.heads = layer.heads
        width, dtype = layer.heads * layer.features, workload.dtype
        self.to_q = Source((1, layer.queries, width), 2 * seed, dtype, static=False)
        self.to_k = Source((1, layer.keys, width), 2 * seed + 1, dtype, static=workload.static_keys)

    def forward(self, hidden: Tensor, context: Tensor) -> None:
        """Attend with queries and keys; the keys are the values, too."""
        query, key = (
            one.unflatten(2, (self.heads, -1)).transpose(1, 2) for one in (self.to_q(hidden), self.to_k(context))
        )
        F.scaled_dot_product_attention(query, key, key)


class Denoiser(nn.Module):
    """The sites of a workload."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        layers = [layer for layer in workload.layers for _ in range(layer.count)]
        self.sites = nn.ModuleList(AttentionOnly(layer, seed, workload) for seed, layer in enumerate(layers))

    def forward(self, timestep: float) -> float:
        """Call every site."""
        hidden, context = torch.zeros(1), torch.zeros(1)
        for site in self.sites:
            site(hidden, context)
        return timestep


@dataclass(frozen=True)
class Row:
    """What was measured of one workload in one encoding."""

    workload: Workload
    encoding: EncodingChoice
    step_bytes: float
    """On the disk, that a step adds."""
    once_bytes: float
    """On the disk, that is there once."""

    @property
    def run_bytes(self) -> float:
        """Of a whole run."""
        return self.once_bytes + self.workload.steps * self.step_bytes

    @property
    def ratio(self) -> float:
        """How much smaller than float16 scores."""
        return self.workload.score_bytes * self.workload.steps / self.run_bytes


def disk_bytes(workload: Workload, encoding: EncodingChoice, steps: int) -> int:
    """Bytes of all files of a trace of so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        denoiser = Denoiser(workload)
        # no grid is given, as these layers see no picture
        with record(denoiser, path, context="text", encoding=encoding):
            for step in range(steps):
                denoiser(float(step))
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def measure(workloads: tuple[Workload, ...], steps: int) -> list[Row]:
    """Record each workload in each encoding, for one step and for `steps` steps."""
    rows = []
    for workload in workloads:
        encodings: tuple[EncodingChoice, ...] = ("auto", "scores", "factors")
        for encoding in encodings:
            one, many = (disk_bytes(workload, encoding, count) for count in (1, steps))
            step_bytes = (many - one) / (steps - 1)
            rows.append(Row(workload, encoding, step_bytes, one - step_bytes))
    return rows


def report(rows: list[Row]) -> None:
    """Print a table."""
    print("| workload | encoding | MB a step | MB a run | float16 scores, MB | times smaller |")
    print("| --- | --- | --: | --: | --: | --: |")
    for row in rows:
        scores = row.workload.score_bytes * row.workload.steps
        print(
            f"| {row.workload.name} | {row.encoding} | {row.step_bytes / 1e6:.2f} | {row.run_bytes / 1e6:.1f} "
            f"| {scores / 1e6:.1f} | {row.ratio:.2f} |"
        )


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--steps", type=int, default=3, help="steps that are recorded")
    given = parser.parse_args(arguments)
    rows = measure(QUICK_WORKLOADS if given.quick else WORKLOADS, given.steps)
    report(rows)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
