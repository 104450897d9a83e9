"""What recording costs: the same denoiser with and without it, and with attention computed eagerly, in one run.

    python benchmarks/recording.py [--size quick|half|full] [--rounds 5] [--steps 2] [--device cuda --dtype float16]

A U-Net of Stable Diffusion 1.5 with random weights attends to 257 image keys (`half` has half of its channels). Each
round runs every way once, in turn, so that what else the machine does falls on all of them alike:

- plain: nothing is recorded.
- capture: hooks see queries and keys, and drop them.
- record: a trace is written, by hooks; then the same by interception of the attention call.
- eager: processors that form the probabilities and add them up, as DAAM and attention-map-diffusers do.

Then all maps, of every level and direction, in two ways: one recorded run and the analysis of its trace; and one eager
run for each map, as the published code of I2AM needs them (the eager run of each round, times the number of maps).

Ratios are medians over the rounds of a way's time and the plain time of the same round; `exit` is how long the end of
the `with` block takes (what waits is written and synced), and `cpu` the processor time of all threads to the end of
the block, both over the plain way's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from attrace.analysis import open_trace
from attrace.analysis.levels import compute_together, level_maps
from attrace.recorder import record
from attrace.recorder.capture import CaptureName
from attrace.recorder.projection_hooks import ProjectionHooks
from attrace.recorder.sites import find_candidates

CHANNELS = {"quick": (32, 64), "half": (160, 320, 640, 640), "full": (320, 640, 1280, 1280)}
KEYS = 257


@dataclass
class Timing:
    """What one way took, by round."""

    seconds: list[float] = field(default_factory=list)
    """Of the denoiser's calls."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Processor time of all threads, with the end of the `with` block: what other processes do changes it least."""
    exit_seconds: list[float] = field(default_factory=list)
    """Of the end of the `with` block."""
    identical: bool = True
    """Whether every result had the bits of the plain one."""


class EagerAttention:
    """Attention that forms the probabilities, and adds up those of the conditional half."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def __call__(
        self, attention: Attention, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Attend as `AttnProcessor` does."""
        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attention.head_to_batch_dim(one)
            for one in (attention.to_q(hidden), attention.to_k(context), attention.to_v(context))
        )
        probabilities = attention.get_attention_scores(query, key)
        if encoder_hidden_states is not None:
            kept = probabilities[len(probabilities) // 2 :]
            self.total = kept if self.total is None else self.total + kept
        attended: Tensor = attention.to_out[0](attention.batch_to_head_dim(torch.bmm(probabilities, value)))
        return attended


@dataclass(frozen=True)
class Setting:
    """What runs in every way."""

    unet: UNet2DConditionModel
    sample: Tensor
    context: Tensor
    steps: int

    @torch.no_grad()
    def run(self) -> Tensor:
        """Some calls of the denoiser, each on the result of the last."""
        sample = self.sample
        for step in range(self.steps):
            sample = self.unet(sample, 999 - step, encoder_hidden_states=self.context).sample
        if sample.device.type == "cuda":
            torch.cuda.synchronize()
        return sample


def make_setting(size: str, steps: int, device: str, dtype: torch.dtype) -> Setting:
    """A U-Net with random weights and its inputs: a guided batch of one sample."""
    torch.manual_seed(0)
    channels = CHANNELS[size]
    quick = size == "quick"
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=channels,
        down_block_types=(*["CrossAttnDownBlock2D"] * (len(channels) - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (len(channels) - 1)),
        layers_per_block=1 if quick else 2,
        attention_head_dim=8,  # diffusers reads this name as the number of heads
        cross_attention_dim=768,
    )
    unet = unet.to(device, dtype).eval()
    side = 16 if quick else 64
    sample = torch.randn(2, 4, side, side).to(device, dtype)
    return Setting(unet, sample, torch.randn(2, KEYS, 768).to(device, dtype), steps)


@contextmanager
def nothing(_setting: Setting) -> Iterator[None]:
    """The plain way."""
    yield


@contextmanager
def capturing(setting: Setting) -> Iterator[None]:
    """Hooks that drop what they see."""
    hooks = ProjectionHooks(lambda *_: None, lambda: True)
    for candidate in find_candidates(setting.unet):
        hooks.attach([candidate])
    yield
    hooks.detach()


def _described() -> dict[str, Any]:
    """What a bare denoiser does not tell of itself."""
    return {"context": "reference", "key_grid": (16, 16), "guidance": ("unconditional", "conditional")}


def recording(capture: CaptureName) -> Callable[[Setting], Any]:
    """Record to a folder that is then removed."""

    @contextmanager
    def way(setting: Setting) -> Iterator[None]:
        with (
            tempfile.TemporaryDirectory() as folder,
            record(setting.unet, Path(folder) / "run.zarr", capture=capture, **_described()),
        ):
            yield

    return way


@contextmanager
def eager(setting: Setting) -> Iterator[None]:
    """Processors that form the probabilities."""
    processors = setting.unet.attn_processors
    setting.unet.set_attn_processor({name: EagerAttention() for name in processors})
    yield
    setting.unet.set_attn_processor(processors)


WAYS: dict[str, Callable[[Setting], Any]] = {
    "plain": nothing,
    "capture": capturing,
    "record (hooks)": recording("hooks"),
    "record (attention)": recording("attention"),
    "eager": eager,
}


def measure(setting: Setting, ways: list[str], rounds: int) -> dict[str, Timing]:
    """Run every way once in each round."""
    expected = setting.run()  # also warms up
    timings = {name: Timing() for name in ways}
    for _ in range(rounds):
        for name, timing in timings.items():
            with WAYS[name](setting):
                start, cpu_start = time.perf_counter(), time.process_time()
                result = setting.run()
                end = time.perf_counter()
            timing.seconds.append(end - start)
            timing.exit_seconds.append(time.perf_counter() - end)
            timing.cpu_seconds.append(time.process_time() - cpu_start)
            timing.identical &= torch.equal(result, expected)
    return timings


def report(timings: dict[str, Timing], steps: int) -> None:
    """Print the ratios to the plain way."""
    plain = timings["plain"]
    print(f"Plain: {statistics.median(plain.seconds) / steps:.2f} s a step, {len(plain.seconds)} rounds.\n")
    print("| way | time | least | most | exit | processor | same bits |")
    print("| --- | --: | --: | --: | --: | --: | --- |")
    for name, timing in timings.items():
        ratios = _ratios(timing.seconds, plain.seconds)
        exits = statistics.median(_ratios(timing.exit_seconds, plain.seconds))
        cpu = statistics.median(_ratios(timing.cpu_seconds, plain.cpu_seconds))
        print(
            f"| {name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} | {exits:.3f} "
            f"| {cpu:.3f} | {'yes' if timing.identical else 'no'} |"
        )


def measure_maps(setting: Setting) -> tuple[int, float]:
    """Number of maps of one recorded run, and seconds of processor time to compute all of them from its trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        with record(setting.unet, path, **_described()):
            setting.run()
        for _ in range(2):  # the first time loads the compiled kernel
            start = time.process_time()
            maps = compute_together(level_maps(open_trace(path)))
            seconds = time.process_time() - start
    return len(maps), seconds


def report_maps(timings: dict[str, Timing], maps: int, seconds: float) -> None:
    """Print what all maps cost, in processor time, to one plain run."""
    plain = statistics.median(timings["plain"].cpu_seconds)
    recorded, eager_run = (
        statistics.median(_ratios(timings[name].cpu_seconds, timings["plain"].cpu_seconds))
        for name in ("record (hooks)", "eager")
    )
    print(
        f"\nAll {maps} maps, in processor time of one plain run: {recorded + seconds / plain:.2f} for one recorded run "
        f"and its analysis ({seconds / plain:.2f} of it); {maps * eager_run:.2f} for {maps} eager runs, one a map."
    )


def _ratios(own: list[float], base: list[float]) -> list[float]:
    return [one / other for one, other in zip(own, base, strict=True)]


def main(arguments: list[str] | None = None) -> dict[str, Timing]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CHANNELS, default="half")
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", help="the same as --size quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="calls of the denoiser in each way and round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--without", nargs="*", choices=[*WAYS][1:], default=[], help="ways to leave out")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    setting = make_setting(given.size, given.steps, given.device, getattr(torch, given.dtype))
    timings = measure(setting, [name for name in WAYS if name not in given.without], given.rounds)
    report(timings, given.steps)
    if {"record (hooks)", "eager"} <= timings.keys():
        report_maps(timings, *measure_maps(setting))
    return timings


if __name__ == "__main__":
    main(sys.argv[1:])
