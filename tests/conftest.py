"""What holds for all tests: one thread for tiny models, and what needs torch is left out where it is not installed."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support import support_table

# tiny models lose more time in waking threads than they win; read when torch is first imported, here or in a child
os.environ.setdefault("OMP_NUM_THREADS", "1")

# how busy the machine is says nothing of what is tested, and a test gives the same answer twice; tests/fuzz searches
settings.register_profile("attrace", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("attrace")

NEED_TORCH = [
    "recorder/*",
    "examples/*",
    *(f"cli/test_{command}.py" for command in ("ablate", "demo", "faithfulness", "record")),
]

collect_ignore_glob = [] if find_spec("torch") else NEED_TORCH


@pytest.fixture
def memory() -> Iterator[Any]:
    """`memory://`, emptied afterwards."""
    pytest.importorskip("obstore")
    from support import memory

    yield memory
    memory.clear()


passed: dict[str, Counter[str]] = defaultdict(Counter)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what writes the support table."""
    parser.addoption("--support-table", action="store_true", help="write the table of docs/models.md from the results")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count the tests that passed for each row of the support table."""
    report = yield
    if call.when == "call" and report.passed:
        for mark in item.iter_markers("supports"):
            passed[mark.args[0]][item.path.name] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the support table, where it is asked for."""
    if session.config.getoption("--support-table"):
        support_table.write(passed)
