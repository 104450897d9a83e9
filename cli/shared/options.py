"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from attrace.analysis import Trace

Command = TypeVar("Command", bound=Callable[..., Any])

# The words of attrace.schemas.words, written out: importing the schemas takes longer than showing a help text.
LEVELS = ("ulam", "tlam", "hlam", "llam")
DIRECTIONS = ("r2g", "g2r")
CONTEXTS = ("reference", "text", "image-prompt", "self")


class LocalPath(click.Path):
    """Path on this machine to write to; an address is refused, because it would make a folder named `s3:`."""

    def __init__(self, advice: str = "write it here, then copy it there with a tool of that store") -> None:
        super().__init__(path_type=Path)
        self._advice = advice

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        from attrace.schemas.address import is_address, local_path  # here: a help text shows without the schemas

        if is_address(value):
            advice = self._advice.format(value)
            self.fail(f"expected a path on this machine, found the address {value}: {advice}", param, ctx)
        return super().convert(local_path(value), param, ctx)


def examples(*lines: str) -> str:
    """Examples at the end of a help text, which a test runs; a line break becomes a line continuation of the shell."""
    shown = [line.replace("\n", " \\\n      ") for line in lines]
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in shown)])


def size(text: str) -> tuple[int, int]:
    """Rows and columns, such as `64x48`."""
    rows, columns = _numbers(text, 2, "x", "ROWSxCOLUMNS, such as 64x48")
    if min(rows, columns) < 1:
        raise click.BadParameter(f"expected at least one row and column, found {text!r}")
    return rows, columns


def pixel(text: str) -> tuple[int, int]:
    """Row and column, such as `120,96`."""
    row, column = _numbers(text, 2, ",", "ROW,COLUMN, such as 120,96")
    return row, column


def box(text: str) -> tuple[int, int, int, int]:
    """Top, left, bottom and right, such as `16,16,48,40`; the last two are not in the box."""
    top, left, bottom, right = _numbers(text, 4, ",", "TOP,LEFT,BOTTOM,RIGHT, such as 16,16,48,40")
    if top >= bottom or left >= right:
        raise click.BadParameter(f"expected top before bottom and left before right, found {text!r}")
    return top, left, bottom, right


def step_range(text: str) -> int | slice:
    """Steps by call number: `7`, or `0:9` with both ends included, each of which may be left out."""
    first, colon, last = text.partition(":")
    if not all(part.isdecimal() or (colon and not part) for part in ((first, last) if colon else (first,))):
        raise click.BadParameter(f"expected steps such as 7 or 0:9 (both ends included), found {text!r}")
    if not colon:
        return int(first)
    start, stop = (int(part) if part else None for part in (first, last))
    if start is not None and stop is not None and start > stop:
        raise click.BadParameter(f"expected the first step before the last, found {text!r}")
    return slice(start, stop)


def kept_steps(text: str) -> slice | tuple[int, ...]:
    """Calls to record: numbers such as `0,10,20`, or FIRST:LAST:EVERY, each of which may be left out."""
    parts = text.split(":")
    numbers = text.split(",") if len(parts) == 1 else [part for part in parts if part]
    if len(parts) > 3 or not all(number.isdecimal() for number in numbers):
        raise click.BadParameter(f"expected calls such as 0,10,20 or 0:40 or ::4 (both ends included), found {text!r}")
    if len(parts) == 1:
        return tuple(map(int, numbers))
    first, last, every = (int(part) if part else None for part in (*parts, "")[:3])
    if every == 0 or (last is not None and last < (first or 0)):
        raise click.BadParameter(f"expected the first call before the last, and one of at least 1, found {text!r}")
    return slice(first, None if last is None else last + 1, every)


def comma_list(text: str) -> tuple[str, ...]:
    """Comma-separated words, such as `images,prompts`."""
    words = tuple(part.strip() for part in text.split(","))
    if not all(words):
        raise click.BadParameter(f"expected words with commas between, found {text!r}")
    return words


def byte_size(text: str) -> int:
    """Bytes, such as `500MB`, `2GB` or `1GiB`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        raise click.BadParameter(f"expected a size such as 500MB, 2GB or 1GiB, found {text!r}")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))


def text_or_file(value: str | None) -> str | None:
    """Text as given, or the content of a file whose name follows `@`."""
    if value is None or not value.startswith("@"):
        return value
    return Path(value[1:]).read_text(encoding="utf-8")


def _numbers(text: str, count: int, separator: str, expected: str) -> list[int]:
    parts = text.lower().split(separator)
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"expected {expected}, found {text!r}")
    return [int(part) for part in parts]


trace_argument = click.argument("trace", metavar="TRACE")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
licence_option = click.option("--licence", metavar="TEXT", help="Terms of use, such as CC-BY-4.0.")
citation_option = click.option("--citation", metavar="TEXT", help="How to cite the trace; @FILE reads it from a file.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing output.")
size_option = click.option(
    "--size", type=size, metavar="ROWSxCOLUMNS", help="Rows and columns of the maps; by default the finest grid."
)
direction_option = click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    multiple=True,
    help="r2g: over the generated picture; g2r: over the reference. By default both, where they exist.",
)
density_option = click.option(
    "--density/--no-density",
    default=None,
    help="Relative to even attention (1), so that layers of all grids compare: the default; or plain weights.",
)
compat_option = click.option(
    "--compat",
    type=click.Choice(("i2am",)),
    help="Follow the published code of I2AM: its layers, summed over steps.",
)
resampler_option = click.option(
    "--resampler",
    type=click.Choice(("last", "rollout")),
    help="g2r of an IP-Adapter Plus: map its tokens to patches, by the last layer of the resampler or all of them.",
)
weights_option = click.option(
    "--weights",
    metavar="effect|FILE",
    help="Weigh layers and heads by measured effects in the trace, a file of attrace ablate, or a .json of numbers.",
)
level_option = click.option(
    "--level", type=click.Choice(LEVELS), multiple=True, default=LEVELS, help="May be repeated; all by default."
)
layers_option = click.option(
    "--layers",
    multiple=True,
    metavar="LAYER",
    help="Layers by module path, glob, or the label that a figure shows; may be repeated.",
)


contribution_option = click.option(
    "--contribution",
    is_flag=True,
    help="What keys contribute to what a layer gives, not how attention is spread: of a trace recorded with --values.",
)


def refuse_with_compat(density: bool | None, resampler: str | None, weights: str | None, *, contribution: bool) -> None:
    """Refuse what the published code of I2AM does not have."""
    if density or resampler is not None or weights is not None or contribution:
        raise click.UsageError(
            "--compat i2am takes none of --density, --resampler, --weights and --contribution: the published code has "
            "none of them"
        )


def selection_options(command: Command) -> Command:
    """Options that select a part of a trace: read them with `select`."""
    for option in reversed(
        [
            layers_option,
            click.option(
                "--heads", multiple=True, type=click.IntRange(min=0), help="Heads by number; may be repeated."
            ),
            click.option("--steps", type=step_range, metavar="FIRST:LAST", help="Steps, both ends included."),
            click.option("--context", type=click.Choice(CONTEXTS), help="What the keys are."),
            click.option("--branch", metavar="NAME", help="Branch of classifier-free guidance."),
            click.option(
                "--picture", type=click.IntRange(min=0), help="One of several pictures in the keys, counted from 0."
            ),
        ]
    ):
        command = option(command)
    return command


def select(path: str, **selection: Any) -> Trace:
    """Open a trace and select the part that the selection options name."""
    from attrace.analysis import open_trace

    return select_of(open_trace(path), **selection)


def select_of(
    trace: Trace,
    *,
    layers: tuple[str, ...],
    heads: tuple[int, ...],
    steps: int | slice | None,
    context: str | None,
    branch: str | None,
    picture: int | None,
) -> Trace:
    """The part of a trace that the selection options name."""
    trace = trace.sel(context=context, branch=branch, picture=picture)
    return trace.sel(layer=layers or None, head=heads or None, time=steps)
