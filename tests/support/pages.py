"""The pages of the documentation, and the blocks of code on them.

A block that cannot run has a comment above it that says why: `<!-- not run: needs a GPU -->`. One that needs another
model than the demo's names it: `<!-- given: controlnet -->`.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

LANGUAGES: Final = frozenset({"python", "bash"})
"""What is run."""

OTHER_LANGUAGES: Final = frozenset({"", "json", "js", "text", "bibtex", "html"})
"""What is not; the js of the format page is run by tests/interop."""

_FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMENT: Final = re.compile(r"^ *<!-- (?P<key>not run|given): *(?P<value>.*?) *-->$")
_RECORDS: Final = re.compile(r"^attrace (demo|record)\b|\brecord\(", re.MULTILINE)

OPTIONAL: Final = frozenset({"tensorstore", "torch", "zarrs"})
"""What a block may import that a reader of traces does without."""

_RECORDING: Final = ("attrace.demo", "attrace.recorder")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    """Of its first line of code on the page, from 1."""
    language: str
    code: str
    not_run: str | None = None
    """Why it cannot run, if it cannot; may be empty on a page that is wrong."""
    given: str | None = None
    """The model that the page names; the demo's where a block uses `pipe` and names none."""

    @property
    def place(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"

    def names_used(self) -> set[str]:
        """Names of Python that the block takes from blocks before it, or from what is given."""
        if self.language != "python":
            return set()
        names = [node for node in ast.walk(ast.parse(self.code)) if isinstance(node, ast.Name)]
        bound = {name.id for name in names if isinstance(name.ctx, ast.Store)}
        return {name.id for name in names} - bound

    def needs(self) -> set[str]:
        """Packages that it needs and that a reader of traces does without."""
        if self.not_run is not None:
            return set()
        records = self.given is not None or "pipe" in self.names_used() or _RECORDS.search(self.code) is not None
        modules = self._modules() | ({"torch"} if records else set())
        tables = {"pyarrow"} if self.language == "bash" and ".parquet" in self.code else set()
        recorder = {"torch"} if any(module.startswith(_RECORDING) for module in modules) else set()
        return recorder | tables | (modules & OPTIONAL)

    def _modules(self) -> set[str]:
        if self.language != "python":
            return set()
        nodes = list(ast.walk(ast.parse(self.code)))
        imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        return imported | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in its order, of whatever language."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for fence in _FENCE.finditer(text):
        above = text[: fence.start()].splitlines()
        line = len(above) + 2
        comments = {}
        while above and above[-1].lstrip().startswith("<!--"):
            if found := _COMMENT.match(above.pop()):
                comments[found["key"]] = found["value"]
        code = textwrap.dedent(fence["code"])
        blocks.append(Block(page, line, fence["language"], code, comments.get("not run"), comments.get("given")))
    return blocks
