"""A chunk that should be there and is not is an error that names it, wherever the trace lies and whatever reads it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from support.rclone import rclone_serving
from support.server import serving
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack, precompute, sram, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.sharing.transfer import pull
from attrace.cli import main
from attrace.schemas import TraceFormatError

GROUP = "reference/64x16h2d8"
TEXT = "text/64x16h2d8"
PICTURE = np.zeros((8, 8, 3), np.uint8)

LOST = {
    "query of a step": f"{GROUP}/query_vector/c/1/1/0/0/0",
    "key that all steps use": f"{GROUP}/key_vector/c/0/1/0/0/0",
    "scores of a step": f"{TEXT}/scores/c/2/0/0/0/0",
    "called": f"{TEXT}/called/c/0/0",
    "key_step": f"{GROUP}/key_step/c/0/0",
    "time": "time/c/0",
    "picture": "images/generated/c/0/0/0",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = (site_class(), site_class(TEXT, encoding="scores", first_order=2))
    return make_trace(tmp_path_factory.mktemp("made") / "run.zarr", classes, images={"generated": PICTURE}).path


@pytest.fixture
def trace(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bucket/run.zarr"))


def read_all(where: str | Path) -> None:
    opened = open_trace(where)
    for context in opened.contexts:
        ulam(opened.sel(context=context)).compute()
    for image in opened.images.values():
        image.compute()


def named(lost: str) -> str:
    array, _, chunk = lost.partition("/c/")
    return rf"chunk c/{chunk} of array '{array}' cannot be read \(it is not there"


@contextmanager
def zipped(folder: Path) -> Iterator[str]:
    with zipfile.ZipFile(folder / "run.zip", "w") as archive:
        for path in (folder / "run.zarr").rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(folder / "run.zarr"))
    yield str(folder / "run.zip")


@contextmanager
def over_http(folder: Path) -> Iterator[str]:
    with serving(folder) as served:
        yield f"{served.address}/run.zarr"


def over(kind: Any) -> Callable[[Path], Any]:
    @contextmanager
    def served(folder: Path) -> Iterator[str]:
        with rclone_serving(kind, folder.parent) as address:
            yield f"{address}/bucket/run.zarr"

    return served


@contextmanager
def here(folder: Path) -> Iterator[str]:
    yield str(folder / "run.zarr")


STORES = {"folder": here, "zip": zipped, "http": over_http, "webdav": over("webdav"), "s3": over("s3")}


@pytest.mark.parametrize("store", STORES)
def test_in_every_store(trace: Path, store: str, tmp_path: Path) -> None:
    if store not in ("folder", "zip"):
        pytest.importorskip("obstore")
    lost = LOST["query of a step"]
    (trace / lost).unlink()
    with STORES[store](trace.parent) as where:
        with pytest.raises(TraceFormatError, match=named(lost)):
            read_all(where)
        assert [f"{one.array}/{one.chunk}" for one in verify(where).problems] == [lost]
        if store != "folder":
            with pytest.raises(TraceFormatError, match=f"{lost}: .*not there"):
                pull(where, tmp_path / f"pulled{Path(where).suffix}")
            assert not list(tmp_path.glob("*pulled*"))


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
def test_every_kind_of_array(trace: Path, tmp_path: Path, lost: str) -> None:
    (trace / lost).unlink()
    for read in (read_all, lambda path: pack(path, tmp_path / "run.zip")):
        with pytest.raises(TraceFormatError, match="it is not there"):
            read(trace)
    with pytest.raises(TraceFormatError, match=named(lost)):
        read_all(trace)
    assert f"{lost}: the chunk cannot be read: it is not there" in str(verify(trace).problems[0])
    assert not (tmp_path / "run.zip").exists()


def test_a_coordinate_is_missed_by_verify(trace: Path) -> None:
    (trace / GROUP / "head/c/0").unlink()
    assert [f"{one.array}/{one.chunk}" for one in verify(trace).problems] == [f"{GROUP}/head/c/0"]


def test_the_marker(trace: Path) -> None:
    (trace / "step_done/c/0").unlink()
    with pytest.raises(TraceFormatError, match="the manifest says that 3 steps are finished, the array 'step_done' 0"):
        open_trace(trace)
    assert "step_done" in [one.array for one in verify(trace).problems]


def test_the_cache_of_marginals(trace: Path) -> None:
    precompute(trace)
    lost = f"{GROUP}/derived/r2g/c/0/1/0/0"
    (trace / lost).unlink()
    with pytest.raises(TraceFormatError, match=named(lost)):
        ulam(open_trace(trace), direction="r2g").compute()
    assert lost in str(verify(trace).problems[0])


def test_a_site_that_was_not_called_has_nothing_and_is_no_loss(trace: Path, tmp_path: Path) -> None:
    for name, gap in (("key_step", -1), ("called", 0)):
        array = zarr.open_group(trace)[f"{GROUP}/{name}"]
        assert isinstance(array, zarr.Array)
        array[1, 1] = gap
    (trace / LOST["query of a step"]).unlink()
    read_all(trace)
    assert np.isnan(np.asarray(open_trace(trace).tree[f"{GROUP}/query_vector"])[1, 1]).all()
    assert verify(trace).valid
    assert verify(pack(trace, tmp_path / "run.zip")).valid


@pytest.mark.parametrize(
    "command",
    [
        ("maps", "-o", "maps.npz"),
        ("sram", "--at", "4,4", "-o", "sram.npz"),
        ("export", "-o", "run.npz"),
        ("pack", "run.zip"),
        ("report", "-o", "page.html"),
        ("score",),
    ],
    ids=lambda command: command[0],
)
def test_in_every_command(trace: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trace.parent)
    mask = np.zeros((32, 32), bool)
    mask[:16, :16] = True
    if command[0] == "score":
        from PIL import Image

        Image.fromarray(mask).save("mask.png")
        command = (*command, "--mask", "mask.png")
    lost = LOST["query of a step"]
    (trace / lost).unlink()
    result = CliRunner().invoke(main, [command[0], "run.zarr", *command[1:]])
    assert result.exit_code == 3, (result.output, result.exception)
    assert "chunk c/1/1/0/0/0" in result.stderr or f"{lost}" in result.stderr
    assert f"{GROUP}/query_vector" in result.stderr
    assert "Traceback" not in result.stderr


def test_aggregate_leaves_the_trace_out_and_names_it(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trace.parent)
    make_trace(Path("runs/whole.zarr"), seed=1)
    trace.rename("runs/lost.zarr")
    Path("runs/lost.zarr", LOST["query of a step"]).unlink()
    result = CliRunner().invoke(main, ["aggregate", "runs", "-o", "stats.csv", "--size", "8x8"])
    assert result.exit_code == 1, (result.output, result.exception)
    assert "lost.zarr" in result.stderr
    assert "chunk c/1/1/0/0/0" in result.stderr
    assert Path("stats.csv").exists()


def test_scores_of_format_1_which_may_be_lost_or_skipped_are_named(tmp_path: Path) -> None:
    """It has no `called`: the map is of the other steps, and says of which it is not."""
    with zipfile.ZipFile(Path(__file__).parents[2] / "data/rich-1.0.zip") as archive:
        archive.extractall(tmp_path / "run.zarr")
    (tmp_path / "run.zarr/text/12x3h1d4/scores/c/1/0/0/0/0").unlink()
    text = open_trace(tmp_path / "run.zarr").sel(context="text")
    with pytest.warns(RuntimeWarning, match=r"no scores in step 1, which are left out.*format 1\.0 does not tell"):
        ulam(text).compute()
    notes = [str(issue) for issue in verify(tmp_path / "run.zarr").issues]
    assert any("was not recorded in step 1: a trace of format 1.0 does not tell" in note for note in notes)


def test_a_patch(trace: Path) -> None:
    lost = LOST["key that all steps use"]
    (trace / lost).unlink()
    with pytest.raises(TraceFormatError, match=named(lost)):
        sram(open_trace(trace), at=(0, 0)).compute()
