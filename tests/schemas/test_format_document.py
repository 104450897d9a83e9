"""docs/format.md says what the code does: its tables are the layout and the manifest, and its example runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.traces import MadeTrace, make_trace, site_class

from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.schemas import (
    ArraySpec,
    Manifest,
    ModelIdentity,
    SiteClass,
    class_arrays,
    derived_arrays,
    effect_array,
    root_arrays,
)
from attrace.schemas.export import load_json_schema
from attrace.schemas.layout import KEY_STEP
from attrace.schemas.manifest import MAX_CHUNK_BYTES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    """Text below a heading, up to the next of any level."""
    _, _, rest = DOCUMENT.partition(f"\n{title}\n")
    assert rest, title
    return re.split(r"\n##+ ", rest)[0]


def _rows(section: str) -> list[list[str]]:
    """Cells of the table of a section, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


ARRAYS = {name.strip("`"): cells for name, *cells in _rows(_section("## Arrays"))}
STEPS = 3000


def _all_arrays() -> dict[str, ArraySpec]:
    factors = site_class(has_bias=True, has_lse=True, dtype="float16", channels=24)
    scores = site_class(encoding="scores", dtype="float16")
    lists = (
        root_arrays(STEPS),
        class_arrays(factors, STEPS),
        class_arrays(scores, STEPS),
        derived_arrays(scores, STEPS),
        (effect_array(scores, by_head=True),),
    )
    return {spec.name: spec for specs in lists for spec in specs}


def test_the_document_lists_every_array() -> None:
    assert ARRAYS.keys() == _all_arrays().keys()


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_as_documented(name: str) -> None:
    _, dtype, dims, chunks = ARRAYS[name]
    spec = _all_arrays()[name]
    lengths = dict(zip(spec.dims, spec.shape, strict=True))
    expected_chunks = [
        lengths[dim] if chunk == "whole" else int(chunk)
        for dim, chunk in zip(dims.split(", "), chunks.split(", "), strict=True)
    ]
    assert spec.dims == tuple(dims.split(", "))
    assert spec.chunks == tuple(expected_chunks)
    assert spec.dtype == ("float16" if dtype == "class" else dtype)


@pytest.mark.parametrize("name", ["Manifest", "SiteClass", "KeySegment", "Site", "ModelIdentity", "Guidance"])
def test_a_manifest_object_is_as_documented(name: str) -> None:
    schema = load_json_schema()
    definition = schema if name == "Manifest" else schema["$defs"][name]
    rows = _rows(_section(f"### {name}"))
    documented = {row[0].strip("` *"): row for row in rows}
    assert list(documented) == list(definition["properties"])
    assert {member for member, row in documented.items() if row[0].endswith("*")} == set(definition.get("required", []))
    for member, (_, kind, default, _) in documented.items():
        described = definition["properties"][member]
        if default not in ("", "as below"):
            # a default that is made anew for each manifest is not in the schema: it is always empty
            assert json.loads(default.strip("`")) == described.get("default", {}), member
        assert set(re.findall(r'`"([^"]+)"`', kind)) == set(described.get("enum", [described.get("const")])) - {None}


def test_every_object_is_documented() -> None:
    headings = re.findall(r"\n### (\w+)\n", DOCUMENT)
    assert load_json_schema()["$defs"].keys() - {"JsonValue"} <= set(headings)


def test_limits_are_as_documented() -> None:
    limits = _section("### Types and limits")
    heads = load_json_schema()["$defs"]["SiteClass"]["properties"]["heads"]
    assert (heads["minimum"], heads["maximum"]) == (1, 2**24)
    assert "1 to 2^24" in limits
    assert MAX_CHUNK_BYTES == 2**31 - 1
    assert "at most 2^31 - 1 bytes" in limits


ReadRow = Callable[[dict[str, Any], int, int, int], NDArray[np.float64] | None]


def _run_example(monkeypatch: pytest.MonkeyPatch, made: MadeTrace) -> dict[str, Any]:
    """The names that the document's first example defines, run beside a trace called run.zarr."""
    example = next(block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "read_row" in block)
    assert "attrace." not in example
    monkeypatch.chdir(made.path.parent)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/format.md", "exec"), names)
    return names


@pytest.mark.parametrize("encoding", ["scores", "factors"])
@pytest.mark.parametrize("static_keys", [True, False])
def test_the_example_reads_every_row(
    encoding: str, static_keys: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = site_class(encoding=encoding, cls=True, dtype="float64")
    made = make_trace(tmp_path / "run.zarr", (one,), static_keys=static_keys)
    names = _run_example(monkeypatch, made)
    (described,) = names["manifest"]["classes"]
    truth = made.scores[one.group]
    assert names["finished"].tolist() == [0, 1, 2]
    for step, layer, query in [(0, 0, 0), (1, 1, 63), (2, 0, 17)]:
        row = names["read_row"](described, step, layer, query)
        np.testing.assert_allclose(row, truth[step, layer, :, query, :], rtol=1e-12)
        attention = names["softmax_over_keys"](described, step, layer, query)
        expected = np.exp(row) / np.exp(row).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(attention, expected, rtol=1e-12)


def _write_sparse(path: Path, one: SiteClass) -> MadeTrace:
    """One finished step in which only layer 0 was called, with a bias and a log-sum-exp; a second step unfinished."""
    store = TraceStore(path, Manifest(**new_manifest_fields(), denoiser=ModelIdentity(class_name="Made")), steps=4)
    store.add_classes((one,))
    random = np.random.default_rng(0)
    for step in range(2):
        for name, shape in {
            "query_vector": (2, 64, 8),
            "key_vector": (2, 16, 8),
            "bias": (16,),
            "lse": (2, 64),
        }.items():
            store.write(one.group, name, step=step, layer=0, values=random.normal(size=shape).astype(one.dtype))
        store.write(one.group, KEY_STEP, step=step, layer=0, values=step)
    store.finish_step(0, call=0, timestep=999.0)
    return MadeTrace(path)


def test_the_example_knows_gaps_bias_lse_and_unfinished_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site_class(has_bias=True, has_lse=True)
    names = _run_example(monkeypatch, _write_sparse(tmp_path / "run.zarr", one))
    (described,) = names["manifest"]["classes"]
    group = names["root"][one.group]
    assert names["finished"].tolist() == [0]
    assert names["read_row"](described, 0, 1, 5) is None
    query, key = group["query_vector"][0, 0, :, 5].astype(np.float64), group["key_vector"][0, 0].astype(np.float64)
    expected = one.scale * np.einsum("hf,hkf->hk", query, key) + group["bias"][0, 0]
    np.testing.assert_allclose(names["read_row"](described, 0, 0, 5), expected)
    attention = np.exp(expected - group["lse"][0, 0, :, 5][:, None])
    np.testing.assert_allclose(names["softmax_over_keys"](described, 0, 0, 5), attention)
