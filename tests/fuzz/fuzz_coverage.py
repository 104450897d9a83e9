"""Fuzz the reader, guided by coverage, by hand: `python tests/fuzz/fuzz_coverage.py -max_total_time=1200`.

Needs `pip install atheris`, which is no dependency of attrace. Options are those of libFuzzer, as `-seed=1`; a folder
among them is the corpus, which is kept. The first byte of an input says what the others are: a manifest, the
`zarr.json` of one group or array of a trace, or a whole zip file. Each is read as `fuzz_reader.py` reads a trace. A
fault is printed with its input in base64, and fuzzing goes on.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["attrace", "zipfile", "zarr"]):
    from fuzz.fuzz_reader import SECONDS_EACH, Hang, bases, say, too_long, use

    from attrace.schemas import AttraceError, parse_manifest

CLASS = "reference/64x16h2d8"

PLACES = ("", "step_done", "images", "images/generated", CLASS, f"{CLASS}/key_step", f"{CLASS}/query_vector")
"""Whose `zarr.json` an input may be."""

MANIFEST, DOCUMENT, ARCHIVE = range(3)


class Reader:
    """Reads inputs, and counts what it read and what went wrong."""

    def __init__(self, folder: Path) -> None:
        (folder / "originals").mkdir()
        self.folder = folder
        self.originals = bases(folder / "originals")
        self.unclosed = next(path for path in self.originals if path.name == "open.zarr")
        self.inputs = 0
        self.faults: Counter[str] = Counter()

    def seeds(self) -> list[bytes]:
        """Sound inputs of every kind."""
        root = json.loads((self.unclosed / "zarr.json").read_bytes())
        found = [bytes([MANIFEST]) + json.dumps(root["attributes"]["attrace"]).encode()]
        for number, place in enumerate(PLACES):
            found.append(bytes([DOCUMENT, number]) + (self.unclosed / place / "zarr.json").read_bytes())
        return found + [bytes([ARCHIVE]) + path.read_bytes() for path in self.originals if path.is_file()]

    def read(self, data: bytes) -> None:
        """Read one input; a fault is printed where it is the first of its kind."""
        self.inputs += 1
        signal.alarm(12 * SECONDS_EACH)
        try:
            self._read(data[:1], data[1:])
        except (Exception, Hang) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {last.filename}:{last.lineno}"
            self.faults[kind] += 1
            if self.faults[kind] == 1:
                say(f"{traceback.format_exc()}input: {base64.b64encode(data).decode()}")
        finally:
            signal.alarm(0)

    def report(self) -> None:
        """Say how many inputs were read and what was found."""
        say(f"{self.inputs} inputs, {self.faults.total()} faults of {len(self.faults)} kinds")

    def _read(self, kind: bytes, content: bytes) -> None:
        match kind[0] % 3 if kind else MANIFEST:
            case 0:
                with suppress(AttraceError, ValueError, RecursionError):
                    document = json.loads(content)
                    parse_manifest(document, where="the trace")
            case 1:
                self._read_document(PLACES[content[0] % len(PLACES)] if content else "", content[1:])
            case _:
                with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                    (Path(folder) / "run.zip").write_bytes(content)
                    use(Path(folder) / "run.zip")

    def _read_document(self, place: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(shutil.copytree(self.unclosed, Path(folder) / "run.zarr"))
            (path / place / "zarr.json").write_bytes(content)
            use(path)


def main() -> None:
    """Fuzz until libFuzzer ends it."""
    warnings.simplefilter("ignore")
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, too_long)
    folder = Path(tempfile.mkdtemp())
    reader = Reader(folder)
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    corpus = Path(given[0]) if given else folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(reader.seeds()):
        (corpus / f"sound-{number}").write_bytes(seed)
    pid = os.getpid()

    @atexit.register
    def _end() -> None:
        if os.getpid() == pid:
            reader.report()
            shutil.rmtree(folder, ignore_errors=True)

    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    atheris.Setup([sys.argv[0], "-max_len=65536", *options, str(corpus)], reader.read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
