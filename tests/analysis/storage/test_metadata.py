"""Metadata that is not what was written is refused on opening, however the trace is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.documents import digest_of, edit_document, seal_again
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, pack, precompute, repair, unpack
from attrace.analysis.integrity.verify import verify
from attrace.schemas import TraceFormatError
from attrace.schemas.digest import DIGEST, metadata_digest

PICTURE = np.zeros((8, 8, 3), np.uint8)
GROUP = "reference/64x16h2d8"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return make_trace(tmp_path / "run.zarr", (site_class(),), images={"generated": PICTURE}).path


def _of_class(root: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = root["attributes"]["attrace"]["classes"][0]
    return described


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a digit of the scale": lambda root: _of_class(root).update(scale=_of_class(root)["scale"] * (1 + 2**-52)),
    "a unit of an array": lambda root: root["consolidated_metadata"]["metadata"]["time"]["attributes"].update(
        units="2"
    ),
    "a picture": lambda root: root["consolidated_metadata"]["metadata"]["images/generated"].update(fill_value=1),
    "an attribute of a group": lambda root: root["consolidated_metadata"]["metadata"][GROUP]["attributes"].clear(),
    "the digest": lambda root: root["attributes"].update(digest="sha256:" + "0" * 64),
    "no digest": lambda root: root["attributes"].pop("digest"),
    "no copies": lambda root: root.pop("consolidated_metadata"),
    "an unknown attribute": lambda root: root["attributes"].update(more=1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_and_named(trace: Path, change: str) -> None:
    edit_document(trace / "zarr.json", CHANGES[change])
    with pytest.raises(TraceFormatError, match=r"run\.zarr (is not what was written: expected the digest|lacks the)"):
        open_trace(trace)
    problems = [str(problem) for problem in verify(trace).problems]
    assert any("digest" in problem or "lacks the copy" in problem for problem in problems)


def test_an_unknown_attribute_and_array_are_read_once_they_are_sealed(trace: Path) -> None:
    edit_document(trace / "zarr.json", CHANGES["an unknown attribute"])
    seal_again(trace)
    assert open_trace(trace).stored.root.attrs["more"] == 1
    assert verify(trace).valid


def test_the_digest_is_as_the_format_says(trace: Path) -> None:
    documents = {
        "" if file.parent == trace else file.parent.relative_to(trace).as_posix(): json.loads(file.read_text())
        for file in trace.rglob("zarr.json")
    }
    assert digest_of(trace) == metadata_digest(documents)


def test_a_run_that_was_killed_has_none_and_repair_writes_it(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", status=None).path
    assert DIGEST not in json.loads((path / "zarr.json").read_text())["attributes"]
    assert open_trace(path).interrupted
    repair(path)
    assert verify(path).issues == ()
    assert open_trace(path).steps == 3


def test_precompute_writes_it_anew(trace: Path) -> None:
    before = digest_of(trace)
    precompute(trace)
    assert digest_of(trace) != before
    assert verify(trace).issues == ()
    computed = digest_of(trace)
    precompute(trace, overwrite=True)
    assert digest_of(trace) == computed
    assert verify(trace).issues == ()


def test_precompute_gives_no_digest_to_what_was_damaged(trace: Path) -> None:
    edit_document(trace / GROUP / "query_row/zarr.json", lambda document: document["attributes"].update(units="2"))
    precompute(trace)
    assert [problem.array for problem in verify(trace).problems] == [f"{GROUP}/query_row"]


def test_packing_and_unpacking_leave_it(trace: Path, tmp_path: Path) -> None:
    packed = pack(trace, tmp_path / "run.zip")
    assert open_trace(packed).stored.root.attrs[DIGEST] == digest_of(trace)
    assert digest_of(unpack(packed, tmp_path / "again.zarr")) == digest_of(trace)
    part = pack(open_trace(trace).sel(time=[0, 2]), tmp_path / "part.zip")
    assert open_trace(part).stored.root.attrs[DIGEST] != digest_of(trace)
    assert verify(part).issues == ()


class TestRepair:
    def test_a_document_that_changed_is_written_from_its_copy(self, trace: Path) -> None:
        before = digest_of(trace)
        edit_document(trace / GROUP / "query_vector/zarr.json", lambda document: document.update(fill_value=0.0))
        (trace / "time/zarr.json").write_text("{")
        assert {problem.array for problem in verify(trace).problems} >= {"time", f"{GROUP}/query_vector"}
        repair(trace)
        assert verify(trace).issues == ()
        assert digest_of(trace) == before

    def test_copies_that_changed_are_written_from_the_documents(self, trace: Path) -> None:
        before = digest_of(trace)
        edit_document(trace / "zarr.json", CHANGES["a picture"])
        repair(trace)
        assert verify(trace).issues == ()
        assert digest_of(trace) == before

    def test_where_both_changed_it_is_refused(self, trace: Path, tmp_path: Path) -> None:
        edit_document(trace / "zarr.json", CHANGES["a digit of the scale"])
        shutil.copytree(trace, tmp_path / "before")
        with pytest.raises(TraceFormatError, match="not repaired; copy the trace again"):
            repair(trace)
        assert (trace / "zarr.json").read_text() == (tmp_path / "before/zarr.json").read_text()
