"""Every block of Python and shell in README.md and docs/ runs as it stands on its page.

The blocks of one page run one after the other in one folder with one set of names, as a reader would run them. In the
folder lie a trace (`run.zarr`), two of them (`runs`), and pictures; `pipe`, `scene`, `mask` and `reference` are the
demo's model and pictures, where a page uses `pipe` and does not make it.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from os import environ, pathsep
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from support.commands import box_mask, noise_picture
from support.pages import LANGUAGES, OTHER_LANGUAGES, PAGES, ROOT, Block, blocks_of
from support.traces import make_trace, site_class

from attrace.cli import main

RUN_ELSEWHERE = {"commands.md"}
"""Made from the help texts, whose examples are run by tests/cli and tests/examples."""

PAGES_RUN = [page for page in PAGES if page.name not in RUN_ELSEWHERE]
BLOCKS = [block for page in PAGES_RUN for block in blocks_of(page)]
MOST_NOT_RUN = 16


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's trace, of few steps; without torch a made one of the same shapes."""
    path = tmp_path_factory.mktemp("trace") / "run.zarr"
    if find_spec("torch"):
        from attrace.demo.run import record_demo

        return record_demo(path, steps=10)
    names = ("generated", "input", "reference", "truth")
    pictures = {name: np.asarray(noise_picture(64, seed)) for seed, name in enumerate(names)}
    classes = (
        site_class(
            "reference/256x256h4d16",
            heads=4,
            query_grid=(16, 16),
            key_grid=(16, 16),
            features=16,
            layers=("down_blocks.0.attn2", "up_blocks.1.attn2"),
        ),
    )
    return make_trace(path, classes, steps=10, images=pictures | {"mask": np.asarray(box_mask(64))}).path


@pytest.fixture
def folder(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page's blocks run."""
    import matplotlib as mpl

    mpl.use("Agg")
    for name in ("run.zarr", "runs/0.zarr", "runs/1.zarr"):
        shutil.copytree(trace, tmp_path / name)
    for name in ("scene", "photo"):
        noise_picture(64).save(tmp_path / f"{name}.png")
    box_mask(64).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    with zarr.config.set({"codec_pipeline": deepcopy(zarr.config.get("codec_pipeline"))}):
        yield tmp_path


@pytest.mark.parametrize("page", PAGES_RUN, ids=lambda page: page.name)
@pytest.mark.usefixtures("folder")
def test_every_block_of_the_page_runs(page: Path) -> None:
    blocks = [block for block in blocks_of(page) if block.language in LANGUAGES]
    for package in sorted(set().union(*(block.needs() for block in blocks))):
        pytest.importorskip(package)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        if block.not_run is not None:
            continue
        try:
            _run(block, names)
        except BaseException as error:
            error.add_note(f"in the block at {block.place}")
            raise


def _run(block: Block, names: dict[str, Any]) -> None:
    if block.language == "bash":
        _run_shell(block.code)
        return
    if block.given is not None or "pipe" in block.names_used() - names.keys():
        from support.given import given_names

        names |= given_names(block.given or "demo")
    if "record(" in block.code and '"run.zarr"' in block.code:
        shutil.rmtree("run.zarr", ignore_errors=True)  # which the page records itself
    # lines are counted from the top of the page, so that a traceback points at it
    exec(compile("\n" * (block.line - 1) + block.code, block.page, "exec"), names)


def _run_shell(code: str) -> None:
    commands = code.replace("\\\n", " ").splitlines()
    if not all(command.startswith("attrace ") for command in commands):
        path = pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
        done = subprocess.run(["bash", "-ec", code], env=environ | {"PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command, comments=True)[1:])
        assert result.exit_code == 0, (command, result.output, result.exception)


def test_what_is_not_run_is_little_and_says_why() -> None:
    not_run = [block for block in BLOCKS if block.not_run is not None]
    assert [block.place for block in not_run if len(block.not_run or "") < len("needs a GPU")] == []
    assert len(not_run) <= MOST_NOT_RUN, [f"{block.place}: {block.not_run}" for block in not_run]


def test_no_block_hides_behind_its_language() -> None:
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES | OTHER_LANGUAGES] == []


def test_blocks_are_found_with_their_lines_and_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n```python\nmodel(pipe)\n```\n\n- in a list\n\n  <!-- given: flux -->\n  ```python\n  x = 1\n"
        "  y = x + z\n  ```\n\n<!-- another -->\n<!-- not run: needs a GPU -->\n```bash\nattrace record\n```\n"
        "\n<!-- not run: -->\n```js\nx\n```\n"
    )
    first, second, third, fourth = blocks_of(page)
    assert (first.line, first.language, first.code, first.given) == (4, "python", "model(pipe)\n", None)
    assert (second.line, second.code, second.given) == (11, "x = 1\ny = x + z\n", "flux")
    assert (third.line, third.not_run, fourth.not_run) == (18, "needs a GPU", "")
    assert second.names_used() == {"z"}
    assert (first.needs(), second.needs(), third.needs()) == ({"torch"}, {"torch"}, set())


def test_every_page_is_looked_at() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in PAGES}
    assert {"README.md", "docs/format.md", "docs/method.md"} <= pages
    assert len(BLOCKS) > 20
