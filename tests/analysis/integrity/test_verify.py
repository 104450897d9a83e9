"""`verify` passes sound traces and names the array and chunk of every kind of damage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.documents import edit_document, seal_again
from support.traces import make_trace, site_class

from attrace.analysis.integrity.report import Report
from attrace.analysis.integrity.verify import verify
from attrace.recorder.writing.store import create_array
from attrace.schemas import SiteClass, TraceFormatError, TraceNotFoundError, TraceVersionError, derived_arrays

GROUP = "reference/64x16h2d8"
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return make_trace(tmp_path / "run.zarr", images={"generated": PICTURE}).path


def problems(path: Path) -> list[str]:
    return [str(finding) for finding in verify(path).problems]


@pytest.mark.parametrize("encoding", ["factors", "scores"])
@pytest.mark.parametrize("static_keys", [True, False])
def test_a_sound_trace_has_no_findings(tmp_path: Path, encoding: str, static_keys: bool) -> None:
    classes = (
        site_class(encoding=encoding, cls=True, dtype="float16"),
        site_class(
            "text/64x7h2d8", key_grid=None, encoding=encoding, keys=7, key_segments=({"kind": "text", "count": 7},)
        ),
    )
    made = make_trace(tmp_path / "run.zarr", classes, static_keys=static_keys, images={"mask": PICTURE[..., 0]})
    report = verify(made.path)
    assert report.issues == ()
    assert report.valid
    assert (report.status, report.steps) == ("complete", 3)
    # 2 layers and 3 steps of each data array at least
    assert report.chunks >= 2 * 3 * len(classes)


def test_progress_counts_every_chunk(trace: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = verify(trace, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, report.chunks) for number in range(1, report.chunks + 1)]


@pytest.mark.parametrize(
    ("array", "chunk"),
    [
        (f"{GROUP}/query_vector", "c/1/1/0/0/0"),
        (f"{GROUP}/key_vector", "c/0/0/0/0/0"),
        ("images/generated", "c/0/0/0"),
        ("time", "c/0"),
    ],
)
def test_a_flipped_bit_is_found_with_its_chunk(trace: Path, array: str, chunk: str) -> None:
    file = trace / array / chunk
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (problem,) = verify(trace).problems
    assert (problem.array, problem.chunk) == (array, chunk)
    assert "checksum" in problem.message


@pytest.mark.parametrize("kept", [0, 3, 40])
def test_a_cut_off_chunk_is_found(trace: Path, kept: int) -> None:
    file = trace / GROUP / "query_vector/c/2/0/0/0/0"
    file.write_bytes(file.read_bytes()[:kept])
    (problem,) = verify(trace).problems
    assert (problem.array, problem.chunk) == (f"{GROUP}/query_vector", "c/2/0/0/0/0")


def test_a_damaged_marker_is_found(trace: Path) -> None:
    (trace / "step_done/c/0").write_bytes(b"nothing")
    assert any(problem.startswith("step_done/c/0: the chunk cannot be read") for problem in problems(trace))


def test_values_that_are_not_finite_are_found(trace: Path) -> None:
    query = zarr.open_group(trace)[f"{GROUP}/query_vector"]
    assert isinstance(query, zarr.Array)
    query[1, 0, 1, 5, 2] = np.inf
    query[1, 0, 1, 5, 3] = np.nan
    assert problems(trace) == [
        f"{GROUP}/query_vector/c/1/0/0/0/0: 2 of 1024 values are not finite, the first at head 1, query 5, feature 2"
    ]


def test_a_masked_score_is_minus_infinity_and_sound(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", (site_class(encoding="scores"),)).path
    scores = zarr.open_group(path)[f"{GROUP}/scores"]
    assert isinstance(scores, zarr.Array)
    scores[0, 0, 0, :, 3] = -np.inf
    assert problems(path) == []
    scores[0, 0, 0, 0, 3] = np.inf
    assert len(problems(path)) == 1


def test_a_gap_is_noted_and_no_problem(trace: Path) -> None:
    root = zarr.open_group(trace)
    for name, gap in (("query_vector", np.nan), ("key_step", -1), ("called", 0)):
        array = root[f"{GROUP}/{name}"]
        assert isinstance(array, zarr.Array)
        array[1, 1] = gap
    report = verify(trace)
    assert report.valid
    assert [str(note) for note in report.notes] == [f"{GROUP}: layer 'up.0.attn2' was not recorded in step 1"]


def test_a_coordinate_against_the_manifest_is_found(trace: Path) -> None:
    rows = zarr.open_group(trace)[f"{GROUP}/query_row"]
    assert isinstance(rows, zarr.Array)
    rows[9] = 7
    assert problems(trace) == [f"{GROUP}/query_row: expected 1 at 9, as in the manifest, found 7"]


def test_a_missing_array_is_found(trace: Path) -> None:
    shutil.rmtree(trace / GROUP / "key_vector")
    seal_again(trace)
    assert f"{GROUP}/key_vector: expected an array, found none" in problems(trace)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3, 2, 2, 64, 9]}, "expected shape (3, 2, 2, 64, 8), found (3, 2, 2, 64, 9)"),
        (
            {"dimension_names": ["time", "layer", "head", "key", "feature"]},
            "expected dims (time, layer, head, query, feature)",
        ),
        ({"data_type": "float64"}, "expected data type float32, found float64"),
        ({"fill_value": 0.0}, "expected fill value nan, found 0.0"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}, "expected a crc32c checksum"),
    ],
)
def test_a_wrong_structure_is_found(trace: Path, change: dict[str, Any], message: str) -> None:
    edit_document(trace / GROUP / "query_vector/zarr.json", lambda document: document.update(change))
    seal_again(trace)
    assert any(problem.startswith(f"{GROUP}/query_vector: {message}") for problem in problems(trace))


def test_wrong_chunks_are_found(trace: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["chunk_grid"]["configuration"]["chunk_shape"][2] = 1

    edit_document(trace / GROUP / "query_vector/zarr.json", change)
    seal_again(trace)
    assert f"{GROUP}/query_vector: expected chunks (1, 1, 2, 64, 8), found (1, 1, 1, 64, 8)" in problems(trace)


@pytest.mark.parametrize("change", [{"must_understand": 0}, {"more": 1}])
def test_consolidated_metadata_that_others_would_not_read_is_found(trace: Path, change: dict[str, Any]) -> None:
    edit_document(trace / "zarr.json", lambda root: root["consolidated_metadata"].update(change))
    assert [problem.partition(" beside")[0] for problem in problems(trace)] == [
        "expected {'kind': 'inline', 'must_understand': False}"
    ]


def test_stale_consolidated_metadata_is_found(trace: Path) -> None:
    edit_document(
        trace / GROUP / "query_vector/zarr.json", lambda document: document["attributes"].update(changed=True)
    )
    assert problems(trace) == [f"{GROUP}/query_vector: the consolidated metadata differs from its own zarr.json"]


def test_steps_of_the_manifest_against_the_marker(trace: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["attributes"]["attrace"]["steps"] = 5

    edit_document(trace / "zarr.json", change)
    seal_again(trace)
    assert problems(trace) == ["step_done: the manifest has 5 finished steps, the marker 3"]


def test_a_hole_in_the_finished_steps_is_found(trace: Path) -> None:
    marker = zarr.open_group(trace)["step_done"]
    assert isinstance(marker, zarr.Array)
    marker[1] = 0
    assert "step_done: expected finished steps without a hole, found step 1 not finished" in problems(trace)


def test_call_numbers_that_do_not_rise_are_found(trace: Path) -> None:
    time = zarr.open_group(trace)["time"]
    assert isinstance(time, zarr.Array)
    time[2] = 1
    assert problems(trace) == [
        "time: expected call numbers that rise from 0 on, found [0, 1, 1]",
        f"{GROUP}/time: expected 1 at 2, as in the root, found 2",
    ]


def test_a_missing_timestep_is_found(trace: Path) -> None:
    timestep = zarr.open_group(trace)["timestep"]
    assert isinstance(timestep, zarr.Array)
    timestep[2] = np.nan
    assert problems(trace) == [
        "timestep: expected a timestep for every finished step, none in step 2",
        f"{GROUP}/timestep: expected nan at 2, as in the root, found 800.0",
    ]


def test_labels_that_are_not_those_of_the_manifest_are_found(trace: Path) -> None:
    layer = zarr.open_group(trace)[f"{GROUP}/layer"]
    assert isinstance(layer, zarr.Array)
    layer[1] = 7
    edit_document(trace / GROUP / "zarr.json", lambda document: document["attributes"]["layers"].reverse())
    seal_again(trace)
    assert problems(trace) == [
        f"{GROUP}/layer: expected 1 at 1, as in the manifest, found 7",
        f"{GROUP}: expected the attribute 'layers' to list the module paths in the manifest",
    ]


def test_a_gap_that_holds_values_and_a_call_that_holds_none_are_found(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", (site_class(encoding="scores"),)).path
    called = zarr.open_group(path)[f"{GROUP}/called"]
    assert isinstance(called, zarr.Array)
    called[0, 1] = 0
    (path / GROUP / "scores/c/2/0/0/0/0").unlink()
    assert problems(path) == [
        f"{GROUP}/scores/c/2/0/0/0/0: the chunk cannot be read: it is not there: it was deleted, or not copied",
        f"{GROUP}: scores stored without called in step 0 of layer 'up.0.attn2'",
    ]


def test_an_unclosed_trace_is_sound_and_noted(tmp_path: Path) -> None:
    report = verify(make_trace(tmp_path / "run.zarr", status=None).path)
    assert report.valid
    assert report.status == "recording"
    assert "never closed" in str(report.notes[0])


def test_damage_in_a_step_that_never_finished_is_not_looked_at(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", status=None).path
    marker = zarr.open_group(path)["step_done"]
    assert isinstance(marker, zarr.Array)
    marker[2] = 0
    (path / GROUP / "query_vector/c/2/0/0/0/0").write_bytes(b"half a chu")
    report = verify(path)
    assert report.valid
    assert report.steps == 2


def test_the_cache_of_marginals_is_checked(tmp_path: Path) -> None:
    made = make_trace(tmp_path / "run.zarr")
    one: SiteClass = made.classes[GROUP]
    group = zarr.open_group(made.path).require_group(f"{GROUP}/derived")
    for spec in derived_arrays(one, 3):
        create_array(group, spec)[...] = 1.0
    seal_again(made.path)
    assert [note.array for note in verify(made.path).notes] == [f"{GROUP}/derived"]
    group.attrs["steps"] = 2
    seal_again(made.path)
    assert "covers 2 of 3 steps" in str(verify(made.path).notes)
    group.attrs["steps"] = 3
    seal_again(made.path)
    assert verify(made.path).issues == ()
    cached = group["g2r"]
    assert isinstance(cached, zarr.Array)
    cached[1, 1, 0, 3] = np.inf
    assert problems(made.path) == [
        f"{GROUP}/derived/g2r/c/0/1/0/0: 1 of 96 values are not finite, the first at head 0, key 3"
    ]


def test_a_zip_file_is_verified(trace: Path) -> None:
    packed = shutil.make_archive(str(trace.with_suffix("")), "zip", trace)
    assert verify(packed).issues == ()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TraceNotFoundError, match="no trace at"):
        verify(tmp_path / "none.zarr")


def test_what_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match="expected a Zarr v3 group"):
        verify(tmp_path)
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    with pytest.raises(TraceFormatError, match="no such attribute"):
        verify(tmp_path / "other.zarr")
    (tmp_path / "photo.png").write_bytes(b"not a zip")
    with pytest.raises(TraceFormatError, match=r"expected a folder or a \.zip file"):
        verify(tmp_path / "photo.png")


def test_metadata_that_is_no_json(trace: Path) -> None:
    (trace / "zarr.json").write_text("{")
    with pytest.raises(TraceFormatError, match="cannot be read"):
        verify(trace)


def test_a_newer_major_version_is_refused(trace: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["attributes"]["attrace"]["version"] = "3.0"

    edit_document(trace / "zarr.json", change)
    with pytest.raises(TraceVersionError, match=r"written in version 3\.0"):
        verify(trace)


def test_a_report_is_unsound_exactly_when_it_has_problems(trace: Path) -> None:
    report = verify(trace)
    assert isinstance(report, Report)
    assert report.valid is (report.problems == ())
    (trace / GROUP / "head/c/0").write_bytes(b"")
    assert not verify(trace).valid
