"""Fuzz the reader by hand: `python tests/fuzz/fuzz_reader.py --seconds 3600`.

Small traces, folders and zip files, are damaged at random and read as a user would: opened, listed, mapped, verified,
unpacked. Whatever is not one of attrace's own errors or of the system's, takes longer than a minute, or writes
outside the target, is a fault: it is printed with the number that makes it again (`--only NUMBER`).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack, ulam, unpack
from attrace.analysis.integrity.diff import diff
from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.schemas import AttraceError, codecs

SECONDS_EACH = 60
VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, 1e308, "", "NaN", "a", "../..", "/etc", "\x00", "$\\frac{$",
    "<script>", "float16", "object", "sharding_indexed", [], [[]], [0], [1, 2], {}, {"name": "numcodecs.pickle"},
    "é" * 999,
]  # fmt: skip
BYTES = [b"", b"\x00", b"\xff" * 4, b"PK\x05\x06", b"PK\x01\x02", b"[" * 5000, b"null", b"{}"]


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


def damaged_bytes(content: bytes, random_: random.Random) -> bytes:
    """Content with some bytes changed, cut, repeated, or replaced."""
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 8))):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << random_.randrange(8)
            case 1:
                data[at : at + random_.randrange(1, 40)] = b""
            case 2:
                data[at:at] = random_.choice(BYTES)
            case 3:
                data[at : at + 4] = random_.randbytes(4)
            case _:
                data[at:at] = data[max(0, at - random_.randrange(1, 100)) : at]
    return bytes(data)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every member of a JSON document, as its container and key."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, member in items for place in [(value, key), *places(member)]]


def damaged_json(content: bytes, random_: random.Random) -> bytes:
    """A document with members changed, removed, or exchanged."""
    try:
        document = json.loads(content)
    except ValueError:
        return damaged_bytes(content, random_)
    for _ in range(random_.choice((1, 1, 2, 4))):
        found = places(document)
        if not found:
            break
        container, key = random_.choice(found)
        match random_.randrange(4):
            case 0:
                del container[key]
            case 1:
                other, at = random_.choice(found)
                if at in other if isinstance(other, dict) else at < len(other):
                    container[key] = json.loads(json.dumps(other[at]))
            case 2 if isinstance(container[key], int):
                container[key] += random_.choice((-1, 1, 2**20, -(2**33)))
            case _:
                container[key] = deepcopy(random_.choice(VALUES))  # it may be damaged next
    return json.dumps(document).encode()


def damage_folder(path: Path, random_: random.Random) -> None:
    """Change some files of a trace."""
    for _ in range(random_.choice((1, 1, 2, 5))):
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        if not files:
            return
        metadata = [file for file in files if file.name == "zarr.json"]
        file = random_.choice(metadata if metadata and random_.random() < 0.7 else files)
        content = file.read_bytes()
        match random_.randrange(10):
            case 0:
                file.unlink()
            case 1:
                file.unlink()
                file.symlink_to(random_.choice([Path("/dev/zero"), path, Path(".."), file, random_.choice(files)]))
            case 2:
                file.write_bytes(random_.choice(files).read_bytes())
            case 3 | 4:
                file.write_bytes(damaged_bytes(content, random_))
            case _:
                change = damaged_json if file.name == "zarr.json" else damaged_bytes
                file.write_bytes(change(content, random_))


def damage(path: Path, random_: random.Random) -> None:
    """Change a trace at random."""
    if path.is_dir():
        damage_folder(path, random_)
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), random_))


def use(path: Path) -> None:
    """Read a trace in every way; each ends in a result or in an error of attrace or of the system."""
    ways: list[Callable[[], object]] = [
        lambda: ulam(open_trace(path), direction="r2g").compute(),
        lambda: [image.compute() for image in open_trace(path).images.values()],
        lambda: verify(path),
        lambda: list(diff(path, path)),
        lambda: pack(path, path.with_name("packed.zip"), overwrite=True),
        lambda: pack(
            open_trace(path).sel(time=slice(0, 0)), path.with_name("recoded.zip"), codec="none", overwrite=True
        ),
        lambda: repair(path),
    ]
    if path.is_file():
        ways.append(lambda: unpack(path, path.with_name("unpacked.zarr")))
    for way in ways:
        with suppress(AttraceError, OSError):
            way()


def try_input(number: int, originals: list[Path], folder: Path) -> str | None:
    """Damage and read one trace; what went wrong, as a traceback."""
    random_ = random.Random(number)
    original = random_.choice(originals)
    target = folder / "target"
    target.mkdir()
    path = target / original.name
    if original.is_dir():
        shutil.copytree(original, path)
    else:
        shutil.copy(original, path)
    damage(path, random_)
    before = {file for file in folder.rglob("*") if target not in file.parents}
    signal.alarm(SECONDS_EACH)
    try:
        use(path)
    except (Exception, Hang):
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    outside = {file for file in folder.rglob("*") if target not in file.parents} - before
    return f"wrote outside of the target: {outside}" if outside else None


class Hang(BaseException):
    """Reading took too long: no error that reading may end in, nor one that code which is read through may catch."""


def too_long(_signal: int, _frame: FrameType | None) -> None:
    """End what takes too long."""
    raise Hang(f"took more than {SECONDS_EACH} s")


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
    signal.signal(signal.SIGALRM, too_long)
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
            if tried % 500 == 0:
                say(f"{tried} inputs, {sum(faults.values())} faults of {len(faults)} kinds")
    say(f"{tried} inputs, {sum(faults.values())} faults of {len(faults)} kinds")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
