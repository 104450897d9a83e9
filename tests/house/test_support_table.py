"""The support table of docs/models.md says what the marked tests hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.support_table import DOCUMENT, ROWS, read_counts, render

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_table_holds_the_marked_tests(request: pytest.FixtureRequest) -> None:
    config = request.config
    if config.getoption("keyword") or config.getoption("markexpr") or any("::" in one for one in config.args):
        pytest.skip("only some of the tests were collected")
    marked: dict[str, Counter[str]] = defaultdict(Counter)
    for item in request.session.items:
        for mark in item.iter_markers("supports"):
            marked[mark.args[0]][item.path.name] += 1
    assert marked.keys() <= ROWS.keys()
    collected = {item.path.name for item in request.session.items}
    told = read_counts(DOCUMENT.read_text())
    for row in ROWS:
        of_collected = {file: count for file, count in told[row].items() if file in collected}
        assert of_collected == marked[row], f"{row}: write the table anew with pytest tests --support-table"


def test_the_table_is_as_it_is_written() -> None:
    text = DOCUMENT.read_text()
    assert render(read_counts(text)) in text
    assert list(read_counts(text)) == list(ROWS)


def test_every_example_of_the_table_is_there() -> None:
    assert all((EXAMPLES / f"{row.example}.py").exists() for row in ROWS.values())
