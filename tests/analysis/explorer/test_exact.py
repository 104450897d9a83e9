"""What an explorer asks of a trace, answered exactly: by the same functions that give every map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from support.traces import MadeTrace, make_trace, site_class

from attrace.analysis import Trace, open_trace, sram, ulam
from attrace.analysis.explorer.exact import ExactAnswers
from attrace.schemas import InputError

REFERENCE = site_class(layers=("down.0.attn2",), cls=True)
COARSER = site_class("reference/16x16h2d8", query_grid=(4, 4), layers=("mid.attn2", "up.0.attn2"), first_order=1)
TEXT = site_class(
    "text/64x9h2d8",
    key_grid=None,
    keys=9,
    key_segments=({"kind": "text", "count": 3}, {"kind": "pad", "count": 6}),
    tokens=("a", "red", "cat", *["pad"] * 6),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeTrace:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    path = tmp_path_factory.mktemp("exact") / "run.zarr"
    return make_trace(path, (REFERENCE, COARSER, TEXT), steps=5, spread=1.5, images={"mask": mask}, image_size=(32, 32))


@pytest.fixture(scope="module")
def trace(made: MadeTrace) -> Trace:
    return open_trace(made.path)


@pytest.fixture(scope="module")
def answers(trace: Trace) -> ExactAnswers:
    return ExactAnswers(trace, groups=2)


def asked(answers: ExactAnswers, *parts: str, **changes: Any) -> tuple[Any, list[NDArray[np.float32]]]:
    """The share, and the parts of the answer to a question that differs so from the plainest one."""
    plain = {"relation": 0, "from": "generated", "region": "all", "layer": -1, "head": -1, "group": -1, "unit": "even"}
    head, arrays = answers.answer({"id": 1, "parts": parts or ("map",), **plain, **changes})
    return head["share"], arrays


def test_maps_are_those_of_sram(trace: Trace, answers: ExactAnswers) -> None:
    box, parts = (12, 24, 16, 28), ("map", "layers", "heads", "groups")
    _, found = asked(answers, *parts, region=[3, 6, 4, 7], unit="share")
    levels: Any = {"map": "ulam", "layers": "llam", "heads": "hlam", "groups": "tlam"}
    for values, part in zip(found, parts, strict=True):
        options: Any = {"groups": 2} if part == "groups" else {}
        expected = sram(trace, box, level=levels[part], density=False, **options)
        np.testing.assert_allclose(values, expected.values.ravel(), rtol=1e-6)
    _, (values,) = asked(answers, region=[1, 3, 2, 4], **{"from": "keys"}, layer=2, head=1, group=1)
    chosen = trace.sel(layer="up.0.attn2", head=1, time=slice(2, 4))
    np.testing.assert_allclose(values, sram(chosen, (1, 3, 2, 4), direction="r2g").values.ravel(), rtol=1e-6)
    _, (values,) = asked(answers, region="mask")
    mask = trace.images["mask"].values > 127
    np.testing.assert_allclose(values, sram(trace, mask).values.ravel(), rtol=1e-6)
    _, (values,) = asked(answers)
    np.testing.assert_allclose(values, ulam(trace, direction="g2r").values.ravel(), rtol=1e-6)


def test_a_layer_without_the_chosen_head_has_no_value(tmp_path: Path) -> None:
    classes = (REFERENCE, site_class("reference/64x16h1d8", heads=1, layers=("up.1.attn2",), first_order=3))
    answers = ExactAnswers(open_trace(make_trace(tmp_path / "run.zarr", classes).path))
    _, (layers, heads) = asked(answers, "layers", "heads", head=1, layer=1, region=[0, 0, 1, 1])
    assert np.isfinite(layers.reshape(2, -1)).all(axis=1).tolist() == [True, False]
    assert np.isfinite(heads.reshape(2, -1)).all(axis=1).tolist() == [True, False]


def test_words_get_their_share_and_padding_its_mean(made: MadeTrace, trace: Trace, answers: ExactAnswers) -> None:
    share, (values, groups) = asked(answers, "map", "groups", relation=1, region=[5, 2, 6, 3], unit="share")
    weights = softmax(made.scores[TEXT.group], -1)[:, :, :, 5 * 8 + 2]
    listed = np.concatenate([weights[..., :3], weights[..., 3:].mean(-1, keepdims=True)], -1)
    np.testing.assert_allclose(values, listed.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(groups.reshape(2, 4)[0], listed[:2].mean(axis=(0, 1, 2)), rtol=1e-5)
    assert share is None
    _, (values,) = asked(answers, relation=1, **{"from": "keys"}, region=[3, 0, 4, 1])
    expected = ulam(trace.sel(context="text"), keys=list(range(3, 9)))
    np.testing.assert_allclose(values, expected.values.ravel(), rtol=1e-6)


@pytest.mark.parametrize("unit", ["even", "share"])
def test_what_other_keys_get_is_told(tmp_path: Path, unit: str) -> None:
    made = make_trace(tmp_path / "run.zarr", (REFERENCE,), spread=1.5)
    share, _ = asked(ExactAnswers(open_trace(made.path)), region=[5, 2, 6, 3], unit=unit)
    over_keys = softmax(made.scores[REFERENCE.group], -1)[:, :, :, 5 * 8 + 2]
    assert share == pytest.approx(1 - over_keys[..., 0].mean(), rel=1e-5)  # the first key is the class token


@pytest.mark.parametrize(
    "question",
    [
        {"region": [0, 0, 9, 9]},
        {"region": [3, 3, 3, 4]},
        {"region": "somewhere"},
        {"from": "nowhere"},
        {"layer": 7},
        {"head": -2},
        {"relation": 2},
        {"parts": ["pictures"]},
        {"unit": []},
    ],
    ids=str,
)
def test_what_is_no_question_is_refused(answers: ExactAnswers, question: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        asked(answers, **question)
    with pytest.raises(InputError, match="expected a question"):
        answers.answer({"id": 1})
