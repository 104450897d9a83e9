"""Packing a trace and parts of it: what is kept is the same, what is left out is said, and nothing is half written."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.documents import seal_again
from support.published import write_published
from support.traces import MadeTrace, make_trace, site_class

from attrace.analysis import Trace, open_trace, pack, precompute, sram, ulam, unpack
from attrace.analysis.integrity.verify import verify
from attrace.schemas import (
    InputError,
    KeySegment,
    TraceExistsError,
    TraceFormatError,
    TraceNotFoundError,
)
from attrace.schemas.layout import DATA_ARRAYS, QUERY

DATA = Path(__file__).parents[2] / "data"
FACTORS = site_class(layers=("down.0.attn2", "mid.attn2", "up.0.attn2"), cls=True, group="reference/64x17h2d8")
SCORES = site_class(
    "text/64x3h2d8",
    encoding="scores",
    key_grid=None,
    keys=3,
    key_segments=(KeySegment(kind="text", count=3),),
    tokens=("a", "red", "cat"),
    layers=("up.1.attn2",),
    first_order=3,
)
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
ARGUMENTS = {"prompt": "a red cat", "negative_prompt": "", "num_images_per_prompt": 1, "eta": 0.5}


@pytest.fixture(scope="module", params=[True, False], ids=["static keys", "changing keys"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> MadeTrace:
    made = make_trace(
        tmp_path_factory.mktemp("whole") / "run.zarr",
        (FACTORS, SCORES),
        steps=6,
        static_keys=request.param,
        images={"generated": PICTURE},
        call_arguments=ARGUMENTS,
    )
    precompute(made.path)
    return made


def _sound(path: Path) -> Trace:
    report = verify(path)
    assert report.issues == ()
    return open_trace(path)


def _scores(trace: Trace, group: str) -> Any:
    return trace.sel(context=group.partition("/")[0]).scores[group]["scores"]


def _files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _keys(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        return {name: archive.read(name) for name in archive.namelist()}


class TestWhole:
    def test_every_chunk_is_copied_as_bytes_and_comes_back(self, made: MadeTrace, tmp_path: Path) -> None:
        packed = pack(made.path, tmp_path / "run.zip")
        whole = _files(made.path)
        entries = _keys(packed)
        assert entries.keys() == whole.keys()
        assert all(entries[name] == whole[name] for name in whole if not name.endswith("zarr.json"))
        assert open_trace(packed).manifest == open_trace(made.path).manifest
        assert _files(unpack(packed, tmp_path / "again.zarr")) == entries
        assert sorted(path.name for path in tmp_path.iterdir()) == ["again.zarr", "run.zip"]
        _sound(tmp_path / "again.zarr")
        _sound(packed)

    def test_the_same_trace_gives_the_same_bytes_in_every_process(self, made: MadeTrace, tmp_path: Path) -> None:
        code = "import sys; from attrace.analysis import pack; pack(*sys.argv[1:])"
        packed = []
        for seed in "12":
            packed.append(tmp_path / f"{seed}.zip")
            command = [sys.executable, "-c", code, str(made.path), str(packed[-1])]
            subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed})
        assert packed[0].read_bytes() == packed[1].read_bytes()

    def test_what_opening_reads_is_at_the_end(self, made: MadeTrace, tmp_path: Path) -> None:
        names = list(_keys(pack(made.path, tmp_path / "run.zip")))
        assert names[-4:] == ["step_done/c/0", "time/c/0", "timestep/c/0", "zarr.json"]

    def test_a_packed_trace_can_be_packed_again(self, made: MadeTrace, tmp_path: Path) -> None:
        once = pack(made.path, tmp_path / "run.zip")
        assert pack(once, tmp_path / "again.zip").read_bytes() == once.read_bytes()

    def test_what_we_do_not_know_is_kept(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "run.zarr").path
        group = zarr.open_group(path, mode="r+", use_consolidated=False)
        group.attrs["other"] = {"mine": 1}
        group.create_array("notes/loss", data=np.arange(3.0), dimension_names=("time",))
        seal_again(path)
        packed = zarr.open_group(
            zarr.storage.ZipStore(pack(open_trace(path).sel(time=[0, 2]), tmp_path / "run.zip")), mode="r"
        )
        assert packed.attrs["other"] == {"mine": 1}
        assert np.asarray(packed["notes/loss"]).tolist() == [0, 2]

    def test_one_that_was_never_closed_is_closed(self, tmp_path: Path) -> None:
        made = make_trace(tmp_path / "run.zarr", steps=4, status=None)
        zarr.open_array(made.path / "step_done")[3:] = 0
        trace = _sound(pack(made.path, tmp_path / "run.zip"))
        assert (trace.status, trace.steps, trace.manifest.omitted) == ("interrupted", 3, None)

    def test_every_published_trace(self, tmp_path: Path) -> None:
        write_published(tmp_path / "now.zip")
        for source in (*DATA.glob("trace-*.zip"), tmp_path / "now.zip"):
            packed = pack(source, tmp_path / "packed.zip", overwrite=True)
            assert {name: content for name, content in _keys(packed).items() if "/c/" in name} == {
                name: content for name, content in _keys(source).items() if "/c/" in name
            }


class TestReadLayout:
    @pytest.fixture(autouse=True)
    def _several_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("attrace.analysis.sharing.copy_plan.READ_CHUNK_BYTES", 4096)

    def test_values_and_maps_are_those_of_the_recorded_layout(self, made: MadeTrace, tmp_path: Path) -> None:
        whole, trace = open_trace(made.path), open_trace(pack(made.path, tmp_path / "run.zip", layout="read"))
        assert trace.manifest == whole.manifest
        chunks = trace.stored.array(f"{FACTORS.group}/{QUERY}").array.chunks
        assert chunks[:3] == (6, 1, 2)
        assert chunks[3] < 64
        for one in (FACTORS, SCORES):
            np.testing.assert_array_equal(_scores(trace, one.group), _scores(whole, one.group))
        for at in ((0, 0), (1, 1, 3, 3)):
            np.testing.assert_allclose(sram(trace, at=at), sram(whole, at=at), rtol=1e-5)
        steps = slice(1, 4)
        np.testing.assert_array_equal(ulam(trace.sel(time=steps), keys="all"), ulam(whole.sel(time=steps), keys="all"))

    def test_a_patch_needs_one_chunk_of_each_layer(self, made: MadeTrace, tmp_path: Path) -> None:
        folder = unpack(pack(made.path, tmp_path / "run.zip", layout="read"), tmp_path / "run.zarr")
        others = [path for path in (folder / FACTORS.group / QUERY).glob("c/0/*/0/*/0") if path.parent.name != "0"]
        assert len(others) > 3
        for path in others:
            path.write_bytes(b"damaged")
        np.testing.assert_allclose(
            sram(open_trace(folder), at=(0, 0)), sram(open_trace(made.path), at=(0, 0)), rtol=1e-5
        )

    def test_it_verifies_and_its_content_is_the_same(self, made: MadeTrace, tmp_path: Path) -> None:
        report = verify(pack(made.path, tmp_path / "run.zip", layout="read"))
        assert report.valid
        assert report.content_id == verify(made.path).content_id

    @pytest.mark.parametrize("lost", [True, False])
    def test_verify_names_a_broken_chunk_once(self, made: MadeTrace, tmp_path: Path, lost: bool) -> None:
        folder = unpack(pack(made.path, tmp_path / "run.zip", layout="read"), tmp_path / "run.zarr")
        broken = folder / FACTORS.group / QUERY / "c/0/1/0/2/0"
        broken.unlink() if lost else broken.write_bytes(b"damaged")
        (found,) = verify(folder).problems
        assert found.array == f"{FACTORS.group}/{QUERY}"
        assert "chunk c/0/1/0/2/0 " in found.message

    def test_it_is_packed_again_as_it_is(self, made: MadeTrace, tmp_path: Path) -> None:
        once = pack(made.path, tmp_path / "run.zip", layout="read")
        assert pack(once, tmp_path / "again.zip", layout="read").read_bytes() == once.read_bytes()


class TestParts:
    def test_images_and_prompts_are_left_out(self, made: MadeTrace, tmp_path: Path) -> None:
        packed = pack(made.path, tmp_path / "run.zip", without=["prompts", "images"])
        trace = _sound(packed)
        assert trace.images == {}
        assert trace.manifest.call_arguments == {"num_images_per_prompt": 1, "eta": 0.5}
        assert {one.tokens for one in trace.manifest.classes} == {None}
        assert trace.manifest.omitted is not None
        assert trace.manifest.omitted.parts == ("images", "prompts")
        assert not any(b"red" in content for content in _keys(packed).values())

    def test_arguments_are_left_out(self, made: MadeTrace, tmp_path: Path) -> None:
        trace = _sound(pack(made.path, tmp_path / "run.zip", without=["arguments"]))
        assert trace.manifest.call_arguments == {}
        assert trace.manifest.classes[1].tokens == ("a", "red", "cat")

    def test_layers_are_selected(self, made: MadeTrace, tmp_path: Path) -> None:
        packed = pack(open_trace(made.path).sel(layer="*m*.attn2"), tmp_path / "run.zip")
        trace = _sound(packed)
        assert trace.layers == ("mid.attn2",)
        assert [one.group for one in trace.manifest.classes] == [FACTORS.group]
        assert trace.manifest.omitted is not None
        assert (trace.manifest.omitted.layers, trace.manifest.omitted.steps) == (3, 0)
        np.testing.assert_array_equal(
            _scores(trace, FACTORS.group), _scores(open_trace(made.path), FACTORS.group)[:, 1:2]
        )
        np.testing.assert_array_equal(ulam(trace), ulam(open_trace(made.path).sel(layer="mid*")))
        chunk = f"{FACTORS.group}/query_vector/c/3/%d/0/0/0"
        assert _keys(packed)[chunk % 0] == (made.path / (chunk % 1)).read_bytes()

    @pytest.mark.parametrize("steps", [slice(2, 4), [1, 5], 3])
    def test_steps_are_selected_with_their_keys(self, made: MadeTrace, tmp_path: Path, steps: Any) -> None:
        trace = _sound(pack(open_trace(made.path).sel(time=steps), tmp_path / "run.zip"))
        whole = open_trace(made.path).sel(time=steps)
        assert trace.time.tolist() == whole.time.tolist()
        assert trace.timesteps.tolist() == whole.timesteps.tolist()
        for one in (FACTORS, SCORES):
            np.testing.assert_array_equal(_scores(trace, one.group), _scores(whole, one.group))
        np.testing.assert_array_equal(ulam(trace, direction="g2r"), ulam(whole, direction="g2r"))
        assert trace.manifest.omitted is not None
        assert trace.manifest.omitted.steps == 6 - trace.steps

    def test_a_key_is_stored_once(self, made: MadeTrace, tmp_path: Path) -> None:
        part = open_trace(made.path).sel(time=slice(2, 4), layer="mid*")
        names = _keys(pack(part, tmp_path / "run.zip"))
        kept = [name for name in names if "/key_vector/c/" in name]
        static = not (made.path / FACTORS.group / "key_vector/c/1").exists()
        assert len(kept) == (1 if static else 3)

    def test_maps_alone(self, made: MadeTrace, tmp_path: Path) -> None:
        packed = pack(
            open_trace(made.path).sel(time=slice(1, 4)), tmp_path / "run.zip", only_derived=True, without=["images"]
        )
        trace = _sound(packed)
        assert not any(f"/{name}/" in key for key in _keys(packed) for name in DATA_ARRAYS)
        np.testing.assert_array_equal(ulam(trace), ulam(open_trace(made.path).sel(time=slice(1, 4))))
        unpacked = unpack(packed, tmp_path / "run.zarr")
        for needs_scores in (
            lambda: trace.scores,
            lambda: sram(trace, at=(0, 0)),
            lambda: precompute(unpacked, overwrite=True),
        ):
            with pytest.raises(InputError, match="packed with its derived maps only"):
                needs_scores()
        _sound(unpacked)

    def test_maps_that_were_not_computed_are_refused(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "run.zarr").path
        with pytest.raises(InputError, match="run attrace precompute first"):
            pack(path, tmp_path / "run.zip", only_derived=True)
        assert not (tmp_path / "run.zip").exists()

    def test_leaving_out_adds_up(self, made: MadeTrace, tmp_path: Path) -> None:
        first = pack(open_trace(made.path).sel(time=slice(0, 3)), tmp_path / "first.zip", without=["images"])
        part = open_trace(first).sel(time=slice(1, 3))
        second = open_trace(pack(part, tmp_path / "second.zip", without=["prompts"]))
        assert second.manifest.omitted is not None
        assert second.manifest.omitted.source == open_trace(made.path).manifest.id
        assert second.manifest.omitted.parts == ("images", "prompts")
        assert second.manifest.omitted.steps == 3
        ids = {open_trace(path).manifest.id for path in (made.path, first, tmp_path / "second.zip")}
        assert len(ids) == 3

    def test_recoding_keeps_every_value(self, made: MadeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = open_trace(made.path)
        monkeypatch.setattr("attrace.schemas.codecs.SHUFFLED_FROM", 4096)  # what a chunk of queries has here
        for codec, names in {
            "none": ["bytes", "crc32c"],
            "zstd-19": ["bytes", "zstd", "crc32c"],
            "auto": ["bytes", "blosc", "crc32c"],
        }.items():
            trace = _sound(pack(made.path, tmp_path / f"{codec}.zip", codec=codec))
            assert trace.manifest.id == whole.manifest.id
            for one in (FACTORS, SCORES):
                np.testing.assert_array_equal(_scores(trace, one.group), _scores(whole, one.group))
            stored = trace.stored.array(f"{FACTORS.group}/query_vector").array.metadata.to_dict()
            assert [codec["name"] for codec in stored["codecs"]] == names  # type: ignore[index,union-attr,call-overload]

    def test_recoding_to_what_it_is_copies_the_bytes(self, made: MadeTrace, tmp_path: Path) -> None:
        recoded = pack(made.path, tmp_path / "recoded.zip", codec="auto")
        names = [
            f"{FACTORS.group}/{name}"
            for name in ("query_vector/c/0/0/0/0/0", "key_step/c/0/0", "query_vector/zarr.json")
        ]
        with zipfile.ZipFile(recoded) as archive:
            assert [archive.read(name) for name in names[:2]] == [(made.path / name).read_bytes() for name in names[:2]]
            assert (
                json.loads(archive.read(names[2]))["codecs"] == json.loads((made.path / names[2]).read_text())["codecs"]
            )

    def test_a_licence_and_a_citation_travel_along(self, made: MadeTrace, tmp_path: Path) -> None:
        trace = _sound(pack(made.path, tmp_path / "run.zip", licence="CC-BY-4.0", citation="@misc{a,\n year={2026}}"))
        assert (trace.manifest.licence, trace.manifest.citation) == ("CC-BY-4.0", "@misc{a,\n year={2026}}")

    @pytest.mark.parametrize(
        "options",
        [
            {"without": ["scores"]},
            {"codec": "zstd"},
            {"codec": "zstd-23"},
            {"codec": "gzip"},
            {"licence": "two\nlines"},
            {"citation": "\x1b[2J"},
        ],
    )
    def test_what_cannot_be_done_is_refused(self, made: MadeTrace, tmp_path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            pack(made.path, tmp_path / "run.zip", **options)
        assert list(tmp_path.iterdir()) == []

    def test_selected_heads_are_refused(self, made: MadeTrace, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="all heads and pictures"):
            pack(open_trace(made.path).sel(head=0), tmp_path / "run.zip")

    def test_a_chosen_context_comes_alone(self, made: MadeTrace, tmp_path: Path) -> None:
        trace = _sound(pack(open_trace(made.path).sel(context="text"), tmp_path / "run.zip"))
        assert [one.group for one in trace.manifest.classes] == [SCORES.group]
        assert trace.manifest.omitted is not None
        assert trace.manifest.omitted.layers == 3

    @pytest.mark.parametrize("codec", [None, "none"])
    @pytest.mark.parametrize(
        "lost", ["query_vector/c/3/1/0/0/0", "key_vector/c/0/2/0/0/0", "key_step/c/0/0", "derived/r2g/c/0/1/0/0"]
    )
    def test_a_lost_chunk_is_named(self, made: MadeTrace, tmp_path: Path, lost: str, codec: str | None) -> None:
        shutil.copytree(made.path, tmp_path / "run.zarr")
        (tmp_path / "run.zarr" / FACTORS.group / lost).unlink()
        name, _, chunk = lost.partition("/c/")
        with pytest.raises(TraceFormatError, match=f"chunk c/{chunk} of array '{FACTORS.group}/{name}' cannot be read"):
            pack(tmp_path / "run.zarr", tmp_path / "run.zip", codec=codec)
        assert not (tmp_path / "run.zip").exists()


class TestWriting:
    def test_only_a_zip(self, made: MadeTrace, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"ends in \.zip"):
            pack(made.path, tmp_path / "run.tar")

    def test_nothing_is_replaced_unasked(self, made: MadeTrace, tmp_path: Path) -> None:
        packed = pack(made.path, tmp_path / "run.zip")
        with pytest.raises(TraceExistsError):
            pack(made.path, packed)
        pack(made.path, packed, without=["images"], overwrite=True)
        assert open_trace(packed).images == {}
        unpack(packed, tmp_path / "run.zarr")
        with pytest.raises(TraceExistsError):
            unpack(packed, tmp_path / "run.zarr")
        unpack(packed, tmp_path / "run.zarr", overwrite=True)
        (tmp_path / "mine").mkdir()
        with pytest.raises(TraceExistsError, match="not a trace"):
            unpack(packed, tmp_path / "mine", overwrite=True)

    def test_a_file_that_fails_leaves_the_old_one(
        self, made: MadeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packed = pack(made.path, tmp_path / "run.zip")
        before = packed.read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
        with pytest.raises(OSError, match="No space"):
            pack(made.path, packed, overwrite=True)
        assert packed.read_bytes() == before
        assert list(tmp_path.iterdir()) == [packed]


def _with_entries(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    write_published(path)
    with zipfile.ZipFile(path, "a") as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


class TestStrangers:
    @pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "a//b", "./a", "c:/a", "a\\b"])
    def test_a_name_that_leads_elsewhere(self, tmp_path: Path, name: str) -> None:
        packed = _with_entries(tmp_path / "run.zip", (name, b"?"))
        (tmp_path / "in").mkdir()
        with pytest.raises(TraceFormatError, match="no path inside a trace"):
            unpack(packed, tmp_path / "in" / "run.zarr")
        assert list((tmp_path / "in").iterdir()) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run.zip"]

    def test_a_link(self, tmp_path: Path) -> None:
        link = zipfile.ZipInfo("images/link")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed = _with_entries(tmp_path / "run.zip", (link, b"/etc/passwd"))
        with pytest.raises(TraceFormatError, match="'images/link' is a link"):
            unpack(packed, tmp_path / "run.zarr")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_entries_of_one_name(self, tmp_path: Path) -> None:
        packed = _with_entries(tmp_path / "run.zip", ("time/c/0", b"?"))
        with pytest.raises(TraceFormatError, match="two entries of one name"):
            unpack(packed, tmp_path / "run.zarr")

    def test_a_bomb(self, tmp_path: Path) -> None:
        packed = tmp_path / "run.zip"
        write_published(packed)
        with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images/bomb", b"\0" * 40_000_000)
        with pytest.raises(TraceFormatError, match="over 100 times its size"):
            unpack(packed, tmp_path / "run.zarr")
        assert list(tmp_path.iterdir()) == [packed]

    def test_bytes_that_changed(self, tmp_path: Path) -> None:
        packed = tmp_path / "run.zip"
        write_published(packed)
        content = bytearray(packed.read_bytes())
        with zipfile.ZipFile(packed) as archive:
            entry = archive.getinfo("images/generated/c/0/0/0")
        content[entry.header_offset + 30 + len(entry.filename) + 3] ^= 1
        packed.write_bytes(content)
        with pytest.raises(TraceFormatError, match="it is damaged"):
            unpack(packed, tmp_path / "run.zarr")
        assert list(tmp_path.iterdir()) == [packed]

    def test_what_is_no_packed_trace(self, tmp_path: Path) -> None:
        with pytest.raises(TraceNotFoundError):
            unpack(tmp_path / "none.zip", tmp_path / "run.zarr")
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr("readme.txt", b"?")
        with pytest.raises(TraceFormatError):
            unpack(tmp_path / "other.zip", tmp_path / "run.zarr")
