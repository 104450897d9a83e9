"""What recording costs: the same denoiser with and without it, and with attention computed eagerly, in one run.

    python benchmarks/recording.py [--size quick|half|full] [--rounds 5] [--steps 2 6] [--device cuda --dtype float16]

A U-Net of Stable Diffusion 1.5 with random weights attends to 257 image keys (`half` has half of its channels). Each
round runs every way once with each number of steps, in turn, so that what else the machine does falls on all of them
alike:

- plain: nothing is recorded.
- capture: hooks see queries and keys, and drop them.
- record: a trace is written, by hooks; then the same by interception of the attention call.
- eager: processors that form the probabilities and add them up, as DAAM and attention-map-diffusers do.

Time is counted from before the `with` block to after it, when what waited is written and synced. The two numbers of
steps give what a step costs and what is paid once, and so what a run of 50 steps takes. The table has medians over the
rounds, and ratios to the plain way of the same round. `processor` is the processor time of all threads, which changes
least with what other processes do.

Then all maps, of every level and direction, in two ways: one recorded run and the analysis of its trace; and one eager
run for each map, as the published code of I2AM needs them (the eager run of each round, times the number of maps).

Then how the cost grows with steps, tokens and layers, and the most that is resident in memory: each way in a process of
its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.utils import logging
from torch import Tensor

from attrace.analysis import open_trace
from attrace.analysis.maps.attribution import level_maps
from attrace.recorder import record
from attrace.recorder.capture.methods import CaptureName
from attrace.recorder.capture.projection_hooks import ProjectionHooks
from attrace.recorder.capture.sites import find_candidates

CHANNELS: Final = {"quick": (32, 64), "half": (160, 320, 640, 640), "full": (320, 640, 1280, 1280)}
KEYS: Final = 257


RUN_STEPS: Final = 50
"""Steps of the run that costs are told for."""

GROWN: Final = {
    "at first": (2, 32, 1),
    "2 x steps": (4, 32, 1),
    "4 x steps": (8, 32, 1),
    "4 x tokens": (2, 64, 1),
    "2 x layers": (2, 32, 2),
    "4 x layers": (2, 32, 4),
}
"""Steps, side of the latent picture and layers of each block of what grows."""

QUICK_GROWN: Final = {"at first": (1, 8, 1), "2 x steps": (2, 8, 1)}


@dataclass
class Timing:
    """What one way took in each round, by number of steps."""

    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """From before the `with` block to after it."""
    cpu_seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Processor time of all threads."""
    identical: bool = True
    """Whether every result had the bits of the plain one."""


@dataclass(frozen=True)
class Cost:
    """What a run costs, of the times of two lengths."""

    step: float
    """Seconds a step."""
    once: float
    """Seconds that the number of steps does not change."""

    @classmethod
    def of(cls, seconds: dict[int, list[float]]) -> list[Cost]:
        """That of each round."""
        short, long = min(seconds), max(seconds)
        pairs = zip(seconds[short], seconds[long], strict=True)
        steps = [((after - before) / (long - short), before) for before, after in pairs]
        return [cls(step, before - short * step) for step, before in steps]

    @property
    def run(self) -> float:
        """Seconds of a run of 50 steps."""
        return self.once + RUN_STEPS * self.step


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

    @torch.no_grad()
    def run(self, steps: int) -> Tensor:
        """Some calls of the denoiser, each on the result of the last."""
        sample = self.sample
        for step in range(steps):
            sample = self.unet(sample, 999 - step, encoder_hidden_states=self.context).sample
        if sample.device.type == "cuda":
            torch.cuda.synchronize()
        return sample


def make_setting(
    size: str, device: str, dtype: torch.dtype, *, side: int | None = None, layers: int | None = None
) -> Setting:
    """A U-Net with random weights and its inputs: a guided batch of one sample."""
    torch.manual_seed(0)
    channels = CHANNELS[size]
    quick = size == "quick"
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=channels,
        down_block_types=(*["CrossAttnDownBlock2D"] * (len(channels) - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (len(channels) - 1)),
        layers_per_block=layers or (1 if quick else 2),
        attention_head_dim=8,  # diffusers reads this name as the number of heads
        cross_attention_dim=768,
    )
    unet = unet.to(device, dtype).eval()
    side = side or (16 if quick else 64)
    sample = torch.randn(2, 4, side, side).to(device, dtype)
    return Setting(unet, sample, torch.randn(2, KEYS, 768).to(device, dtype))


@contextmanager
def nothing(_setting: Setting, _folder: Path) -> Iterator[None]:
    """The plain way."""
    yield


@contextmanager
def capturing(setting: Setting, _folder: Path) -> Iterator[None]:
    """Hooks that drop what they see."""
    hooks = ProjectionHooks(lambda *_: None, lambda: True)
    for candidate in find_candidates(setting.unet):
        hooks.attach([candidate])
    yield
    hooks.detach()


def _described() -> dict[str, Any]:
    """What a bare denoiser does not tell of itself."""
    return {"context": "reference", "key_grid": (16, 16), "guidance": ("unconditional", "conditional")}


def recording(capture: CaptureName) -> Callable[[Setting, Path], Any]:
    """Record to a folder."""

    def way(setting: Setting, folder: Path) -> Any:
        return record(setting.unet, folder / "run.zarr", capture=capture, **_described())

    return way


@contextmanager
def eager(setting: Setting, _folder: Path) -> Iterator[None]:
    """Processors that form the probabilities."""
    processors = setting.unet.attn_processors
    setting.unet.set_attn_processor({name: EagerAttention() for name in processors})
    yield
    setting.unet.set_attn_processor(processors)


WAYS: Final[dict[str, Callable[[Setting, Path], Any]]] = {
    "plain": nothing,
    "capture": capturing,
    "record (hooks)": recording("hooks"),
    "record (attention)": recording("attention"),
    "eager": eager,
}


IN_MEMORY: Final = ("plain", "record (hooks)", "eager")
"""Ways whose memory is told."""


def measure(setting: Setting, ways: Sequence[str], lengths: Sequence[int], rounds: int) -> dict[str, Timing]:
    """Run every way once with each number of steps in each round."""
    expected = {steps: setting.run(steps) for steps in lengths}
    for name in ways:
        _timed(setting, name, 1)  # what is imported and compiled the first time is no part of a run
    timings = {name: Timing() for name in ways}
    for _ in range(rounds):
        for steps in lengths:
            for name, timing in timings.items():
                result, seconds, cpu_seconds = _timed(setting, name, steps)
                timing.seconds[steps].append(seconds)
                timing.cpu_seconds[steps].append(cpu_seconds)
                timing.identical &= torch.equal(result, expected[steps])
    return timings


def _timed(setting: Setting, way: str, steps: int) -> tuple[Tensor, float, float]:
    """What a run gives, and its seconds and those of all threads' processor time."""
    with tempfile.TemporaryDirectory() as folder:
        start, cpu_start = time.perf_counter(), time.process_time()
        with WAYS[way](setting, Path(folder)):
            result = setting.run(steps)
        return result, time.perf_counter() - start, time.process_time() - cpu_start


def report(timings: dict[str, Timing]) -> None:
    """Print what a step and a run cost, beside the plain way."""
    plain, plain_cpu = Cost.of(timings["plain"].seconds), Cost.of(timings["plain"].cpu_seconds)
    step = statistics.median(one.step for one in plain)
    lengths = " and ".join(map(str, timings["plain"].seconds))
    print(
        f"Plain: {step:.2f} s a step; {len(plain)} rounds of {lengths} steps. Of {RUN_STEPS} steps, to the plain way:\n"
    )
    print(f"| way | a step | once, s | {RUN_STEPS} steps | least | most | processor | same bits |")
    print("| --- | --: | --: | --: | --: | --: | --: | --- |")
    for name, timing in timings.items():
        own, own_cpu = Cost.of(timing.seconds), Cost.of(timing.cpu_seconds)
        steps = statistics.median(one.step / other.step for one, other in zip(own, plain, strict=True))
        runs = [one.run / other.run for one, other in zip(own, plain, strict=True)]
        cpu = statistics.median(one.run / other.run for one, other in zip(own_cpu, plain_cpu, strict=True))
        once = statistics.median(one.once for one in own)
        print(
            f"| {name} | {steps:.3f} | {once:.2f} | {statistics.median(runs):.3f} | {min(runs):.3f} | {max(runs):.3f} "
            f"| {cpu:.3f} | {'yes' if timing.identical else 'no'} |"
        )


def measure_maps(setting: Setting, steps: int) -> tuple[int, float]:
    """Number of maps of one recorded run, and seconds of processor time to compute all of them from its trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        with record(setting.unet, path, **_described()):
            setting.run(steps)
        for _ in range(2):  # the first time loads the compiled kernel
            start = time.process_time()
            maps = level_maps(open_trace(path)).compute()
            seconds = time.process_time() - start
    return sum(len(node.data_vars) for node in maps.children.values()), seconds


def report_maps(timings: dict[str, Timing], maps: int, seconds: float) -> None:
    """Print what all maps cost, in processor time, to one plain run."""
    steps = max(timings["plain"].seconds)
    times = {name: statistics.median(timing.cpu_seconds[steps]) for name, timing in timings.items()}
    plain = times["plain"]
    recorded, eager_run = times["record (hooks)"] / plain, times["eager"] / plain
    print(
        f"\nAll {maps} maps, in processor time of one plain run: {recorded + seconds / plain:.2f} for one recorded run "
        f"and its analysis ({seconds / plain:.2f} of it); {maps * eager_run:.2f} for {maps} eager runs, one a map."
    )


def report_growth(given: argparse.Namespace) -> None:
    """Measure and print how the cost of recording grows; in brackets the ratio to the first line."""
    print("\n| run | plain, s | recorded, s | recorded to plain | more processor time, s |")
    print("| --- | --: | --: | --: | --: |")
    first = None
    for name, (steps, side, layers) in (QUICK_GROWN if given.size == "quick" else GROWN).items():
        setting = make_setting(given.size, given.device, getattr(torch, given.dtype), side=side, layers=layers)
        timings = measure(setting, ["plain", "record (hooks)"], [steps], given.rounds)
        plain, recorded = (statistics.median(one.seconds[steps]) for one in timings.values())
        plain_cpu, recorded_cpu = (statistics.median(one.cpu_seconds[steps]) for one in timings.values())
        more = recorded_cpu - plain_cpu
        first = more if first is None else first
        print(f"| {name} | {plain:.2f} | {recorded:.2f} | {recorded / plain:.3f} | {more:.2f} ({more / first:.2f}) |")


def report_memory(given: argparse.Namespace) -> None:
    """Measure and print the most that is resident, each way in a process of its own."""
    peaks = {}
    for name in IN_MEMORY:
        options = [f"--{option}={getattr(given, option)}" for option in ("size", "device", "dtype", "threads")]
        command = [sys.executable, __file__, *options, "--steps", *map(str, given.steps), "--peak", name]
        peaks[name] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print("\n| way | most resident, MB | to the plain way |")
    print("| --- | --: | --: |")
    for name, peak in peaks.items():
        print(f"| {name} | {peak:.0f} | {peak / peaks['plain']:.2f} |")


def peak_megabytes(setting: Setting, way: str, steps: int) -> float:
    """The most that this process held once it ran in one way: of a GPU's memory where it has one."""
    with tempfile.TemporaryDirectory() as folder, WAYS[way](setting, Path(folder)):
        setting.run(steps)
    if setting.sample.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # getrusage begins with what the process held that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    unit = 1024 if sys.platform != "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(arguments: list[str] | None = None) -> dict[str, Timing]:
    """Measure and print, or run one way for the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CHANNELS, default="half")
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", help="the same as --size quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs=2, default=[2, 6], help="calls of the denoiser, of two lengths")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--without", nargs="*", choices=[*WAYS][1:], default=[], help="ways to leave out")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    logging.set_verbosity_error()  # of diffusers: how a model came to its data type is nothing for the page
    setting = make_setting(given.size, given.device, getattr(torch, given.dtype))
    if given.peak:
        print(peak_megabytes(setting, given.peak, max(given.steps)))
        return {}
    timings = measure(setting, [name for name in WAYS if name not in given.without], given.steps, given.rounds)
    report(timings)
    if {"record (hooks)", "eager"} <= timings.keys():
        report_maps(timings, *measure_maps(setting, max(given.steps)))
    report_growth(given)
    report_memory(given)
    return timings


if __name__ == "__main__":
    main(sys.argv[1:])
