"""Packed traces at addresses: only what is needed is read, by range requests, and damage is noticed."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.documents import seal_again
from support.published import write_published
from support.server import Served, serving
from support.traces import make_trace, site_class

from attrace.analysis import Trace, open_trace, pack, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.storage.object_files import ObjectFiles
from attrace.analysis.storage.zip_files import TAIL_BYTES
from attrace.schemas import TraceFormatError, TraceNotFoundError, TraceVersionError

pytest.importorskip("obstore")
pytestmark = pytest.mark.usefixtures("memory")

GROUP = "reference/256x16h4d32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed trace of a few MB, and the folder that it was packed from."""
    folder = tmp_path_factory.mktemp("served")
    layers = tuple(f"up.{number}.attn2" for number in range(4))
    one = site_class(GROUP, heads=4, query_grid=(16, 16), features=32, layers=layers)
    pack(make_trace(folder / "run.zarr", (one,), steps=8).path, folder / "run.zip")
    return folder


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as served:
        yield served


def _scores(trace: Trace) -> xr.DataArray:
    scores = trace.scores[GROUP]["scores"]
    assert isinstance(scores, xr.DataArray)
    return scores


def test_opening_reads_the_end_of_the_file_only(folder: Path, served: Served) -> None:
    size = (folder / "run.zip").stat().st_size
    trace = open_trace(f"{served.address}/run.zip")
    assert (trace.steps, len(trace.layers)) == (8, 4)
    assert size > 3_000_000
    assert served.sent <= TAIL_BYTES
    assert len(served.requests) == 2  # its length, and its end


def test_a_row_reads_its_chunks_only(folder: Path, served: Served) -> None:
    local = _scores(open_trace(folder / "run.zarr"))
    scores = _scores(open_trace(f"{served.address}/run.zip"))
    before, requests = served.sent, len(served.requests)
    np.testing.assert_array_equal(scores[3, 2, :, 17], local[3, 2, :, 17])
    chunks = [
        folder / "run.zarr" / GROUP / name / f"c/{step}/2/0/0/0"
        for name, step in (("query_vector", 3), ("key_vector", 0))
    ]
    stored = sum(path.stat().st_size for path in chunks)
    assert stored < served.sent - before < stored + 3 * 200  # key_step is small, and may be in the end of the file
    assert len(served.requests) - requests <= 3


def test_every_number_is_that_of_the_folder(folder: Path, served: Served) -> None:
    trace = open_trace(f"{served.address}/run.zip")
    np.testing.assert_array_equal(ulam(trace), ulam(open_trace(folder / "run.zarr")))
    assert verify(f"{served.address}/run.zip").issues == ()


def test_it_can_be_pickled(served: Served) -> None:
    trace = open_trace(f"{served.address}/run.zip")
    again = pickle.loads(pickle.dumps(trace))
    np.testing.assert_array_equal(_scores(again)[0, 0, 0], _scores(trace)[0, 0, 0])


def test_an_unpacked_trace_is_served_too(folder: Path) -> None:
    with serving(folder, ranges=False) as served:
        np.testing.assert_array_equal(
            ulam(open_trace(f"{served.address}/run.zarr")), ulam(open_trace(folder / "run.zarr"))
        )


def test_from_a_server_without_ranges_a_small_file_is_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder, ranges=False) as served:
        np.testing.assert_array_equal(
            ulam(open_trace(f"{served.address}/run.zip")), ulam(open_trace(folder / "run.zarr"))
        )
        assert len(served.requests) == 3  # its length, the range that was asked for, and all of it
        monkeypatch.setattr("attrace.analysis.storage.zip_files.MAX_WHOLE_BYTES", 1000)
        with pytest.raises(OSError, match="does not answer range requests"):
            open_trace(f"{served.address}/run.zip")


@pytest.mark.parametrize("kind", ["http", "memory"])
def test_nothing_there(served: Served, kind: str) -> None:
    address = f"{served.address}/none.zip" if kind == "http" else "memory://none.zip"
    with pytest.raises(TraceNotFoundError, match=r"none\.zip"):
        open_trace(address)


def _in_memory(content: bytes) -> str:
    ObjectFiles("memory://run.zip").write("", content)
    return "memory://run.zip"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    write_published(tmp_path / "run.zip")
    return tmp_path / "run.zip"


def test_a_store_in_memory(packed: Path) -> None:
    trace = open_trace(_in_memory(packed.read_bytes()))
    np.testing.assert_array_equal(trace.images["generated"], open_trace(packed).images["generated"])
    assert verify("memory://run.zip").issues == verify(packed).issues


def test_deflated_entries_are_read(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert verify(_in_memory((tmp_path / "z.zip").read_bytes())).valid


@pytest.mark.parametrize("content", [b"", b"?", b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_zip_file(content: bytes) -> None:
    with pytest.raises(TraceFormatError, match="is not a packed trace"):
        open_trace(_in_memory(content))


@pytest.mark.parametrize("name", ["zarr.json", "images/generated/c/0/0/0"])
def test_bytes_that_changed(packed: Path, name: str) -> None:
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        entry = archive.getinfo(name)
    content[entry.header_offset + 30 + len(name) + 20] ^= 1
    with pytest.raises(TraceFormatError, match="not those that were packed"):
        np.asarray(open_trace(_in_memory(bytes(content))).images["generated"])


def test_a_newer_major_version_is_refused_and_a_minor_one_read(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for version in ("2.7", "3.0"):
        changed, folder = tmp_path / f"{version}.zip", tmp_path / f"{version}.zarr"
        for name, content in entries.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.replace(b'"version": "2.0"', f'"version": "{version}"'.encode()))
        seal_again(folder)
        with zipfile.ZipFile(changed, "w") as archive:
            for name in entries:
                archive.write(folder / name, name)
        with serving(tmp_path) as served:
            at_server = [f"{served.address}/{version}.{kind}" for kind in ("zip", "zarr")]
            here: list[str | Path] = [changed, folder, _in_memory(changed.read_bytes())]
            for address in [*here, *at_server]:
                if version == "2.7":
                    assert open_trace(address).manifest.version == "2.7"
                    assert verify(address).valid
                    continue
                with pytest.raises(TraceVersionError, match=r"version 3\.0 .* reads up to 2\.0: upgrade attrace"):
                    open_trace(address)
