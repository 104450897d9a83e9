"""Content ids, differences and repaired traces: of one content, of another, of one that was cut off."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack, ulam
from attrace.analysis.integrity.content import content_id
from attrace.analysis.integrity.diff import Difference, diff
from attrace.analysis.integrity.repair import repair
from attrace.analysis.integrity.verify import verify
from attrace.analysis.maps.precompute import precompute
from attrace.analysis.storage.files import LocalFiles
from attrace.analysis.storage.store import open_store
from attrace.schemas import TraceExistsError, TraceFormatError

GROUP = "reference/64x16h2d8"
PICTURE = np.zeros((8, 8, 3), np.uint8)


def made(path: Path, **options: object) -> Path:
    return make_trace(path, images={"generated": PICTURE}, **options).path  # type: ignore[arg-type]


def array_of(path: Path, name: str) -> zarr.Array:  # type: ignore[type-arg]
    array = zarr.open_group(path)[name]
    assert isinstance(array, zarr.Array)
    return array


def id_of(path: Path) -> str:
    return content_id(open_trace(path))


class TestContentId:
    def test_the_same_content_has_the_same_however_it_is_packed(self, tmp_path: Path) -> None:
        first, second = made(tmp_path / "a.zarr"), made(tmp_path / "b.zarr")
        assert open_store(first).manifest.id != open_store(second).manifest.id
        packed = pack(first, tmp_path / "a.zip", codec="none")
        assert len({id_of(path) for path in (first, second, packed)}) == 1
        assert verify(first).content_id == id_of(first)

    @pytest.mark.parametrize(
        ("name", "place"),
        [
            (f"{GROUP}/query_vector", (1, 1, 0, 3, 2)),
            (f"{GROUP}/key_vector", (0, 1, 0, 3, 2)),
            ("images/generated", (0, 0, 0)),
            ("time", (2,)),
        ],
    )
    def test_one_other_bit_gives_another(self, tmp_path: Path, name: str, place: tuple[int, ...]) -> None:
        path = made(tmp_path / "a.zarr")
        before, array = id_of(path), array_of(path, name)
        bits = np.asarray(array[place]).reshape(1).view(f"u{array.dtype.itemsize}")
        array[place] = (bits ^ np.array(1, bits.dtype)).view(array.dtype)[0]
        assert id_of(path) != before

    def test_another_manifest_gives_another(self, tmp_path: Path) -> None:
        assert id_of(made(tmp_path / "a.zarr", seed=0)) != id_of(
            make_trace(tmp_path / "b.zarr", images={"generated": PICTURE}, device="cuda").path
        )

    def test_verify_finds_it_while_it_reads_each_chunk_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = {"key_grid": None, "keys": 3, "key_segments": ({"kind": "text", "count": 3},)}
        scores = site_class("text/64x3h2d8", encoding="scores", first_order=2, **text)  # type: ignore[arg-type]
        path = made(tmp_path / "a.zarr", classes=(site_class(dtype="float16"), scores), steps=12)
        expected, read = id_of(path), Counter[str]()
        really_read = LocalFiles.read

        def note(self: LocalFiles, name: str = "", *arguments: Any, **options: Any) -> bytes | None:
            read[name] += "/c/" in name
            return really_read(self, name, *arguments, **options)

        monkeypatch.setattr(LocalFiles, "read", note)
        assert verify(path).content_id == expected
        chunks = {str(file.relative_to(path)) for file in path.glob("**/c/**/*") if file.is_file()}
        assert chunks <= read.keys()
        saying_which = [name for name in chunks if "/key_step/" in name or "/called/" in name]  # there are chunks
        assert max(read[name] for name in chunks.difference(saying_which)) == 1
        assert max(read[name] for name in saying_which) == 2

    def test_of_a_copy_without_scores(self, tmp_path: Path) -> None:
        path = made(tmp_path / "a.zarr")
        precompute(path)
        packed = pack(path, tmp_path / "a.zip", only_derived=True)
        assert verify(packed).content_id == id_of(packed)

    def test_a_trace_with_problems_has_none(self, tmp_path: Path) -> None:
        path = made(tmp_path / "a.zarr")
        (path / GROUP / "query_vector/c/0/0/0/0/0").write_bytes(b"")
        assert verify(path).content_id is None


class TestDiff:
    def test_the_same(self, tmp_path: Path) -> None:
        first = made(tmp_path / "a.zarr")
        assert list(diff(first, pack(first, tmp_path / "a.zip"))) == []

    def test_values(self, tmp_path: Path) -> None:
        first, second = made(tmp_path / "a.zarr"), made(tmp_path / "b.zarr")
        query = array_of(second, f"{GROUP}/query_vector")
        query[1, 0, 1, 5, 2] = np.asarray(query[1, 0, 1, 5, 2]) + 0.5
        query[2, 1, 0, 0, 0] = np.asarray(query[2, 1, 0, 0, 0]) - 2
        (found,) = diff(first, second)
        assert (found.kind, found.place, found.values) == ("values", f"{GROUP}/query_vector", 2)
        assert found.largest == pytest.approx(2, rel=1e-5)
        assert "the first at (1, 0, 1, 5, 2)" in found.message

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        first, second = made(tmp_path / "a.zarr"), made(tmp_path / "b.zarr")
        array_of(second, f"{GROUP}/query_vector")[1, 0, 1, 5, 2] = np.nan
        (found,) = diff(first, second)
        assert (found.values, found.largest) == (1, None)

    def test_manifest_arrays_and_shapes(self, tmp_path: Path) -> None:
        first = made(tmp_path / "a.zarr", device="cpu")
        second = make_trace(tmp_path / "b.zarr", (site_class(layers=("up.0.attn2",)),), steps=2, device="cuda").path
        found = list(diff(first, second))
        assert Difference("manifest", "manifest.device", "'cpu' and 'cuda'") in found
        assert Difference("array", "images/generated", "only in the first") in found
        assert any(one.kind == "shape" and one.place == f"{GROUP}/query_vector" for one in found)

    def test_nothing_is_read_until_asked(self, tmp_path: Path) -> None:
        diff(tmp_path / "absent", tmp_path / "absent")


class TestRepair:
    @pytest.fixture
    def killed(self, tmp_path: Path) -> Path:
        """Killed in its fourth step, with room for four: chunks of it and an unfinished file are there."""
        path = make_trace(tmp_path / "run.zarr", steps=4, status=None).path
        array_of(path, "step_done")[3] = 0
        (path / GROUP / "query_vector/c/0/0/0/0/.0.1.partial").write_bytes(b"half")
        return path

    @pytest.mark.parametrize("in_place", [True, False])
    def test_every_finished_step_is_kept_and_the_trace_is_sound(
        self, killed: Path, tmp_path: Path, in_place: bool
    ) -> None:
        before = ulam(open_trace(killed)).compute()
        target = killed if in_place else tmp_path / "repaired.zarr"
        assert repair(killed, None if in_place else target) == 3
        report = verify(target)
        assert (report.issues, report.status, report.steps) == ((), "interrupted", 3)
        np.testing.assert_array_equal(ulam(open_trace(target)).compute(), before)
        assert not list(target.rglob("*.partial"))
        assert open_store(target).array(f"{GROUP}/query_vector").shape[0] == 3

    def test_a_complete_trace_stays_complete(self, tmp_path: Path) -> None:
        path = made(tmp_path / "run.zarr")
        before = json.loads((path / "zarr.json").read_text())
        assert repair(path) == 3
        assert json.loads((path / "zarr.json").read_text()) == before

    def test_nothing_is_replaced_and_a_hole_is_refused(self, killed: Path, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        with pytest.raises(TraceExistsError, match="there"):
            repair(killed, tmp_path / "there")
        array_of(killed, "step_done")[1] = 0
        with pytest.raises(TraceFormatError, match="a hole"):
            repair(killed)
