"""Traces of two sets are paired by name or by their inputs, and what has no partner is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.documents import edit_document, seal_again
from support.traces import make_trace

from attrace.analysis.studies.pairing import pair_traces
from attrace.schemas import InputError


def make(path: Path, **members: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_trace(path, steps=1, **members).path


def test_traces_are_paired_by_their_path_below_the_folder(tmp_path: Path) -> None:
    for name in ("a/1.zarr", "a/deep/2.zarr", "a/3.zarr", "b/1.zarr", "b/deep/2.zarr", "b/2.zarr"):
        make(tmp_path / name)
    pairing = pair_traces(tmp_path / "a", tmp_path / "b")
    assert [pair.name for pair in pairing.pairs] == ["1", "deep/2"]
    assert pairing.pairs[1].b == str(tmp_path / "b/deep/2.zarr")
    assert set(pairing.unpaired) == {str(tmp_path / "a/3.zarr"), str(tmp_path / "b/2.zarr")}
    assert pair_traces(f"{tmp_path}/a/*.zarr", f"{tmp_path}/b/*.zarr").pairs[0].name == "1"


def test_two_single_traces_are_a_pair_whatever_their_names(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one.zarr"), make(tmp_path / "two.zarr")
    (pair,) = pair_traces(one, two).pairs
    assert (pair.name, pair.a, pair.b) == ("one", str(one), str(two))


def test_traces_are_paired_by_their_inputs(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)

    def put(path: str, seed: int, prompt: str, value: int, scale: float) -> None:
        make(
            tmp_path / path,
            images={"reference": picture + np.uint8(value), "generated": picture + np.uint8(len(path))},
            call_arguments={"prompt": prompt, "guidance_scale": scale},
        )
        edit_document(tmp_path / path / "zarr.json", lambda root: root["attributes"]["attrace"].update(seed=seed))
        seal_again(tmp_path / path)

    put("a/x.zarr", 1, "a cat", 0, 3.0)
    put("a/y.zarr", 2, "a cat", 0, 3.0)
    put("a/z.zarr", 1, "a dog", 0, 3.0)
    put("b/1.zarr", 2, "a cat", 0, 7.5)
    put("b/2.zarr", 1, "a cat", 0, 7.5)
    put("b/3.zarr", 1, "a dog", 9, 7.5)
    pairing = pair_traces(tmp_path / "a", tmp_path / "b", by="inputs")
    assert [(Path(pair.a).stem, Path(pair.b).stem) for pair in pairing.pairs] == [("x", "2"), ("y", "1")]
    assert {Path(path).stem for path in pairing.unpaired} == {"z", "3"}


def test_several_traces_of_the_same_inputs_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a/1.zarr", "a/2.zarr", "b/1.zarr"):
        make(tmp_path / name)
    with pytest.raises(InputError, match="pair them by name"):
        pair_traces(tmp_path / "a", tmp_path / "b", by="inputs")


def test_nothing_to_pair_says_what_was_found(tmp_path: Path) -> None:
    make(tmp_path / "a/1.zarr")
    make(tmp_path / "b/2.zarr")
    with pytest.raises(InputError, match=r"such as 1\).*such as 2\).*pair them by inputs"):
        pair_traces(tmp_path / "a", tmp_path / "b")


def test_a_broken_trace_is_named_when_pairing_by_inputs(tmp_path: Path) -> None:
    for name in ("a/1.zarr", "a/2.zarr", "b/1.zarr"):
        make(tmp_path / name, images={"reference": np.full((4, 4), int(name[2]), np.uint8)})
    (tmp_path / "a/2.zarr/zarr.json").write_text("{")
    pairing = pair_traces(tmp_path / "a", tmp_path / "b", by="inputs")
    assert list(pairing.broken) == [str(tmp_path / "a/2.zarr")]
    assert len(pairing.pairs) == 1
