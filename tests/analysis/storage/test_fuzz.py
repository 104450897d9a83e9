"""Whatever is made of a trace: a result, or an error of attrace or of the system. tests/fuzz goes on for longer."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fuzz.fuzz_reader import bases, try_input, use
from hypothesis import given, settings, strategies as st

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Any document, NaN and infinities among its numbers."""

PLACES = ("", "step_done", "images", "images/generated", "reference/64x16h2d8", "reference/64x16h2d8/key_step")

MEMBERS = ("attributes", "shape", "data_type", "chunk_grid", "codecs", "fill_value", "node_type", "dimension_names")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return bases(tmp_path_factory.mktemp("originals"))


@settings(max_examples=25)
@given(number=st.integers(0, 2**40))
def test_a_trace_that_is_damaged_at_random(originals: list[Path], number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert try_input(number, originals, Path(folder)) is None


@settings(max_examples=25)
@given(place=st.sampled_from(PLACES), member=st.sampled_from(MEMBERS), value=JSON)
def test_metadata_of_any_value(originals: list[Path], place: str, member: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(originals[2], Path(folder) / "run.zarr"))
        file = path / place / "zarr.json"
        document = json.loads(file.read_text())
        file.write_text(json.dumps(document | {member: value}))
        use(path)


@settings(max_examples=25)
@given(value=JSON, member=st.sampled_from(["classes", "steps", "guidance", "capture", "omitted", "id", "version"]))
def test_a_manifest_of_any_value(originals: list[Path], value: Any, member: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(originals[2], Path(folder) / "run.zarr"))
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["attrace"][member] = value
        (path / "zarr.json").write_text(json.dumps(document))
        use(path)


@settings(max_examples=25)
@given(content=st.binary(max_size=200), keep=st.integers(0, 4000))
def test_a_file_of_any_bytes(originals: list[Path], content: bytes, keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zip"
        path.write_bytes(content + originals[-1].read_bytes()[-keep:])
        use(path)
