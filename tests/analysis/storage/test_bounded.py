"""Kilobytes that say they are gigabytes, and objects at addresses above the limits: refused before they are read."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest
import zarr
import zarr.codecs
from support.server import serving
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.storage.checked_store import CheckedStore
from attrace.analysis.storage.limits import Limits
from attrace.schemas import TraceFormatError

GROUP = "reference/64x16h2d8"
BOMB = np.zeros(2**26, np.uint8)
"""64 MiB; a chunk of `query` holds 4 KiB."""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Without consolidated metadata, so that the metadata of each array is what is read."""
    return make_trace(tmp_path / "run.zarr", status=None).path


def _encode_anew(trace: Path, **codecs: Any) -> None:
    """Write `query` with other codecs."""
    group = zarr.open_group(trace)
    old = group[f"{GROUP}/query_vector"]
    assert isinstance(old, zarr.Array)
    values = np.asarray(old[...])
    shutil.rmtree(trace / GROUP / "query_vector")
    chosen: dict[str, Any] = {"chunks": (1, 1, 2, 64, 8)} | codecs
    dims = ("time", "layer", "head", "query", "feature")
    group.create_array(f"{GROUP}/query_vector", data=values, fill_value=np.nan, dimension_names=dims, **chosen)


def _plant(trace: Path, content: bytes) -> None:
    checksum = google_crc32c.value(content).to_bytes(4, "little")
    (trace / GROUP / "query_vector/c/0/0/0/0/0").write_bytes(content + checksum)


def _zstd_without_length(content: np.ndarray[Any, Any]) -> bytes:
    """A frame of run-length blocks of 128 KiB, whose header says nothing of the length of all: RFC 8878."""
    count = content.nbytes // 2**17
    blocks = [((2**17 << 3) | 2 | (number == count - 1)).to_bytes(3, "little") + b"\0" for number in range(count)]
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(blocks)


@pytest.mark.parametrize(
    ("codec", "encode", "match"),
    [
        (zarr.codecs.ZstdCodec(), numcodecs.Zstd().encode, "would decode to 67108864 bytes"),
        (zarr.codecs.ZstdCodec(), _zstd_without_length, "says how long its content is"),
        (zarr.codecs.GzipCodec(), lambda content: gzip.compress(content.tobytes(), 1), "would decode to"),
        (zarr.codecs.BloscCodec(), numcodecs.Blosc().encode, "would decode to 67108864 bytes"),
    ],
)
def test_a_chunk_that_decodes_to_more_than_it_can_hold(
    trace: Path, codec: Any, encode: Callable[[np.ndarray[Any, Any]], bytes], match: str
) -> None:
    expected = ulam(open_trace(trace)).compute()
    _encode_anew(trace, compressors=[codec, zarr.codecs.Crc32cCodec()])
    np.testing.assert_array_equal(ulam(open_trace(trace)).compute(), expected)
    _plant(trace, bytes(encode(BOMB)))
    with pytest.raises(TraceFormatError, match=rf"chunk c/0/0/0/0/0 of array '{GROUP}/query_vector' .*{match}"):
        ulam(open_trace(trace)).compute()
    (found,) = [finding for finding in verify(trace).problems if finding.chunk]
    assert match in found.message


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: content[:7],
        lambda content: content[:0],
        lambda content: content[:12] + (2**31 - 1).to_bytes(4, "little") + content[16:],
    ],
)
def test_blosc_reads_no_further_than_the_chunk(trace: Path, damage: Callable[[bytes], bytes]) -> None:
    """What blosc decodes reaches as far as the header says: beyond the end lies the memory of others."""
    _encode_anew(trace, compressors=[zarr.codecs.BloscCodec(), zarr.codecs.Crc32cCodec()])
    content = (trace / GROUP / "query_vector/c/0/0/0/0/0").read_bytes()[:-4]
    _plant(trace, content)
    ulam(open_trace(trace)).compute()
    _plant(trace, damage(content))
    with pytest.raises(TraceFormatError, match=r"chunk c/0/0/0/0/0 .*bytes of blosc, as its header says"):
        ulam(open_trace(trace)).compute()
    (found,) = [finding for finding in verify(trace).problems if finding.chunk]
    assert "as its header says" in found.message


def test_shards_are_read_and_bounded(trace: Path) -> None:
    expected = ulam(open_trace(trace)).compute()
    inner = {"chunks": (1, 1, 1, 64, 8), "shards": (1, 1, 2, 64, 8)}
    _encode_anew(trace, **inner, compressors=[zarr.codecs.ZstdCodec()])
    np.testing.assert_array_equal(ulam(open_trace(trace)).compute(), expected)
    file = trace / GROUP / "query_vector/c/0/0/0/0/0"
    bomb, index = bytes(numcodecs.Zstd().encode(BOMB)), np.array([[0, 0], [0, 0]], np.uint64)
    index[:, 1] = len(bomb)
    file.write_bytes(bomb + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
    with pytest.raises(TraceFormatError, match="would decode to 67108864 bytes"):
        ulam(open_trace(trace)).compute()


def test_a_codec_inside_shards_that_is_no_core_codec(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _encode_anew(trace, chunks=(1, 1, 1, 64, 8), shards=(1, 1, 2, 64, 8), compressors=[zarr.codecs.ZstdCodec()])
    core = "attrace.analysis.storage.chunk_codecs.CORE_CODECS"
    monkeypatch.setattr(core, {zarr.codecs.ShardingCodec, zarr.codecs.BytesCodec, zarr.codecs.Crc32cCodec})
    with pytest.raises(TraceFormatError, match="expected core codecs, found ZstdCodec"):
        ulam(open_trace(trace)).compute()


def test_more_finished_steps_and_layers_than_anybody_stores(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTRACE_MAX_FILES", "5")  # 3 steps of 2 layers
    for read in (open_trace, verify):
        with pytest.raises(TraceFormatError, match=r"3 steps of 2 layers are finished.*ATTRACE_MAX_FILES"):
            read(trace)


class TestAtAnAddress:
    @pytest.fixture
    def closed(self, tmp_path: Path) -> Path:
        return make_trace(tmp_path / "closed.zarr", (site_class(),)).path

    @pytest.fixture(params=["http", "memory"])
    def address(self, request: pytest.FixtureRequest, closed: Path) -> Iterator[str]:
        """Of the folder that the trace lies in."""
        if request.param == "http":
            pytest.importorskip("obstore")
            with serving(closed.parent) as served:
                yield served.address
            return
        yield request.getfixturevalue("memory").put(closed.parent, "memory://bounded")

    def test_objects_above_the_limits(self, closed: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"{address}/closed.zarr"
        np.testing.assert_array_equal(ulam(open_trace(url)), ulam(open_trace(closed)))
        trace = open_trace(url)
        store = trace.stored.root.store
        assert isinstance(store, CheckedStore)
        store.limits = Limits(chunk_bytes=3000)  # of what is stored: what it decodes to is looked at when it is opened
        with pytest.raises(TraceFormatError, match=r"the limit is 3000.*ATTRACE_MAX_CHUNK_BYTES"):
            ulam(trace).compute()
        monkeypatch.setenv("ATTRACE_MAX_METADATA_BYTES", "1000")
        with pytest.raises(TraceFormatError, match=r"the limit is 1000.*ATTRACE_MAX_METADATA_BYTES"):
            open_trace(url)

    def test_a_packed_trace_above_the_limits(
        self, closed: Path, address: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packed = pack(closed, closed.with_name("run.zip"))
        with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb", bytes(2**24))
        url = f"{address}/run.zip"
        if address.startswith("memory"):
            request.getfixturevalue("memory").put(packed, url)
        with pytest.raises(TraceFormatError, match="100 times its size"):
            open_trace(url)
        monkeypatch.setenv("ATTRACE_MAX_FILES", "3")
        with pytest.raises(TraceFormatError, match="the limit is 3"):
            open_trace(url)
