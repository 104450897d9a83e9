"""Attribution of chosen patches, and the place each patch looks at, are those of the definition."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.exact import LayerMaps, counted_reads, level_of, no_computing, random_calls, softmax, write_calls
from support.traces import site_class

from attrace.analysis import Trace, correspondence, open_trace, sram as default_sram
from attrace.analysis.maps.masks import coverage
from attrace.analysis.maps.sram import chosen_patches, picture_size
from attrace.schemas import Direction, InputError, Level, SelectionError, SiteClass

# without density, so that expected values are plain means; what density multiplies them by is tested by itself
sram = partial(default_sram, density=False)

STEPS = 5
IMAGE = (32, 24)
REFERENCE = np.zeros((16, 12, 3), np.uint8)
CLASSES = (
    site_class("reference/48x17h2d8", query_grid=(8, 6), cls=True, layers=("down.0", "up.0")),
    site_class("reference/12x6h3d8", query_grid=(4, 3), key_grid=(2, 3), heads=3, layers=("mid",), first_order=1),
)
CALLS = random_calls(CLASSES, STEPS)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("sram") / "run.zarr"
    return open_trace(write_calls(path, CLASSES, CALLS, steps=STEPS, image_size=IMAGE, images={"reference": REFERENCE}))


def exact_layers(direction: Direction, mask: NDArray[Any]) -> list[LayerMaps]:
    found = []
    for one in CLASSES:
        segment = one.key_segments[-1]
        patches = slice(one.keys - segment.count, one.keys)
        assert one.query_grid is not None
        assert segment.grid is not None
        grid = one.query_grid if direction == "g2r" else segment.grid
        weights = coverage(mask.astype(float), grid).ravel()
        weights /= weights.sum()
        for layer, site in enumerate(one.sites):
            scores = np.stack([CALLS[one.group, step, layer].scores(one.scale) for step in range(STEPS)])
            if direction == "g2r":
                values = np.einsum("q,thqk->thk", weights, softmax(scores, 3))[..., patches]
                values = values.reshape(STEPS, one.heads, *segment.grid)
            else:
                values = (softmax(scores, 2)[..., patches] @ weights).reshape(STEPS, one.heads, *one.query_grid)
            found.append(LayerMaps(site.path, site.order, values))
    return found


def mask_of(shape: tuple[int, int], top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("level", ["ulam", "tlam", "hlam", "llam"])
@pytest.mark.parametrize("direction", ["g2r", "r2g"])
@pytest.mark.parametrize("form", ["pixel", "box", "mask"])
def test_every_form_and_level(trace: Trace, level: Level, direction: Direction, form: str) -> None:
    picture = IMAGE if direction == "g2r" else (16, 12)
    at: Any
    at, mask = {
        "pixel": ((5, 7), mask_of(picture, 5, 7, 6, 8)),
        "box": ((2, 1, 9, 11), mask_of(picture, 2, 1, 9, 11)),
        "mask": (mask_of((7, 5), 1, 1, 4, 5), mask_of((7, 5), 1, 1, 4, 5)),
    }[form]
    with no_computing():
        found = sram(trace, at, direction=direction, level=level)
    size = (4, 4) if direction == "g2r" else (8, 6)
    groups = [slice(step, step + 1) for step in range(STEPS)]
    expected = level_of(exact_layers(direction, mask), level, size, groups)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
    assert found.name == f"sram_{direction}"
    assert (found.attrs["level"], found.attrs["over"], found.attrs["direction"]) == ("sram", level, direction)


def test_layers_and_size(trace: Trace) -> None:
    found = sram(trace, (0, 0), layers="up*", size=(3, 3))
    mask = mask_of(IMAGE, 0, 0, 1, 1)
    expected = level_of([one for one in exact_layers("g2r", mask) if one.path == "up.0"], "ulam", (3, 3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def test_only_the_chosen_rows_are_computed(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("attrace.analysis.maps.marginals")  # the face has a function of this name
    shapes = []
    compute = module.softmax_marginals

    def spied(values: Any, *arguments: Any, **options: Any) -> Any:
        shapes.append((values.query.shape[1], values.key.shape[1]))
        return compute(values, *arguments, **options)

    monkeypatch.setattr(module, "softmax_marginals", spied)
    sram(trace, (0, 0)).compute()
    assert set(shapes) == {(1, 17), (1, 6)}
    shapes.clear()
    sram(trace, (0, 0), direction="r2g").compute()
    assert set(shapes) == {(48, 1), (12, 1)}


def test_a_pixel_is_one_of_the_finest_grid_where_the_picture_is_not_known(tmp_path: Path) -> None:
    trace = open_trace(write_calls(tmp_path / "run.zarr", CLASSES, CALLS, steps=STEPS))
    assert picture_size(trace) == (8, 6)
    assert picture_size(trace, "r2g") == (4, 4)
    expected = level_of(exact_layers("g2r", mask_of((8, 6), 7, 5, 8, 6)), "ulam", (4, 4))
    np.testing.assert_allclose(sram(trace, (7, 5)), expected, rtol=0, atol=1e-5 * expected.max())


def test_the_size_of_the_picture(trace: Trace, tmp_path: Path) -> None:
    assert picture_size(trace) == IMAGE
    assert picture_size(trace, "r2g") == (16, 12)
    picture = np.zeros((10, 20, 3), np.uint8)
    path = write_calls(tmp_path / "run.zarr", CLASSES, CALLS, steps=STEPS, images={"generated": picture})
    assert picture_size(open_trace(path)) == (10, 20)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ((32, 0), r"\(32, 0\) lies outside the picture of 32 x 24"),
        ((-1, 0), "lies outside"),
        ((4, 4, 4, 8), "or is empty"),
        ((0, 0, 33, 1), "lies outside"),
        ((1, 2, 3), "expected a pixel"),
        ((1.5, 2.0), "expected a pixel"),
        ("here", "expected a pixel"),
        (np.zeros((4, 4), bool), "selects nothing"),
    ],
)
def test_choices_that_are_none(trace: Trace, at: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sram(trace, at)


def test_an_unknown_direction_or_layer(trace: Trace) -> None:
    with pytest.raises(InputError, match="expected r2g or g2r"):
        chosen_patches(trace, (0, 0), "up")  # type: ignore[arg-type]
    with pytest.raises(SelectionError):
        sram(trace, (0, 0), layers="x")


class TestCorrespondence:
    def exact(self, one: SiteClass, layer: int, steps: list[int], heads: list[int]) -> NDArray[np.float64]:
        segment = one.key_segments[-1]
        scores = np.stack([CALLS[one.group, step, layer].scores(one.scale)[heads] for step in steps])
        best = softmax(scores, 3).mean(axis=(0, 1))[:, one.keys - segment.count :].argmax(axis=1)
        assert segment.grid is not None
        assert one.query_grid is not None
        places: NDArray[np.float64] = np.stack(np.divmod(best, segment.grid[1]), axis=1).astype(float)
        return places.reshape(*one.query_grid, 2)

    def test_the_place_of_the_largest_softmax(self, trace: Trace) -> None:
        with no_computing():
            found = correspondence(trace, layers=["down.0", "up.0"])
        assert found.dims == ("layer", "query_row", "query_column", "axis")
        assert found.axis.values.tolist() == ["row", "column"]
        assert (found.key_rows.values.tolist(), found.key_columns.values.tolist()) == ([4, 4], [4, 4])
        for layer in range(2):
            np.testing.assert_array_equal(found[layer], self.exact(CLASSES[0], layer, [*range(STEPS)], [0, 1]))

    def test_selected_steps_and_heads(self, trace: Trace) -> None:
        found = correspondence(trace.sel(time=[1, 4], head=[0, 2]), layers="mid")
        np.testing.assert_array_equal(found[0], self.exact(CLASSES[1], 0, [1, 4], [0, 2]))

    def test_large_layers_are_split(self, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = correspondence(trace, layers="up.0").values
        module = import_module("attrace.analysis.scores.correspondence")  # the face has a function of this name
        monkeypatch.setattr(module, "SCORES_PER_TASK", 17 * 6 * 2)
        split = correspondence(trace, layers="up.0")
        assert split.data.npartitions > 1
        np.testing.assert_array_equal(split, whole)

    def test_different_grids_cannot_share_an_array(self, trace: Trace) -> None:
        with pytest.raises(InputError, match=r"different query grids \(4 x 3, 8 x 6\)"):
            correspondence(trace)

    def test_no_grid(self, tmp_path: Path) -> None:
        one = site_class("reference/64x1h2d8", key_grid=None, cls=True)
        trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), random_calls((one,), 1), steps=1))
        with pytest.raises(InputError, match="no place in the reference to find"):
            correspondence(trace)

    def test_a_layer_that_was_never_called(self, tmp_path: Path) -> None:
        one = site_class()
        calls = random_calls((one,), 1)
        del calls[one.group, 0, 1]
        trace = open_trace(write_calls(tmp_path / "run.zarr", (one,), calls, steps=1))
        assert correspondence(trace).isnull().all(("query_row", "query_column", "axis")).values.tolist() == [
            False,
            True,
        ]

    def test_each_chunk_is_read_once(self, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
        with counted_reads(monkeypatch) as read:
            correspondence(trace, layers="mid").compute()
        assert sum("/query_vector/" in key for key in read) == STEPS
