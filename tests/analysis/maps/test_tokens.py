"""Token maps: words found among tokens, maps of the definition, and DAAM's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exact import LayerMaps, bicubic, level_of, no_computing, random_calls, softmax, write_calls
from support.traces import make_trace, site_class

from attrace.analysis import Trace, open_trace, token_map
from attrace.analysis.maps import daam
from attrace.analysis.maps.tokens import token_positions
from attrace.schemas import InputError, KeySegment, Level, SelectionError, SiteClass

CLIP = ("<|startoftext|>", "a</w>", "cor", "gi</w>", "and</w>", "a</w>", "cat</w>", "<|endoftext|>")
T5 = ("\u2581A", "\u2581cor", "gi", "\u2581and", "\u2581a", "\u2581cat", "</s>", "<pad>")
BYTES = ("user", "\u010a", "Cat", "\u0120,", "\u0120cat", ",", "\u0120cats", "<|im_end|>")
PIECES = ("\u2581", "corg", "i", ",", "\u2581a", "\u2581", "cat", "</s>")
PLAIN = ("a", "corgi", "and", "a", "cat", ".", "", "")
STEPS = 5


def text_class(group: str = "text/64x8h2d8", *, tokens: tuple[str, ...] | None = CLIP, **members: Any) -> SiteClass:
    count = members.pop("count", 8)
    segments = (KeySegment(kind="text", count=count),)
    return site_class(group, key_grid=None, keys=count, key_segments=segments, tokens=tokens, **members)


CLASSES = (
    text_class(layers=("down.0", "up.0")),
    text_class("text/16x8h2d8", query_grid=(4, 4), layers=("mid",), encoding="scores", first_order=1),
)
CALLS = random_calls(CLASSES, STEPS)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(write_calls(tmp_path_factory.mktemp("tokens") / "run.zarr", CLASSES, CALLS, steps=STEPS))


def exact_layers(classes: tuple[SiteClass, ...], calls: Any, places: list[int]) -> list[LayerMaps]:
    found = []
    for one in classes:
        assert one.query_grid is not None
        for layer, site in enumerate(one.sites):
            scores = np.stack([calls[one.group, step, layer].scores(one.scale) for step in range(STEPS)])
            values = softmax(scores, 3)[..., places].mean(axis=3).reshape(STEPS, one.heads, *one.query_grid)
            found.append(LayerMaps(site.path, site.order, values))
    return found


class TestWords:
    @pytest.mark.parametrize(
        ("tokens", "word", "places"),
        [
            (CLIP, "corgi", [2, 3]),
            (CLIP, "Corgi", [2, 3]),
            (CLIP, "a", [1, 5]),
            (CLIP, "a cat", [5, 6]),
            (CLIP, "<|endoftext|>", [7]),
            (T5, "corgi", [1, 2]),
            (T5, "corgi and a", [1, 2, 3, 4]),
            (T5, "a", [0, 4]),
            (BYTES, "cat", [2, 4]),
            (BYTES, "user", [0]),
            (BYTES, "cat,", [2, 3, 4, 5]),
            (PIECES, "corgi", [0, 1, 2]),
            (PIECES, "a cat", [4, 5, 6]),
            (PLAIN, "corgi", [1]),
            (PLAIN, "a cat", [3, 4]),
        ],
    )
    def test_found(self, tokens: tuple[str, ...], word: str, places: list[int]) -> None:
        assert token_positions(text_class(tokens=tokens), word) == places

    def test_found_in_the_text_of_each_tokenizer(self) -> None:
        clip = ("<|startoftext|>", "cat</w>", "<|endoftext|>", "<|endoftext|>")
        t5 = ("\u2581cat", "s", "\u2581cat", "</s>", "<pad>")
        counts = (("text", 3), ("pad", 1), ("text", 4), ("pad", 1))
        segments = tuple(KeySegment(kind=kind, count=count) for kind, count in counts)  # type: ignore[arg-type]
        one = site_class("text/64x9h2d8", key_grid=None, keys=9, key_segments=segments, tokens=(*clip, *t5))
        assert token_positions(one, "cat") == [1, 6]
        assert token_positions(one, "cats") == [4, 5]

    @pytest.mark.parametrize(
        ("tokens", "word"),
        [(CLIP, "cor"), (CLIP, "gi"), (CLIP, "dog"), (CLIP, " "), (T5, "gi"), (BYTES, "s"), (PIECES, "corg")],
    )
    def test_parts_of_words_are_not_found(self, tokens: tuple[str, ...], word: str) -> None:
        with pytest.raises(SelectionError, match=f"no word '{word}' among its tokens"):
            token_positions(text_class(tokens=tokens), word)

    def test_several_words_and_places(self) -> None:
        assert token_positions(text_class(), ["cat", 0, "corgi"]) == [0, 2, 3, 6]

    @pytest.mark.parametrize(("tokens", "error"), [([], InputError), (8, SelectionError), ([-1], SelectionError)])
    def test_what_is_none(self, tokens: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            token_positions(text_class(), tokens)

    def test_tokens_that_are_not_known(self) -> None:
        with pytest.raises(InputError, match="does not know the tokens"):
            token_positions(text_class(tokens=None), "cat")
        assert token_positions(text_class(tokens=None), 3) == [3]


@pytest.mark.parametrize("level", ["ulam", "tlam", "hlam", "llam"])
def test_every_level(trace: Trace, level: Level) -> None:
    with no_computing():
        found = token_map(trace, "corgi", level=level)
    groups = [slice(step, step + 1) for step in range(STEPS)]
    expected = level_of(exact_layers(CLASSES, CALLS, [2, 3]), level, (8, 8), groups)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
    assert found.attrs["tokens"] == ["corgi"]
    assert found.attrs["level"] == level
    assert found.attrs["long_name"] == "token attribution"


def test_layers_and_size(trace: Trace) -> None:
    found = token_map(trace, [6], layers="mid", size=(5, 5))
    expected = level_of(exact_layers(CLASSES[1:], CALLS, [6]), "ulam", (5, 5))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def test_the_text_context_is_taken_by_itself(tmp_path: Path) -> None:
    classes = (site_class(), CLASSES[0])
    calls = random_calls(classes, STEPS)
    trace = open_trace(write_calls(tmp_path / "run.zarr", classes, calls, steps=STEPS))
    expected = level_of(exact_layers(classes[1:], calls, [6]), "ulam", (8, 8))
    np.testing.assert_allclose(token_map(trace, "cat"), expected, rtol=0, atol=1e-5 * expected.max())


def test_no_text_context(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr").path)
    with pytest.raises(InputError, match="has no text context, it has reference"):
        token_map(trace, "cat")


def test_the_layers_of_one_grid_are_what_prompt_to_prompt_averages(trace: Trace) -> None:
    found = token_map(trace, "corgi", grid=(4, 4))
    expected = level_of(exact_layers(CLASSES[1:], CALLS, [2, 3]), "ulam", (4, 4))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
    with pytest.raises(InputError, match="queries on a grid of 5 x 5"):
        token_map(trace, "corgi", grid=(5, 5))


class TestDaam:
    """Its formula on recordings of U-Nets is in tests/recorder/models/test_daam.py."""

    CLASSES = (
        text_class("text/64x77h2d8", layers=("down.0", "up.0"), tokens=None, count=77),
        text_class(
            "text/16x77h2d8", query_grid=(4, 4), layers=("down.1", "mid_block.0"), first_order=2, tokens=None, count=77
        ),
        text_class("text/100x77h2d8", query_grid=(10, 10), layers=("up.1",), first_order=4, tokens=None, count=77),
        text_class("text/64x8h2d8", layers=("other",), first_order=5),
    )

    @pytest.mark.parametrize(
        ("pixels", "side", "layers"),
        [
            (512, 64, ["down.1", "up.1"]),
            (1024, 64, ["down.1", "up.1"]),
            (768, 96, ["down.0", "down.1", "up.0", "up.1"]),
        ],
    )
    def test_as_the_tool_does_it(self, pixels: int, side: int, layers: list[str], tmp_path: Path) -> None:
        calls = random_calls(self.CLASSES, STEPS, spread=4)
        del calls["text/100x77h2d8", 1, 0]  # a call that is not there is not in the sum
        trace = open_trace(
            write_calls(tmp_path / "run.zarr", self.CLASSES, calls, steps=STEPS, image_size=(pixels, pixels))
        )
        exact = []
        for one in self.CLASSES[:3]:
            assert one.query_grid is not None
            for layer, site in enumerate(one.sites):
                if site.path in layers:
                    made = [calls[one.group, s, layer] for s in range(STEPS) if (one.group, s, layer) in calls]
                    summed = np.sum([softmax(call.scores(one.scale), 2) for call in made], axis=0)
                    by_token = np.moveaxis(summed[..., [5, 7]], 2, 1).reshape(2, 2, *one.query_grid)
                    # each token by itself: a negative overshoot of one takes nothing from the other
                    exact += [np.maximum(bicubic(token, (side, side)), 0) for head in by_token for token in head]
        expected = np.mean(exact, axis=0)
        found = daam.token_map(trace, [5, 7])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
        assert found.attrs["layers"] == len(layers)
        assert found.attrs["compat"] == "daam"

    def test_sums_of_groups_add_up(self, tmp_path: Path) -> None:
        calls = random_calls(self.CLASSES, STEPS)
        trace = open_trace(write_calls(tmp_path / "run.zarr", self.CLASSES, calls, steps=STEPS, image_size=(512, 512)))
        fine: dict[str, Any] = {"layers": "up.1", "size": (10, 10)}
        groups = daam.token_map(trace, 5, level="tlam", group_size=2, **fine)
        np.testing.assert_allclose(groups.sum("time_group"), daam.token_map(trace, 5, **fine), rtol=1e-5)

    def test_tokens_of_a_word_count_inside_other_words(self, tmp_path: Path) -> None:
        texts = ("<|startoftext|>", "cat</w>", "and</w>", "cat", "fish</w>", "<|endoftext|>")
        padding = 77 - len(texts)
        one = text_class(
            "text/16x77h2d8",
            query_grid=(4, 4),
            tokens=(*texts, *["cat</w>"] * padding),  # whatever the padding says
            count=77,
        ).model_copy(update={"key_segments": (KeySegment(kind="text", count=6), KeySegment(kind="pad", count=padding))})
        path = write_calls(tmp_path / "run.zarr", (one,), random_calls((one,), 1), steps=1, image_size=(512, 512))
        trace = open_trace(path)
        np.testing.assert_allclose(daam.token_map(trace, "cat"), daam.token_map(trace, [1, 3]))

    def test_normalised_needs_the_words(self, tmp_path: Path) -> None:
        calls = random_calls(self.CLASSES, 1)
        trace = open_trace(write_calls(tmp_path / "run.zarr", self.CLASSES, calls, steps=1, image_size=(512, 512)))
        with pytest.raises(InputError, match="does not know how many words"):
            daam.token_map(trace, 5, normalise=True)

    def test_no_layer_that_it_takes(self, trace: Trace) -> None:
        with pytest.raises(InputError, match="queries on a grid and 77 keys"):
            daam.token_map(trace, "cat")
