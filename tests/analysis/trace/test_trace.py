"""Opening traces, what they tell, selections, lazy labelled arrays, and errors that say what to do."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from support.exact import Call, counted_reads, no_computing, random_calls, write_calls
from support.traces import MadeTrace, make_trace, site_class

import attrace.analysis
from attrace.analysis import Trace, marginals, open_trace
from attrace.schemas import (
    InputError,
    KeySegment,
    SelectionError,
    SiteClass,
    TraceFormatError,
    TraceNotFoundError,
    TraceVersionError,
)

TOKENS = ("<|startoftext|>", "a</w>", "dog</w>")

FACTORS = site_class(layers=("down.0.attn2", "up.0.attn2"), cls=True, group="reference/64x17h2d8")
SCORES = site_class(
    "reference/16x16h3d8", encoding="scores", heads=3, query_grid=(2, 8), layers=("mid.attn2",), first_order=1
)
TEXT = site_class(
    "text/64x3h2d8", key_grid=None, keys=3, key_segments=(KeySegment(kind="text", count=3),), tokens=TOKENS
)
UNCONDITIONAL = site_class("reference.unconditional/64x16h2d8", branch="unconditional", context="reference")
CLASSES = (FACTORS, SCORES, TEXT, UNCONDITIONAL)
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeTrace:
    path = tmp_path_factory.mktemp("traces") / "run.zarr"
    return make_trace(
        path, CLASSES, steps=4, images={"generated": PICTURE, "mask": PICTURE[..., 0]}, image_size=(32, 32)
    )


@pytest.fixture
def trace(made: MadeTrace) -> Trace:
    return open_trace(made.path)


def scores_of(trace: Trace, group: str) -> xr.DataArray:
    scores = trace.scores[group]["scores"]
    assert isinstance(scores, xr.DataArray)
    return scores


class TestOpening:
    def test_only_metadata_is_read(self, made: MadeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
        with counted_reads(monkeypatch) as read, no_computing():
            trace = open_trace(made.path)
            repr(trace)
            assert trace.scores["reference"]
            assert trace.tree["reference"]
            assert trace.images["generated"].shape == (32, 32, 3)
        assert {key.partition("/c/")[0] for key in read} == {"time", "timestep", "step_done"}

    def test_what_it_tells(self, trace: Trace, made: MadeTrace) -> None:
        assert trace.path == str(made.path)
        assert trace.status == "complete"
        assert not trace.interrupted
        assert trace.steps == 4
        assert trace.time.tolist() == [0, 1, 2, 3]
        assert trace.timesteps.tolist() == [1000, 900, 800, 700]
        assert trace.context == "reference"
        assert trace.contexts == ("reference", "text")
        assert trace.branches == ("conditional", "unconditional")
        assert trace.heads == (0, 1, 2)
        assert [one.group for one in trace.classes] == ["reference/64x17h2d8", "reference/16x16h3d8"]

    def test_layers_are_in_the_order_of_calls(self, trace: Trace) -> None:
        # orders 0 and 1 in the first class, 1 in the second: equal orders keep the order of the classes
        assert trace.layers == ("down.0.attn2", "up.0.attn2", "mid.attn2")

    def test_the_summary_is_short_and_useful(self, trace: Trace) -> None:
        text = repr(trace)
        for words in (trace.path, "Made", "4 steps, complete", "reference (also text)", "17 keys (1 cls + 4x4 patch)"):
            assert words in text
        assert len(text.splitlines()) < 10
        assert all(len(line) < 140 for line in text.splitlines()[1:])

    def test_a_zip(self, trace: Trace, made: MadeTrace, tmp_path: Path) -> None:
        packed = tmp_path / "run.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(made.path.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(made.path))
        unpacked = open_trace(packed)
        assert unpacked.manifest == trace.manifest
        np.testing.assert_array_equal(scores_of(unpacked, FACTORS.group), scores_of(trace, FACTORS.group))

    def test_a_zarr_store_and_a_file_address(self, made: MadeTrace) -> None:
        assert open_trace(zarr.storage.LocalStore(made.path, read_only=True)).steps == 4
        assert open_trace(f"file://{made.path}").steps == 4

    def test_an_address(self, made: MadeTrace, memory: Any) -> None:
        remote = open_trace(memory.put(made.path, "memory://run.zarr"))
        np.testing.assert_array_equal(remote.images["generated"], PICTURE)

    def test_a_client_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "obstore", None)
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(ImportError, match=r"pip install 'attrace\[cluster\]'"):
            open_trace("s3://bucket/run.zarr")

    def test_it_can_be_pickled(self, trace: Trace) -> None:
        again = pickle.loads(pickle.dumps(trace.sel(layer="mid*")))
        assert again.layers == ("mid.attn2",)
        np.testing.assert_array_equal(scores_of(again, SCORES.group), scores_of(trace, SCORES.group))


class TestRefusals:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(TraceNotFoundError, match="there is no such file or folder"):
            open_trace(tmp_path / "none.zarr")

    def test_a_folder_that_is_no_trace(self, tmp_path: Path) -> None:
        with pytest.raises(TraceFormatError, match="expected a Zarr v3 group"):
            open_trace(tmp_path)

    def test_a_file_that_is_no_trace(self, tmp_path: Path) -> None:
        (tmp_path / "run.zarr").write_text("?")
        with pytest.raises(TraceFormatError, match=r"expected a folder or a \.zip file"):
            open_trace(tmp_path / "run.zarr")

    def test_another_zarr_group(self, tmp_path: Path) -> None:
        zarr.create_group(tmp_path / "other.zarr")
        with pytest.raises(TraceFormatError, match="no such attribute"):
            open_trace(tmp_path / "other.zarr")

    def test_a_zarr_array(self, tmp_path: Path) -> None:
        zarr.create_array(tmp_path / "array.zarr", shape=(2,), dtype="f4")
        with pytest.raises(TraceFormatError, match="is not an attrace trace"):
            open_trace(tmp_path / "array.zarr")

    def test_metadata_that_cannot_be_read(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "run.zarr").path
        (path / "zarr.json").write_text("{")
        with pytest.raises(TraceFormatError, match=r"zarr\.json cannot be read"):
            open_trace(path)

    def test_a_newer_version(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "run.zarr").path
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["attrace"]["version"] = "3.0"
        (path / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(TraceVersionError, match=r"version 3\.0"):
            open_trace(path)

    def test_an_array_that_is_missing(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "run.zarr", status=None).path
        (path / "reference/64x16h2d8/query_vector/zarr.json").unlink()
        with pytest.raises(TraceFormatError, match="lacks the array 'reference/64x16h2d8/query_vector'"):
            _ = open_trace(path).scores

    @pytest.mark.parametrize("damage", ["flip", "cut"])
    def test_a_broken_chunk_is_named(self, tmp_path: Path, damage: str) -> None:
        path = make_trace(tmp_path / "run.zarr").path
        chunk = path / "reference/64x16h2d8/query_vector/c/2/1/0/0/0"
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content if damage == "flip" else content[: len(content) // 2])
        scores = scores_of(open_trace(path), "reference/64x16h2d8")
        np.testing.assert_array_equal(scores[:2].shape, (2, 2, 2, 64, 16))
        scores[:2].compute()
        with pytest.raises(TraceFormatError, match=r"chunk c/2/1/0/0/0 of array 'reference/64x16h2d8/query_vector'"):
            scores.compute()

    def test_the_broken_chunk_is_found_among_several(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "run.zarr").path
        (path / "reference/64x16h2d8/query_vector/c/1/0/0/0/0").write_bytes(b"?")
        stored = open_trace(path).stored.array("reference/64x16h2d8/query_vector")
        for selection in ((slice(0, 3), 0), (..., slice(None)), slice(None)):
            with pytest.raises(TraceFormatError, match="chunk c/1/0/0/0/0 "):
                stored[selection]


class TestUnfinished:
    @pytest.mark.parametrize("status", ["interrupted", None])
    def test_every_finished_step_is_there(self, tmp_path: Path, status: str | None) -> None:
        made = make_trace(tmp_path / "run.zarr", steps=3, status=status)
        trace = open_trace(made.path)
        assert trace.interrupted
        assert trace.status == (status or "recording")
        np.testing.assert_allclose(
            scores_of(trace, "reference/64x16h2d8"), made.scores["reference/64x16h2d8"], rtol=1e-4, atol=1e-5
        )

    def test_steps_that_are_not_done_are_not_seen(self, tmp_path: Path) -> None:
        made = make_trace(tmp_path / "run.zarr", steps=4, status=None)
        zarr.open_array(made.path / "step_done")[:] = np.array([1, 0, 1, 0], np.uint8)
        trace = open_trace(made.path)
        assert trace.time.tolist() == [0, 2]
        found = scores_of(trace, "reference/64x16h2d8")
        np.testing.assert_allclose(found, made.scores["reference/64x16h2d8"][[0, 2]], rtol=1e-4, atol=1e-5)

    def test_before_the_first_step(self, tmp_path: Path) -> None:
        path = write_calls(tmp_path / "run.zarr", (), {}, steps=0, status=None)
        trace = open_trace(path)
        assert (trace.steps, trace.layers, trace.context, trace.contexts) == (0, (), None, ())
        assert "0 steps, recording" in repr(trace)
        assert list(trace.scores.children) == []

    def test_of_no_finished_step_what_needs_one_says_so(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "run.zarr", (FACTORS, SCORES), steps=0).path
        for ask in (lambda trace: trace.scores, lambda trace: trace.tree, marginals):
            with pytest.raises(InputError, match=r"run\.zarr has no finished step"):
                ask(open_trace(path))
        with pytest.raises(InputError, match="has no finished step"):
            xr.open_datatree(path, engine="attrace")


class TestScores:
    def test_whatever_the_encoding(self, trace: Trace, made: MadeTrace) -> None:
        for one in (FACTORS, SCORES):
            scores = scores_of(trace, one.group)
            assert scores.dims == ("time", "layer", "head", "query", "key")
            assert scores.dtype == np.float32
            np.testing.assert_allclose(scores, made.scores[one.group], rtol=1e-4, atol=1e-5)

    def test_coordinates(self, trace: Trace) -> None:
        scores = scores_of(trace, FACTORS.group)
        assert scores.layer.values.tolist() == ["down.0.attn2", "up.0.attn2"]
        assert scores.timestep.values.tolist() == [1000, 900, 800, 700]
        assert scores["head"].values.tolist() == [0, 1]
        assert scores.query_row.values.tolist() == np.repeat(range(8), 8).tolist()
        assert scores.query_column.values.tolist() == [*range(8)] * 8
        assert scores.key_kind.values.tolist() == ["cls"] + ["patch"] * 16
        assert scores.key_row.values.tolist() == [-1, *np.repeat(range(4), 4)]
        assert scores.key_column.values.tolist() == [-1, *[*range(4)] * 4]
        assert scores_of(trace.sel(context="text"), TEXT.group).token.values.tolist() == list(TOKENS)

    def test_a_part_reads_only_its_chunks(self, trace: Trace, made: MadeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
        with no_computing():
            part = scores_of(trace, FACTORS.group).sel(layer="up.0.attn2").isel(time=2, head=1, query=slice(5, 9))
        with counted_reads(monkeypatch) as read:
            values = part.values
        np.testing.assert_allclose(values, made.scores[FACTORS.group][2, 1, 1, 5:9], rtol=1e-4, atol=1e-5)
        assert sorted(key.removeprefix(FACTORS.group) for key in read) == [
            "/key_step/c/0/0",
            "/key_vector/c/0/1/0/0/0",  # the key did not change: it is stored once
            "/query_vector/c/2/1/0/0/0",
        ]

    def test_gaps_bias_and_float64(self, tmp_path: Path) -> None:
        one = site_class(dtype="float64", has_bias=True)
        calls = random_calls((one,), steps=2)
        bias = np.linspace(-1, 0, 16).astype(np.float32)
        calls = {place: Call(call.query, call.key, bias) for place, call in calls.items()}
        del calls[one.group, 1, 0]
        trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=2))
        scores = scores_of(trace, one.group)
        assert scores.dtype == np.float64
        assert bool(scores[1, 0].isnull().all())
        np.testing.assert_allclose(scores[1, 1], calls[one.group, 1, 1].scores(one.scale), rtol=1e-12)
        stored = trace.tree[one.group].dataset
        assert bool(stored["key_vector"][1, 0].isnull().all())
        np.testing.assert_array_equal(stored["bias"][1, 1], bias)

    def test_large_layers_are_split(self, made: MadeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
        from attrace.analysis.trace import views

        for limit, heads, queries in ((64 * 17 * 4, 1, 64), (20 * 17 * 4, 1, 20)):
            monkeypatch.setattr(views, "BLOCK_BYTES", limit)
            scores = scores_of(open_trace(made.path), FACTORS.group)
            assert scores.data.chunksize == (1, 1, heads, queries, 17)
            np.testing.assert_allclose(scores, made.scores[FACTORS.group], rtol=1e-4, atol=1e-5)


class TestTree:
    def test_the_stored_arrays(self, trace: Trace) -> None:
        stored = trace.tree[FACTORS.group]
        assert stored["query_vector"].dims == ("time", "layer", "head", "query", "feature")
        assert stored["key_vector"].dims == ("time", "layer", "head", "key", "feature")
        product = stored.attrs["scale"] * xr.dot(stored["query_vector"], stored["key_vector"], dim="feature")
        expected = scores_of(trace, FACTORS.group)
        np.testing.assert_allclose(product.transpose(*expected.dims), expected, rtol=1e-4, atol=1e-5)

    def test_selected(self, trace: Trace) -> None:
        part = trace.sel(layer="up*", time=[1, 3], head=1).tree[FACTORS.group]
        whole = trace.tree[FACTORS.group]
        for name in ("query_vector", "key_vector"):
            np.testing.assert_array_equal(part[name], whole[name].isel(time=[1, 3], layer=[1], head=[1]))

    def test_images(self, trace: Trace) -> None:
        assert list(trace.images) == ["generated", "mask"]
        assert trace.images["generated"].dims == ("row", "column", "channel")
        assert trace.images["mask"].dims == ("row", "column")
        np.testing.assert_array_equal(trace.images["mask"], PICTURE[..., 0])


class TestSelections:
    @pytest.mark.parametrize(
        ("layer", "expected"),
        [
            ("up.*", ["up.0.attn2"]),
            ("*.attn2", ["down.0.attn2", "up.0.attn2", "mid.attn2"]),
            (["mid.attn2", "down.*"], ["down.0.attn2", "mid.attn2"]),
            ("mid.attn2", ["mid.attn2"]),
            ("up.0", ["up.0.attn2"]),
            (["mid", "down.0"], ["down.0.attn2", "mid.attn2"]),
        ],
    )
    def test_layers(self, trace: Trace, layer: Any, expected: list[str]) -> None:
        assert list(trace.sel(layer=layer).layers) == expected

    @pytest.mark.parametrize(
        ("time", "expected"),
        [
            (2, [2]),
            ([3, 0], [0, 3]),
            (range(1, 3), [1, 2]),
            (np.array([1]), [1]),
            (slice(1, 2), [1, 2]),
            (slice(None, 1), [0, 1]),
            (slice(0, 3, 2), [0, 2]),
        ],
    )
    def test_steps(self, trace: Trace, made: MadeTrace, time: Any, expected: list[int]) -> None:
        part = trace.sel(time=time)
        assert part.time.tolist() == expected
        np.testing.assert_allclose(
            scores_of(part, SCORES.group), made.scores[SCORES.group][expected], rtol=1e-4, atol=1e-5
        )

    def test_heads(self, trace: Trace) -> None:
        assert trace.sel(head=2).layers == ("mid.attn2",)
        part = trace.sel(head=[0, 2])
        assert part.heads == (0, 2)
        np.testing.assert_array_equal(scores_of(part, SCORES.group), scores_of(trace, SCORES.group).isel(head=[0, 2]))
        assert scores_of(part, FACTORS.group)["head"].values.tolist() == [0]

    def test_they_compose_and_change_nothing(self, trace: Trace) -> None:
        with no_computing():
            part = trace.sel(time=slice(1, 3)).sel(layer="*.attn2", head=[0, 1]).sel(time=[3], layer="up.*")
        assert (part.layers, part.time.tolist(), part.heads) == (("up.0.attn2",), [3], (0, 1))
        assert (trace.steps, len(trace.layers)) == (4, 3)

    def test_contexts_and_branches(self, trace: Trace) -> None:
        assert trace.sel(context="text").context == "text"
        assert trace.sel(context="text").layers == ("down.0.attn2", "up.0.attn2")
        other = trace.sel(branch="unconditional")
        assert [one.group for one in other.classes] == ["reference.unconditional/64x16h2d8"]
        assert other.sel(context="text").branch == "conditional"
        assert trace.sel(layer="up*").sel(context="text").layers == ("up.0.attn2",)

    @pytest.mark.parametrize(
        ("selection", "message"),
        [
            ({"layer": "upp.0.attn2"}, r"no layer 'upp.0.attn2' .* did you mean up.0.attn2"),
            ({"layer": ["mid*", "x"]}, "no layer 'x'"),
            ({"time": 9}, "no time 9 .* it has 0, 1, 2, 3"),
            ({"time": slice(7, 9)}, "no time '7:9'"),
            ({"head": 3}, "no head 3 .* it has 0, 1, 2"),
            ({"context": "self"}, "no context 'self' .* it has reference, text"),
            ({"branch": "negative"}, "no branch 'negative' .* it has conditional, unconditional"),
        ],
    )
    def test_labels_that_name_nothing(self, trace: Trace, selection: dict[str, Any], message: str) -> None:
        with pytest.raises(SelectionError, match=message):
            trace.sel(**selection)

    def test_a_context_without_what_was_selected(self, trace: Trace) -> None:
        with pytest.raises(SelectionError, match="select the context first"):
            trace.sel(layer="mid.attn2").sel(context="text")

    def test_what_was_left_out_cannot_be_selected(self, trace: Trace) -> None:
        with pytest.raises(SelectionError, match=r"among what is selected: it has up\.0\.attn2"):
            trace.sel(layer="up*").sel(layer="mid.attn2")


def test_images_of_a_store_that_cannot_list(made: MadeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr.storage.LocalStore, "supports_listing", False)
    root = zarr.open_group(zarr.storage.LocalStore(made.path), mode="r", use_consolidated=False)
    trace = open_trace(made.path)
    assert trace.stored.root.metadata.consolidated_metadata is not None
    assert root.metadata.consolidated_metadata is None
    from attrace.analysis.storage.store import StoredTrace
    from attrace.analysis.trace.trace import trace_of

    unlisted = trace_of(StoredTrace(trace.path, root, trace.manifest))
    assert list(unlisted.images) == ["generated", "mask"]


def test_the_face_names_what_it_offers() -> None:
    public = [name for name in dir(attrace.analysis) if not name.startswith("_")]
    assert "open_trace" in public
    assert all(callable(getattr(attrace.analysis, name)) for name in public)


def test_single_class_of_one_key(tmp_path: Path) -> None:
    one: SiteClass = site_class("reference/64x1h2d8", key_grid=None, cls=True)
    trace = open_trace(make_trace(tmp_path / "run.zarr", (one,)).path)
    assert scores_of(trace, one.group).shape == (3, 2, 2, 64, 1)
