"""Claims: one holder at a time, and the claims of the dead are taken over."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from attrace.recorder.jobs.claims import Claim, ClaimLostError, Claims, Owner

HOUR = 3600.0


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


def taken(claims: Claims, output: Path) -> Claim:
    claim = claims.take(output)
    assert isinstance(claim, Claim)
    return claim


def written_by_another(output: Path, number: int = 0, **members: Any) -> Path:
    """A claim as another machine leaves it."""
    path = output.with_name(f".{output.name}.claim-{number}")
    described = {"token": "f" * 12, "host": "far", "machine": "far 1 pid:[1]", "pid": 1, "beats": 0}
    path.write_text(json.dumps(described | members))
    return path


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within ten seconds")


def test_one_holds_it_until_it_is_released(output: Path) -> None:
    claim = taken(Claims(), output)
    other = Claims().take(output)
    assert isinstance(other, Owner)
    assert "process" in str(other)
    claim.require()
    claim.release()
    taken(Claims(), output).release()
    assert list(output.parent.iterdir()) == []


def test_of_many_that_begin_at_once_one_gets_it(output: Path) -> None:
    barrier = threading.Barrier(8)

    def take(_: int) -> Claim | Owner:
        barrier.wait()
        return Claims().take(output)

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            (claim,) = [one for one in pool.map(take, range(8)) if isinstance(one, Claim)]
        claim.release()


def test_the_claim_of_a_dead_process_is_taken_over_at_once(output: Path) -> None:
    code = f"""
import os
from pathlib import Path
from attrace.recorder.jobs.claims import Claims
Claims().take(Path({str(output)!r}))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert output.with_name(".run.zarr.claim-0").exists()
    claim = taken(Claims(), output)
    assert claim.is_held
    claim.release()
    assert list(output.parent.iterdir()) == []


def test_of_many_that_take_over_one_gets_it(output: Path) -> None:
    now = 0.0
    all_claims = [Claims(stale_seconds=10, clock=lambda: now) for _ in range(8)]
    for turn in range(20):
        written_by_another(output, token=f"{turn:012x}")
        assert all(isinstance(claims.take(output), Owner) for claims in all_claims)
        now += 11
        with ThreadPoolExecutor(8) as pool:
            (claim,) = [one for one in pool.map(lambda one: one.take(output), all_claims) if isinstance(one, Claim)]
        claim.release()
        assert list(output.parent.iterdir()) == []


def test_a_claim_that_changes_is_alive_whatever_the_clocks_say(output: Path) -> None:
    now = 0.0
    claims = Claims(stale_seconds=10, clock=lambda: now)
    for beats in range(5):
        written_by_another(output, beats=beats)
        owner = claims.take(output)
        assert isinstance(owner, Owner)
        assert str(owner) == "process 1 on far"
        now += 9
    now += 2
    taken(claims, output).release()


def test_a_claim_that_was_not_written_to_the_end_is_waited_for(output: Path) -> None:
    now = 0.0
    claims = Claims(stale_seconds=10, clock=lambda: now)
    output.with_name(".run.zarr.claim-0").write_bytes(b"")
    assert isinstance(claims.take(output), Owner)
    now += 11
    taken(claims, output).release()


def test_a_claim_being_made_is_not_taken_for_an_old_one_of_its_name(output: Path) -> None:
    now = 0.0
    claims = Claims(stale_seconds=10, clock=lambda: now)
    file = output.with_name(".run.zarr.claim-0")
    file.write_bytes(b"")
    assert isinstance(claims.take(output), Owner)
    file.unlink()
    now += 11
    output.with_name("keeps its inode").touch()
    file.write_bytes(b"")
    assert isinstance(claims.take(output), Owner)
    now += 11
    taken(claims, output).release()


def test_a_holder_is_seen_to_live(output: Path) -> None:
    claim = taken(Claims(beat_seconds=0.01), output)
    file = output.with_name(".run.zarr.claim-0")
    first = json.loads(file.read_bytes())
    eventually(lambda: json.loads(file.read_bytes())["beats"] > first["beats"])
    assert json.loads(file.read_bytes())["token"] == claim.token
    claim.release()
    assert list(output.parent.iterdir()) == []


def test_a_holder_that_was_taken_for_dead_knows(output: Path) -> None:
    now = 0.0
    claim, others = taken(Claims(beat_seconds=HOUR), output), Claims(stale_seconds=10, clock=lambda: now)
    assert isinstance(others.take(output), Owner)
    now += 11
    successor = taken(others, output)
    with pytest.raises(ClaimLostError, match=r"run\.zarr"):
        claim.require()
    claim.release()  # leaves the successor's alone
    assert successor.is_held
    successor.release()
    assert list(output.parent.iterdir()) == []


def test_what_the_dead_left_is_found_and_nothing_else(output: Path) -> None:
    claim = taken(Claims(), output)
    ours = [
        ".run.zarr.0123456789ab.partial",
        ".run.zarr.0123456789ab.beat.partial",
        ".run.zarr.0123456789ab.old.partial",
    ]
    for name in [*ours, ".run.zarr.b.0123456789ab.partial", ".run.zarr.partial", "run.zarr", claim.room.name]:
        output.with_name(name).mkdir()
    assert sorted(path.name for path in claim.left_over()) == sorted(ours)
    claim.release()
