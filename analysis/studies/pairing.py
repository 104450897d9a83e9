"""Which traces of two sets belong together: by their names, or by what was put into the model."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from attrace.analysis.trace.trace import Trace, open_trace
from attrace.analysis.trace.traces import OPENING_THREADS, find_traces
from attrace.schemas import AttraceError, InputError
from attrace.schemas.address import is_address, local_path

PairBy = Literal["name", "inputs"]
"""How traces are paired."""

INPUT_PICTURES: Final = ("reference", "input", "mask")
"""Pictures of a trace that were put into the model."""

SUFFIXES: Final = (".zarr", ".zip")


@dataclass(frozen=True)
class Pair:
    """Two traces of the same inputs."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Pairing:
    """Two sets of traces, paired."""

    pairs: tuple[Pair, ...]
    """In the order of the first set."""
    unpaired: Mapping[str, str]
    """Why each trace without a partner has none, by where it lies."""
    broken: Mapping[str, str]
    """Why each trace that could not be opened was not."""


def pair_traces(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    by: PairBy = "name",
    storage_options: Mapping[str, Any] | None = None,
) -> Pairing:
    """Pair the traces of two sources.

    Parameters
    ----------
    a, b
        Each a trace, a folder of traces, a glob or an address, as for `open_traces`. Two single traces are a pair.
    by
        `name`: the path below the folder, without `.zarr` and `.zip`; below the last folder for a glob. `inputs`: the
        seed, every text among the arguments of the call, and the pixels of the pictures `reference`, `input` and
        `mask`; numbers such as the guidance scale may differ.
    storage_options
        As for `open_trace`.

    Raises
    ------
    TraceNotFoundError
        If a source holds no trace.
    InputError
        If nothing can be paired.
    """
    if by not in ("name", "inputs"):
        raise InputError(f"by: expected name or inputs, found {by!r}")
    sources = [os.fspath(a), os.fspath(b)]
    paths = [find_traces(source, storage_options=storage_options) for source in sources]
    if all(found == (source,) for found, source in zip(paths, sources, strict=True)):
        return Pairing((Pair(stem_of(paths[0][0]), paths[0][0], paths[1][0]),), {}, {})
    broken: dict[str, str] = {}
    if by == "name":
        keys = [
            {path: _name_below(source, path) for path in found} for source, found in zip(sources, paths, strict=True)
        ]
    else:
        keys = [_inputs_of(found, storage_options, broken) for found in paths]
    first, second = ({key: path for path, key in of.items()} for of in keys)
    pairs = [Pair(_name_below(sources[0], path), path, second[key]) for key, path in first.items() if key in second]
    twice = [{key for key, count in Counter(of.values()).items() if count > 1} for of in keys]
    pairs = [pair for pair in pairs if keys[0][pair.a] not in twice[0] | twice[1]]
    paired = {path for pair in pairs for path in (pair.a, pair.b)}
    unpaired = {
        path: f"its {by} is that of several traces"
        if key in twice[0] | twice[1]
        else f"no trace of the other set has its {by}"
        for of in keys
        for path, key in of.items()
        if path not in paired
    }
    if not pairs:
        raise InputError(_no_pair(sources, paths, by, broken))
    return Pairing(tuple(pairs), unpaired, broken)


def _no_pair(sources: list[str], paths: list[tuple[str, ...]], by: PairBy, broken: Mapping[str, str]) -> str:
    if broken:
        path, reason = next(iter(broken.items()))
        return f"no pair can be made: {len(broken)} traces cannot be opened; the first, {path}: {reason}"
    first, second = (
        f"{source} ({len(found)}, such as {_name_below(source, found[0])})"
        for source, found in zip(sources, paths, strict=True)
    )
    other = "inputs" if by == "name" else "name"
    return f"no trace of {first} has the {by} of one of {second}: name them alike, or pair them by {other}"


def _name_below(source: str, path: str) -> str:
    """The name of a trace in its source."""
    folder = local_path(source)
    if not is_address(source) and not glob.has_magic(source) and folder.is_dir() and Path(path) != folder:
        below = Path(path).relative_to(folder)
        return below.with_name(stem_of(below.name)).as_posix()
    return stem_of(path)


def stem_of(path: str) -> str:
    """The name of a trace without its suffix and where it lies."""
    name = path.rstrip("/").rpartition("/")[2]
    for suffix in reversed(SUFFIXES):
        name = name.removesuffix(suffix)
    return name


def _inputs_of(
    paths: tuple[str, ...], storage_options: Mapping[str, Any] | None, broken: dict[str, str]
) -> dict[str, str]:
    """A digest of the inputs of every trace that opens; why the others do not goes to `broken`."""

    def digest(path: str) -> str | Exception:
        try:
            return _digest(open_trace(path, storage_options=storage_options))
        except (AttraceError, OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        found = dict(zip(paths, pool.map(digest, paths), strict=True))
    broken |= {path: str(one) for path, one in found.items() if isinstance(one, Exception)}
    return {path: one for path, one in found.items() if isinstance(one, str)}


def _digest(trace: Trace) -> str:
    texts = {name: value for name, value in trace.manifest.call_arguments.items() if _is_text(value)}
    # a sample of a batch has noise of its own
    described = [trace.manifest.seed, trace.manifest.sample, texts]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in (name for name in INPUT_PICTURES if name in trace.images):
        pixels = np.ascontiguousarray(trace.images[name].values)
        digest.update(f"{name} {pixels.shape}".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
