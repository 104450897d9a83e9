"""Pushing and pulling traces: resumed, verified, and nothing half there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.hub import Hub, stand_in
from support.server import serving
from support.traces import make_trace

from attrace.analysis import open_trace, open_traces, pack, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.sharing.transfer import pull, push
from attrace.analysis.storage.object_files import ObjectFiles
from attrace.schemas import InputError, TraceExistsError, TraceFormatError, TraceNotFoundError

pytest.importorskip("obstore")
pytestmark = pytest.mark.usefixtures("memory")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trace(tmp_path_factory.mktemp("made") / "run.zarr").path


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _garble(address: str, name: str) -> None:
    files = ObjectFiles(address)
    files.write(name, b"?" * (files.size(name) or 0))


def test_there_and_back(trace: Path, tmp_path: Path) -> None:
    done = push(trace, "memory://a/run.zarr")
    assert (done.files, done.sent) == (len(_files(trace)),) * 2
    assert open_trace("memory://a/run.zarr").steps == 3
    pull("memory://a/run.zarr", tmp_path / "again.zarr")
    assert _files(tmp_path / "again.zarr") == _files(trace)
    assert [path.name for path in tmp_path.iterdir()] == ["again.zarr"]


def test_a_packed_trace(trace: Path, tmp_path: Path) -> None:
    packed = pack(trace, tmp_path / "run.zip")
    push(packed, "memory://run.zip")
    pull("memory://run.zip", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    for source, url in ((packed, "memory://run.zarr"), (trace, "memory://run.zip")):
        with pytest.raises(InputError, match=r"ends in \.zip"):
            push(source, url)


def test_to_a_folder(trace: Path, tmp_path: Path) -> None:
    push(trace, f"file://{tmp_path}/sent.zarr")
    assert verify(tmp_path / "sent.zarr").valid


def test_a_push_goes_on_and_mends_what_differs(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, sent = ObjectFiles.write, 0

    def breaking(files: ObjectFiles, name: str, content: bytes | Path) -> None:
        nonlocal sent
        if sent == 10:
            raise ConnectionError("gone")
        sent += 1
        write(files, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectFiles, "write", breaking)
        with pytest.raises(ConnectionError):
            push(trace, "memory://a/run.zarr")
    with pytest.raises(TraceNotFoundError):  # the root comes last
        open_trace("memory://a/run.zarr")
    assert push(trace, "memory://a/run.zarr").sent == len(_files(trace)) - 10
    _garble("memory://a/run.zarr", "time/c/0")
    assert push(trace, "memory://a/run.zarr").sent == 1
    assert push(trace, "memory://a/run.zarr").sent == 0


def test_what_arrives_changed_is_an_error(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = ObjectFiles.write
    monkeypatch.setattr(ObjectFiles, "write", lambda self, name, _: write(self, name, b"?"))
    with pytest.raises(OSError, match="not what was sent"):
        push(trace, "memory://a/run.zarr")


def test_a_pull_goes_on(trace: Path, tmp_path: Path) -> None:
    push(trace, "memory://a/run.zarr")
    shutil.copytree(trace, tmp_path / ".run.zarr.partial.zarr")
    (tmp_path / ".run.zarr.partial.zarr/zarr.json").unlink()
    (tmp_path / ".run.zarr.partial.zarr/time/c/0").write_bytes(b"")
    assert pull("memory://a/run.zarr", tmp_path / "run.zarr").sent == 2
    assert _files(tmp_path / "run.zarr") == _files(trace)
    with pytest.raises(TraceExistsError):
        pull("memory://a/run.zarr", tmp_path / "run.zarr")


def test_damage_is_found_and_not_kept(trace: Path, tmp_path: Path) -> None:
    push(trace, "memory://a/run.zarr")
    _garble("memory://a/run.zarr", "reference/64x16h2d8/query_vector/c/1/0/0/0/0")
    with pytest.raises(TraceFormatError, match="query_vector/c/1/0/0/0/0"):
        pull("memory://a/run.zarr", tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TraceNotFoundError):
        pull("memory://nothing/run.zarr", tmp_path / "run.zarr")


class TestFromAWebServer:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """What is served: a folder with gaps among its files, and a packed trace."""
        pytest.importorskip("obstore")
        folder = tmp_path / "served"
        made = make_trace(folder / "run.zarr", images={"generated": np.zeros((8, 8, 3), np.uint8)})
        pack(made.path, folder / "run.zip")
        return folder

    def test_a_packed_trace_and_a_folder(self, folder: Path, tmp_path: Path) -> None:
        with serving(folder) as served:
            pull(f"{served.address}/run.zip", tmp_path / "run.zip")
            done = pull(f"{served.address}/run.zarr", tmp_path / "run.zarr")
        assert (tmp_path / "run.zip").read_bytes() == (folder / "run.zip").read_bytes()
        assert _files(tmp_path / "run.zarr") == _files(folder / "run.zarr")
        assert done.files == done.sent == len(_files(folder / "run.zarr"))

    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_packed_trace_goes_on_where_it_was_cut_off(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
    ) -> None:
        monkeypatch.setattr("attrace.analysis.storage.object_files.BLOCK_BYTES", 1000)
        size = (folder / "run.zip").stat().st_size
        with serving(folder, ranges=ranges) as served:
            served.last = size - 4000
            with pytest.raises(OSError, match=r"run\.zip"):
                pull(f"{served.address}/run.zip", tmp_path / "run.zip")
            assert not (tmp_path / "run.zip").exists()
            (begun,) = tmp_path.glob(".run.zip.partial*")
            there = begun.stat().st_size
            assert size - 10_000 < there < size
            served.last, served.sent = None, 0
            pull(f"{served.address}/run.zip", tmp_path / "run.zip")
            assert (served.sent < size) == ranges
        assert (tmp_path / "run.zip").read_bytes() == (folder / "run.zip").read_bytes()

    def test_a_folder_goes_on_where_it_was_cut_off(self, folder: Path, tmp_path: Path) -> None:
        files = _files(folder / "run.zarr")
        with serving(folder) as served:
            served.last = len(files["zarr.json"]) + sum(map(len, files.values())) - 3000  # the root is read twice
            with pytest.raises(OSError, match="http"):
                pull(f"{served.address}/run.zarr", tmp_path / "run.zarr")
            served.last, served.requests[:] = None, []
            done = pull(f"{served.address}/run.zarr", tmp_path / "run.zarr")
            asked = [request for request in served.requests if request.startswith("GET")]
        assert 0 < done.sent < len(files) == done.files
        assert len(asked) < len(files)
        assert _files(tmp_path / "run.zarr") == files
        assert verify(tmp_path / "run.zarr").valid

    def test_what_is_damaged_there_is_not_kept(self, folder: Path, tmp_path: Path) -> None:
        chunk = folder / "run.zarr/reference/64x16h2d8/query_vector/c/1/0/0/0/0"
        chunk.write_bytes(bytes(chunk.stat().st_size))
        with serving(folder) as served, pytest.raises(TraceFormatError, match="query_vector/c/1/0/0/0/0"):
            pull(f"{served.address}/run.zarr", tmp_path / "run.zarr")
        assert [path.name for path in tmp_path.iterdir()] == ["served"]

    def test_nothing_there_or_no_list_of_it(self, folder: Path, tmp_path: Path) -> None:
        make_trace(folder / "open.zarr", status=None)
        with serving(folder) as served:
            for name in ("none.zip", "none.zarr"):
                with pytest.raises(TraceNotFoundError, match="none"):
                    pull(f"{served.address}/{name}", tmp_path / name)
            with pytest.raises(TraceFormatError, match="no consolidated metadata"):
                pull(f"{served.address}/open.zarr", tmp_path / "open.zarr")

    def test_more_files_than_the_limit(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTRACE_MAX_FILES", "20")
        with serving(folder) as served, pytest.raises(TraceFormatError, match="the limit is 20"):
            pull(f"{served.address}/run.zarr", tmp_path / "run.zarr")


class TestADatasetRepository:
    """On a stand-in for the hub, which cannot be reached from tests."""

    URL = "hf://datasets/me/traces/run.zarr"

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Hub:
        pytest.importorskip("huggingface_hub")
        return stand_in(monkeypatch)

    def test_there_and_back_in_one_commit(self, trace: Path, tmp_path: Path, hub: Hub) -> None:
        done = push(trace, self.URL)
        assert done.sent == len(_files(trace))
        (commit,) = hub.commits
        assert commit[-1] == "datasets/me/traces/run.zarr/zarr.json"
        assert hub.reads == 0  # the hub says what it holds
        np.testing.assert_array_equal(ulam(open_trace(self.URL)), ulam(open_trace(trace)))
        assert [one.path for one in open_traces("hf://datasets/me/traces/*.zarr")] == [self.URL]
        pull(self.URL, tmp_path / "run.zarr")
        assert _files(tmp_path / "run.zarr") == _files(trace)

    def test_what_is_there_is_not_sent_again(self, trace: Path, hub: Hub) -> None:
        push(trace, self.URL)
        assert push(trace, self.URL).sent == 0
        name = "datasets/me/traces/run.zarr/time/c/0"
        hub.files[name] = b"?" * len(hub.files[name])
        assert push(trace, self.URL).sent == 1
        assert hub.commits[1:] == [[name]]

    def test_a_packed_trace(self, trace: Path, tmp_path: Path, hub: Hub) -> None:
        packed = pack(trace, tmp_path / "run.zip")
        push(packed, "hf://datasets/me/traces/run.zip")
        assert hub.commits == [["datasets/me/traces/run.zip"]]
        assert verify("hf://datasets/me/traces/run.zip").valid
        pull("hf://datasets/me/traces/run.zip", tmp_path / "again.zip")
        assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()

    def test_nothing_there(self, tmp_path: Path, hub: Hub) -> None:
        assert hub.files == {}
        for read in (open_trace, lambda url: pull(url, tmp_path / "run.zarr")):
            with pytest.raises(TraceNotFoundError):
                read(self.URL)
