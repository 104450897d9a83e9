"""One flipped bit anywhere in a trace, metadata included, is named by `verify`, or changes nothing that can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.published import write_published

from attrace.analysis import precompute, unpack
from attrace.analysis.integrity.verify import verify
from attrace.schemas import TraceFormatError
from attrace.schemas.digest import canonical_json

SEED = 11


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A whole small trace: both encodings, a bias, sums over all keys, a gap, a picture and kept marginals."""
    write_published(tmp_path / "run.zip")
    return Path(precompute(unpack(tmp_path / "run.zip", tmp_path / "run.zarr")).path)


def _named(trace: Path) -> bool:
    """Whether `verify` says that something is wrong."""
    try:
        return bool(verify(trace).problems)
    except TraceFormatError:
        return True


def _everything(trace: Path) -> dict[str, Any]:
    """What can be read of a trace with plain zarr and a JSON parser: every document and the bits of every array."""
    found: dict[str, Any] = {}
    for file in sorted(trace.rglob("zarr.json")):
        path = file.parent.relative_to(trace).as_posix()
        found[path] = canonical_json(json.loads(file.read_bytes()))
    for path, member in zarr.open_group(trace, mode="r", use_consolidated=False).members(max_depth=None):
        if isinstance(member, zarr.Array):
            found[f"{path} values"] = np.asarray(member[...]).tobytes()
    return found


def _flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def _check(trace: Path, flips: int) -> tuple[int, int]:
    """Flip bits one after the other, each put back; how many were named and how many harmless."""
    files = sorted(file for file in trace.rglob("*") if file.is_file())
    ends = np.cumsum([8 * file.stat().st_size for file in files])
    before = _everything(trace)
    named = harmless = 0
    for at in np.random.default_rng(SEED).integers(0, ends[-1], flips).tolist():
        number = int(np.searchsorted(ends, at, side="right"))
        file, bit = files[number], at - int(ends[number - 1] if number else 0)
        _flip(file, bit)
        if _named(trace):
            named += 1
        else:
            assert _everything(trace) == before, f"bit {bit} of {file.relative_to(trace)} changes what is read, unseen"
            harmless += 1
        _flip(file, bit)
    assert not _named(trace)
    return named, harmless


def test_some_flipped_bits_are_named(trace: Path) -> None:
    named, harmless = _check(trace, 40)
    assert named > 30
    assert named + harmless == 40


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_named(trace: Path) -> None:
    named, harmless = _check(trace, 1000)
    assert named > 980
    assert named + harmless == 1000
