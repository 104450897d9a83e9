"""Printing: data on stdout, everything else on stderr; text steers no terminal and no spreadsheet."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

_STEERING: Final = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
"""Terminal escapes, line breaks, marks that turn the direction of text, and halves of characters."""


def escaped(text: str) -> str:
    r"""A text with what could steer a terminal written out.

    Examples
    --------
    >>> print(escaped("a\x1b[2Jb\nc"))
    a\u001b[2Jb\nc
    """
    return _STEERING.sub(lambda found: json.dumps(found.group())[1:-1], text)


def escaped_lines(text: str) -> str:
    """Lines of ours that may hold text of a trace, each escaped."""
    return "\n".join(map(escaped, text.split("\n")))


def say(message: str) -> None:
    """Print a message that is not data."""
    click.echo(escaped_lines(message), err=True)


def show(line: object = "") -> None:
    """Print a line of data."""
    click.echo(escaped(str(line)))


def print_json(value: Any) -> None:
    """Print one JSON document; numbers that JSON lacks (NaN, infinities) become null."""
    click.echo(escaped_lines(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)))


def print_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table as CSV."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([csv_cell(value) for value in row] for row in rows)


def csv_cell(value: Any) -> Any:
    """A value for a table that a spreadsheet may open: no text begins as a formula does."""
    if not isinstance(value, str):
        return value
    text = escaped(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print rows in columns, the first row being the header; columns in `right` are aligned to the right."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def bytes_text(size: float) -> str:
    """A number of bytes in decimal units.

    Examples
    --------
    >>> bytes_text(999), bytes_text(1_234_567)
    ('999 B', '1.23 MB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    return f"{size:.3g} {unit}"


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse to overwrite existing output, before any work is done.

    Raises
    ------
    FileExistsError
        If something exists and is not to be overwritten.
    NotADirectoryError, FileNotFoundError
        If the parent is not a folder.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another path, or pass --overwrite")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")


@contextmanager
def chunk_progress(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """Progress bar on stderr, as a function of the done and total counts; None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield progress


@contextmanager
def dask_progress() -> Iterator[None]:
    """Progress bar of dask on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from dask.diagnostics.progress import ProgressBar

    with ProgressBar(out=sys.stderr):
        yield


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def print_paths(paths: Sequence[Path]) -> None:
    """Print one path a line."""
    for path in paths:
        show(path)
