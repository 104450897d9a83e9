"""A trace from a stranger costs little and ends in a clear error, whatever was made of it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from support.hostile import NESTED, PEAK, with_more
from support.server import serving
from support.traces import make_trace, site_class

from attrace.analysis import llam, open_trace, pack, ulam, unpack
from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.analysis.maps.precompute import precompute
from attrace.analysis.storage.files import LocalFiles
from attrace.cli import main
from attrace.schemas import InputError, TraceFormatError

GROUP = "reference/64x16h2d8"
PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Without consolidated metadata, so that the metadata of each array is what is read."""
    return make_trace(tmp_path / "run.zarr", images={"generated": PICTURE}, status=None).path


def edit(path: Path, **changes: Any) -> None:
    document = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps(document | changes))


def read_all(path: Path) -> None:
    opened = open_trace(path)
    ulam(opened).compute()
    for image in opened.images.values():
        image.compute()


@pytest.mark.parametrize(
    ("array", "change", "match"),
    [
        (
            "query_vector",
            {"dimension_names": None},
            r"'reference/64x16h2d8/query_vector': expected dims \(time, layer, head",
        ),
        ("query_vector", {"dimension_names": ["layer", "time", "head", "query", "feature"]}, "expected dims"),
        ("query_vector", {"shape": [3, 2, 2, 64, 9]}, r"expected shape \(3, 2, 2, 64, 8\), found \(3, 2, 2, 64, 9\)"),
        ("query_vector", {"shape": [2, 2, 2, 64, 8]}, r"expected shape \(3, 2, 2, 64, 8\), found \(2, 2, 2, 64, 8\)"),
        ("query_vector", {"shape": [-3, 2, 2, 64, 8]}, "metadata of array"),
        ("query_vector", {"shape": [3.5, 2, 2, 64, 8]}, "query"),
        ("query_vector", {"shape": [2**40, 2, 2, 64, 8]}, "ATTRACE_MAX_STEPS"),
        ("query_vector", {"data_type": "float64", "fill_value": "NaN"}, "expected data type float32, found float64"),
        ("query_vector", {"data_type": "object"}, "metadata of array"),
        ("query_vector", {"codecs": [{"name": "pickle", "configuration": {}}]}, "metadata of array"),
        ("query_vector", {"codecs": []}, "query"),
        ("query_vector", {"zarr_format": 9}, "query"),
        ("query_vector", {"node_type": "group"}, "query"),
        (
            "query_vector",
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 2**20, 2**20, 8]}}},
            "ATTRACE_MAX_CHUNK_BYTES",
        ),
        ("key_vector", {"shape": [3, 1, 2, 16, 8]}, "expected shape"),
        ("key_step", {"data_type": "float32", "fill_value": 0.0}, "expected data type int32"),
    ],
)
def test_metadata_against_the_manifest(trace: Path, array: str, change: dict[str, Any], match: str) -> None:
    edit(trace / GROUP / array, **change)
    with pytest.raises(TraceFormatError, match=match):
        read_all(trace)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"node_type": 3}'])
@pytest.mark.parametrize("place", [".", GROUP, f"{GROUP}/query_vector", "step_done", "images/generated"])
def test_metadata_that_is_no_metadata(trace: Path, content: bytes, place: str) -> None:
    (trace / place / "zarr.json").write_bytes(content)
    if place == GROUP:  # zarr asks for the array itself
        read_all(trace)
        return
    with pytest.raises(TraceFormatError, match=r"run\.zarr"):
        read_all(trace)


def test_metadata_that_lies_too_deep_beside_its_copy(tmp_path: Path) -> None:
    """Every reader goes by the copy in the root's; verify compares the two."""
    path = make_trace(tmp_path / "run.zarr").path
    (path / GROUP / "head" / "zarr.json").write_text("[" * 5000)
    assert any("too deep" in str(issue) for issue in verify(path).problems)


def test_metadata_of_members_that_is_none(trace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Several at once: zarr leaves the errors of all but one to asyncio, which would show their tracebacks."""
    for name in ("reference", "images", "more", "others"):
        (trace / name).mkdir(exist_ok=True)
        (trace / name / "zarr.json").write_text('{"zarr_format": 3}')
    for use in (lambda: pack(trace, tmp_path / "run.zip"), lambda: repair(trace)):
        with pytest.raises(TraceFormatError, match=r"metadata of .* cannot be read"):
            use()
    result = CliRunner().invoke(main, ["pack", str(trace), str(tmp_path / "run.zip")])
    assert result.exit_code == 3
    caplog.clear()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize(
    ("name", "shape"),
    [(f"{GROUP}/query_vector", [2**50, 2, 2, 64, 8]), ("images/generated", [2**50, 8, 3]), ("more", [2**50])],
)
def test_what_is_packed_is_looked_at_first(trace: Path, tmp_path: Path, name: str, shape: list[int]) -> None:
    zarr.open_group(trace).create_array("more", data=np.zeros(3))
    edit(trace / name, shape=shape)
    with pytest.raises(TraceFormatError, match=f"'{name}'"):
        pack(trace, tmp_path / "run.zip")
    assert not list(tmp_path.glob("*.zip*"))


def test_a_packed_trace_that_is_damaged_is_not_packed_again(trace: Path, tmp_path: Path) -> None:
    packed = pack(trace, tmp_path / "run.zip")
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        content[archive.getinfo(f"{GROUP}/query_vector/c/1/0/0/0/0").header_offset] ^= 1
    packed.write_bytes(content)
    with pytest.raises(TraceFormatError, match="cannot be packed, it is damaged"):
        pack(packed, tmp_path / "again.zip")
    assert not (tmp_path / "again.zip").exists()


@pytest.mark.parametrize(("place", "step"), [((0, 0), -2), ((1, 1), 2), ((2, 0), 2**31 - 1)])
def test_key_step_that_leads_elsewhere(trace: Path, place: tuple[int, int], step: int) -> None:
    key_step = zarr.open_group(trace)[f"{GROUP}/key_step"]
    assert isinstance(key_step, zarr.Array)
    key_step[place] = step
    with pytest.raises(TraceFormatError, match="key_step': expected steps from -1 to the step itself"):
        read_all(trace)


def test_picture_that_is_none(trace: Path) -> None:
    edit(trace / "images/generated", shape=[2**20, 2**20, 3])
    with pytest.raises(TraceFormatError, match=r"'images/generated'.*ATTRACE_MAX_CHUNK_BYTES"):
        read_all(trace)


def test_absurd_number_of_steps_is_not_read(trace: Path) -> None:
    edit(trace / "step_done", shape=[2**40])
    with pytest.raises(TraceFormatError, match="1099511627776 steps, the limit is 100000"):
        open_trace(trace)


def test_limits_can_be_raised_and_lowered(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTRACE_MAX_STEPS", "2")
    with pytest.raises(TraceFormatError, match="3 steps, the limit is 2"):
        open_trace(trace)
    monkeypatch.setenv("ATTRACE_MAX_STEPS", "3")
    read_all(trace)
    monkeypatch.setenv("ATTRACE_MAX_SITES", "1")
    with pytest.raises(TraceFormatError, match="2 layers, the limit is 1"):
        open_trace(trace)
    monkeypatch.setenv("ATTRACE_MAX_SITES", "many")
    with pytest.raises(InputError, match="ATTRACE_MAX_SITES='many'"):
        open_trace(trace)


def test_huge_attributes_are_not_read(trace: Path) -> None:
    edit(trace, attributes={"attrace": {}, "more": "x" * 2**20})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTRACE_MAX_METADATA_BYTES", str(2**20))
        with pytest.raises(TraceFormatError, match="ATTRACE_MAX_METADATA_BYTES"):
            open_trace(trace)


def test_a_gap_where_everything_is_missing_is_no_error(trace: Path) -> None:
    for file in (trace / GROUP / "query_vector/c").rglob("*"):
        if file.is_file():
            file.unlink()
    open_trace(trace)


def _link_file(chunk: Path, outside: Path) -> None:
    chunk.unlink()
    chunk.symlink_to(outside)


def _link_folder(chunk: Path, outside: Path) -> None:
    folder = chunk.parent
    chunk.unlink()
    folder.rmdir()
    folder.symlink_to(outside.parent)


def _link_to_itself(chunk: Path, _: Path) -> None:
    chunk.unlink()
    chunk.symlink_to(chunk)


def _device(chunk: Path, _: Path) -> None:
    chunk.unlink()
    chunk.symlink_to("/dev/zero")


def _pipe(chunk: Path, _: Path) -> None:
    chunk.unlink()
    os.mkfifo(chunk)


@pytest.mark.parametrize("change", [_link_file, _link_folder, _link_to_itself, _device, _pipe])
def test_links_and_devices_are_not_followed(trace: Path, tmp_path: Path, change: Callable[[Path, Path], None]) -> None:
    (tmp_path / "elsewhere").mkdir()
    outside = tmp_path / "elsewhere/secret"
    outside.write_bytes(b"secret")
    change(trace / GROUP / "query_vector/c/0/0/0/0/0", outside)
    with pytest.raises(TraceFormatError, match=r"link|leads nowhere|not a file"):
        read_all(trace)


def test_the_folder_itself_is_not_resolved_for_every_chunk(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "resolve", lambda path, *_: pytest.fail(f"resolves {path}"))
    read_all(trace)


@pytest.mark.parametrize("key", ["../elsewhere", "images/../../elsewhere"])
def test_a_key_does_not_lead_out(trace: Path, key: str) -> None:
    (trace.parent / "elsewhere").write_text("")
    with pytest.raises(TraceFormatError, match="leads out"):
        LocalFiles(trace).read(key)


def test_a_link_to_the_trace_itself_is_followed(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "latest.zarr").symlink_to(trace)
    read_all(tmp_path / "latest.zarr")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr").path
    outside = tmp_path / "outside"
    outside.mkdir()
    (path / GROUP / "derived").symlink_to(outside)
    with pytest.raises(TraceFormatError, match="link"):
        precompute(path)
    assert list(outside.iterdir()) == []


def test_a_group_that_holds_itself(trace: Path) -> None:
    (trace / GROUP / "again").symlink_to(trace)
    (trace / "images/again").symlink_to(trace / "images")
    with pytest.raises(TraceFormatError, match="link"):
        read_all(trace)


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("../outside", 1, "no path inside a trace"),
        ("/etc/outside", 1, "no path inside a trace"),
        ("C:/outside", 1, "no path inside a trace"),
        ("step_done/c/0", 1, "two entries of one name"),
        ("bomb", 2**24, "100 times its size"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_zip_with_an_entry_that_no_trace_has(trace: Path, tmp_path: Path, name: str, size: int, match: str) -> None:
    packed = pack(trace, tmp_path / "run.zip")
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))
    with pytest.raises(TraceFormatError, match=match):
        open_trace(packed)


def test_zip_that_is_cut_or_garbled(trace: Path, tmp_path: Path) -> None:
    packed = pack(trace, tmp_path / "run.zip")
    content = packed.read_bytes()
    for garbled in (content[: len(content) // 2], content[100:], b"PK\x05\x06" + bytes(18), content[:-30] + bytes(30)):
        packed.write_bytes(garbled)
        with pytest.raises(TraceFormatError, match=r"run\.zip"):
            read_all(packed)


def test_chunk_that_is_damaged_in_the_zip_is_named(trace: Path, tmp_path: Path) -> None:
    packed = pack(trace, tmp_path / "run.zip")
    with zipfile.ZipFile(packed) as archive:
        at = archive.getinfo(f"{GROUP}/query_vector/c/1/0/0/0/0").header_offset
    content = bytearray(packed.read_bytes())
    content[at + 100] ^= 1
    packed.write_bytes(content)
    with pytest.raises(TraceFormatError, match=r"chunk c/1/0/0/0/0 of array 'reference/64x16h2d8/query_vector'"):
        read_all(packed)


def test_labels_are_drawn_as_they_are(tmp_path: Path) -> None:
    from attrace.analysis.figures import draw_map, save_figure

    layers = (r"$\frac{$", "<script>alert(1)</script>$x^2$")
    made = make_trace(tmp_path / "run.zarr", (site_class(layers=layers),))
    figure = draw_map(llam(open_trace(made.path)))
    for name in ("maps.png", "maps.svg"):
        save_figure(figure, tmp_path / name)
    svg = (tmp_path / "maps.svg").read_text()
    assert "<script" not in svg


HOSTILE = (
    PEAK
    + """
import sys, time
from click.testing import CliRunner
from attrace.cli import main
begun = time.process_time()
result = CliRunner().invoke(main, sys.argv[1:])
seconds = time.process_time() - begun
assert result.exit_code == 3, (result.output, result.exception)
assert seconds < 10, seconds
assert peak() < 1024, peak()
sys.stdout.write(result.stderr)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, str(2**27)], ids=["default", "raised"])
@pytest.mark.parametrize("nested", NESTED)
def test_metadata_that_unpacks_to_much_more(
    trace: Path, tmp_path: Path, nested: str, limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by its bytes; where those are allowed, by the number of its values, before it is parsed."""
    if limit is not None:
        monkeypatch.setenv("ATTRACE_MAX_METADATA_BYTES", limit)
        monkeypatch.setenv("ATTRACE_MAX_EXPANSION", "10000")
    text = (trace / "zarr.json").read_text()
    document = with_more(text, NESTED[nested]())
    with zipfile.ZipFile(tmp_path / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", document)
    for command in (["info"], ["verify"], ["unpack", "out.zarr"]):
        arguments = [command[0], str(tmp_path / "run.zip"), *(str(tmp_path / name) for name in command[1:])]
        done = subprocess.run([sys.executable, "-c", HOSTILE, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "ATTRACE_MAX_" in done.stdout or "100 times" in done.stdout


def test_more_pictures_than_the_limit(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTRACE_MAX_PICTURES", "1")
    read_all(trace)
    zarr.open_group(trace).create_array("images/other", data=PICTURE, dimension_names=("row", "column", "channel"))
    with pytest.raises(TraceFormatError, match=r"2 pictures, the limit is 1: .*ATTRACE_MAX_PICTURES"):
        read_all(trace)


@pytest.mark.parametrize("shape", [[2**62, 2, 2, 64, 8], [2**40, 2, 2, 64, 8]])
@pytest.mark.parametrize("array", ["query_vector", "key_step"])
def test_absurd_lengths_are_issues_of_verify(trace: Path, array: str, shape: list[int]) -> None:
    """What a damaged trace says of an array's length is not made in memory."""
    edit(trace / GROUP / array, shape=shape[:2] if array == "key_step" else shape)
    assert any("ATTRACE_MAX_STEPS" in str(one) for one in verify(trace).problems)


@pytest.mark.parametrize("content", ["empty", "nameless", "lzma"])
def test_zip_files_that_no_packed_trace_is(trace: Path, tmp_path: Path, content: str) -> None:
    pytest.importorskip("obstore")
    packed = tmp_path / "run.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA if content == "lzma" else zipfile.ZIP_STORED) as archive:
        if content != "empty":
            archive.writestr("zarr.json", (trace / "zarr.json").read_text())
    if content == "nameless":
        packed.write_bytes(_without_names(packed.read_bytes()))
    with serving(tmp_path) as served:
        for read in (open_trace, verify, lambda _: unpack(packed, tmp_path / "out.zarr")):
            for where in (packed, f"{served.address}/run.zip"):
                with pytest.raises(TraceFormatError, match=r"run\.zip"):
                    read(where)
    assert not (tmp_path / "out.zarr").exists()


def _without_names(content: bytes) -> bytes:
    """A zip file of one entry, whose name has no letters in the table of contents."""
    at = content.index(b"PK\x01\x02")
    entry = bytearray(content[at:])
    entry[28:30] = bytes(2)
    entry[46 : 46 + len("zarr.json")] = b""
    end = entry.index(b"PK\x05\x06")
    entry[end + 12 : end + 16] = end.to_bytes(4, "little")
    return content[:at] + bytes(entry)


def test_a_run_that_was_killed_before_its_first_step(trace: Path) -> None:
    shutil.rmtree(trace / "step_done")
    with pytest.raises(TraceFormatError, match="its recording was interrupted before its first step"):
        open_trace(trace)
    assert "interrupted" in CliRunner().invoke(main, ["info", str(trace)]).stderr


def test_a_run_that_was_killed_is_said_to_be_interrupted(trace: Path) -> None:
    assert "interrupted, or still recording, 3 finished steps" in CliRunner().invoke(main, ["info", str(trace)]).stdout
