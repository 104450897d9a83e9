"""Fuzz the reader by hand: `python tests/fuzz/fuzz_reader.py --seconds 3600`.

Small traces, folders and zip files, also behind a web server, are damaged at random, half of them with a digest that
is valid again, and read as a user would: opened, listed, mapped, verified, unpacked, reported, compared. So are lists
of jobs. Whatever is not one of attrace's own errors or of the system's, takes more than ten seconds of processor time
or a GiB of memory, or writes outside the target, is a fault: it is printed with the number that makes it again (`--only
NUMBER`).
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.damage import damage, damaged_jobs
from support.server import serving
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack, precompute, score_trace, ulam, unpack, write_report
from attrace.analysis.integrity.diff import diff
from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.analysis.sharing.transfer import pull
from attrace.analysis.studies.aggregate import aggregate
from attrace.analysis.studies.compare import compare
from attrace.analysis.studies.trace_statistics import Settings
from attrace.recorder.jobs.joblist import read_jobs
from attrace.schemas import AttraceError, codecs

SECONDS_EACH = 10
MOST_BYTES = 2**30


def bases(folder: Path) -> list[Path]:
    """Sound traces: both encodings, shuffled, without consolidated metadata, in folders and zip files."""
    grid: dict[str, Any] = {"query_grid": (4, 4), "key_grid": (2, 2), "features": 4}
    picture = {"generated": np.zeros((4, 4, 3), np.uint8)}
    made = [
        make_trace(folder / "factors.zarr", (site_class(**grid),), steps=2, images=picture).path,
        make_trace(folder / "scores.zarr", (site_class(encoding="scores", **grid),), steps=2).path,
        make_trace(folder / "open.zarr", (site_class(**grid),), steps=2, status=None, images=picture).path,
    ]
    with patch.object(codecs, "SHUFFLED_FROM", 0):
        made.append(make_trace(folder / "shuffled.zarr", (site_class(**grid),), steps=2).path)
    return [*made, *(pack(path, path.with_suffix(".zip")) for path in made)]


def ways_to_read(source: str, folder: Path, *, studies: bool) -> list[Callable[[], object]]:
    """What a user does with a trace, wherever it is; what is written goes to a folder."""
    ways: list[Callable[[], object]] = [
        lambda: ulam(open_trace(source), direction="r2g").compute(),
        lambda: [image.compute() for image in open_trace(source).images.values()],
        lambda: verify(source),
        lambda: list(diff(source, source)),
        lambda: score_trace(open_trace(source)),
        lambda: write_report(open_trace(source), folder / "report.html", overwrite=True),
    ]
    if studies:
        settings, one = Settings(groups=2), ThreadPoolExecutor(1)
        ways.append(lambda: compare(source, source, settings=settings, executor=one))
        ways.append(lambda: aggregate(source, folder / "parts", settings=settings, executor=one))
    return ways


def use(path: Path, *, studies: bool = True) -> None:
    """Read a trace in every way; each ends in a result or in an error of attrace or of the system."""
    ways = [
        *ways_to_read(str(path), path.parent, studies=studies),
        lambda: pack(path, path.with_name("packed.zip"), overwrite=True),
        lambda: pack(
            open_trace(path).sel(time=slice(0, 0)), path.with_name("recoded.zip"), codec="none", overwrite=True
        ),
        lambda: precompute(path),
        lambda: repair(path),
    ]
    if path.is_file():
        ways.append(lambda: unpack(path, path.with_name("unpacked.zarr")))
    try_all(ways)


def use_remotely(path: Path, *, studies: bool = True) -> None:
    """Read a trace from a web server, in every way that there is, and pull it."""
    with serving(path.parent) as served:
        source = f"{served.address}/{path.name}"
        try_all(
            [*ways_to_read(source, path.parent, studies=studies), lambda: pull(source, path.with_name("pulled.zarr"))]
        )


def use_jobs(path: Path, **_: bool) -> None:
    """Read a list of jobs."""
    try_all([lambda: read_jobs(path, path.parent)])


def try_all(ways: list[Callable[[], object]]) -> None:
    """Go every way, within limits; whatever is raised but errors of attrace and of the system passes through."""
    for way in ways:
        before = peak_bytes()
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
        try:
            with suppress(AttraceError, OSError):
                way()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if peak_bytes() - before > MOST_BYTES:
            raise MemoryError(f"took {peak_bytes() - before} bytes")


def peak_bytes() -> int:
    """The most memory that this process took up to now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def try_input(number: int, originals: list[Path], folder: Path) -> str | None:
    """Damage and read one trace or list of jobs; what went wrong, as a traceback."""
    random_ = random.Random(number)
    target = folder / "target"
    target.mkdir()
    kind = random_.choices((use, use_remotely, use_jobs), (8, 1, 1))[0]
    if kind is use_jobs:
        path = target / "jobs.jsonl"
        Image.new("RGB", (4, 4)).save(target / "picture.png")
        path.write_bytes(damaged_jobs(random_))
    else:
        original = random_.choice(originals)
        path = target / original.name
        if original.is_dir():
            shutil.copytree(original, path)
        else:
            shutil.copy(original, path)
        damage(path, random_)
    before = {file for file in folder.rglob("*") if target not in file.parents}
    signal.signal(signal.SIGPROF, too_long)
    try:
        kind(path, studies=random_.random() < 0.2)  # they take most of the time
    except (Exception, Hang):
        return traceback.format_exc()
    outside = {file for file in folder.rglob("*") if target not in file.parents} - before
    return f"wrote outside of the target: {outside}" if outside else None


class Hang(BaseException):
    """Reading took too long: no error that reading may end in, nor one that code which is read through may catch."""


def too_long(_signal: int, _frame: FrameType | None) -> None:
    """End what takes too long."""
    raise Hang(f"took more than {SECONDS_EACH} s of processor time")


def say(message: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


def main() -> None:
    """Fuzz for a while and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="try this input alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (4 * MOST_BYTES, 4 * MOST_BYTES))  # of which threads reserve a lot
    faults: Counter[str] = Counter()
    end, number = time.monotonic() + arguments.seconds, arguments.first if arguments.only is None else arguments.only
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "originals").mkdir()
        originals = bases(Path(temporary) / "originals")
        tried = 0
        while time.monotonic() < end and not (arguments.only is not None and tried):
            with tempfile.TemporaryDirectory() as folder:
                fault = try_input(number, originals, Path(folder))
            if fault is not None:
                last = fault.strip().splitlines()[-1][:150]
                faults[last] += 1
                if faults[last] == 1 or arguments.only is not None:
                    say(f"input {number}:\n{fault}")
            tried, number = tried + 1, number + 1
            if tried % 100 == 0:
                say(f"{tried} inputs, {sum(faults.values())} faults of {len(faults)} kinds")
    say(f"{tried} inputs, {sum(faults.values())} faults of {len(faults)} kinds")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
