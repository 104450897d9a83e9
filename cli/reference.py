"""The command reference of the documentation, made from the commands themselves.

`python -m attrace.cli.reference > docs/commands.md` writes it; a test holds the two equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from attrace.cli.app import main

HEAD = """\
# Commands

Made from the help texts by `python -m attrace.cli.reference`; `attrace COMMAND -h` shows the same.
"""


def command_reference() -> str:
    """Every command with its arguments, options and examples, as Markdown."""
    parts = [HEAD, _text(main), *_examples(main)]
    for name, command in main.commands.items():
        parts += [f"## attrace {name}\n", f"`attrace {name} {_usage(command)}`\n", _text(command)]
        parts += [*_options(command), *_examples(command)]
    return "\n".join(parts)


def _usage(command: click.Command) -> str:
    arguments = [str(one.metavar) for one in command.params if isinstance(one, click.Argument)]
    return " ".join(["[OPTIONS]", *arguments])


def _text(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "") + "\n"


def _options(command: click.Command) -> Iterator[str]:
    options = [one for one in command.params if isinstance(one, click.Option)]
    if options:
        yield "\n".join(f"- {_names(option)}{_remarks(option)}" for option in options) + "\n"


def _names(option: click.Option) -> str:
    value = "" if option.is_flag else f" {_value(option)}"
    return f"`{', '.join(option.opts)}{value}`"


def _value(option: click.Option) -> str:
    if option.metavar is not None:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return {"integer": "INTEGER", "integer range": "INTEGER", "path": "PATH"}.get(option.type.name, "TEXT")


def _remarks(option: click.Option) -> str:
    remarks = [": " + option.help] if option.help else []
    if option.required:
        remarks.append(" (required)")
    if option.show_default and not option.is_flag:
        remarks.append(f" (default: {option.default})")
    return "".join(remarks)


def _examples(command: click.Command) -> Iterator[str]:
    if command.epilog:
        lines = inspect.cleandoc("\n".join(command.epilog.splitlines()[2:]))
        yield f"```bash\n{lines}\n```\n"


if __name__ == "__main__":
    click.echo(command_reference(), nl=False)
