"""Keys that hold several pictures: one of them is looked at, and the softmax runs over all keys as before."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from support.traces import MadeTrace, make_trace, site_class

from attrace.analysis import Trace, correspondence, open_trace, precompute, sram as default_sram, ulam as default_ulam
from attrace.analysis.figures import save_figures
from attrace.schemas import InputError, SelectionError

# without density, so that expected values are plain means; what density multiplies them by is tested by itself
sram = partial(default_sram, density=False)
ulam = partial(default_ulam, density=False)

SEGMENTS = (
    {"kind": "cls", "count": 1},
    {"kind": "patch", "count": 6, "grid": (2, 3)},
    {"kind": "patch", "count": 16, "grid": (4, 4)},
)
TWO = site_class("reference/64x23h2d8", key_grid=None, keys=23, key_segments=SEGMENTS, layers=("a", "b"))
ONE = site_class(layers=("c",), first_order=2)
PLACES = {0: slice(1, 7), 1: slice(7, 23)}
GRIDS = {0: (2, 3), 1: (4, 4)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeTrace:
    images = {name: np.full((16, 16, 3), value, np.uint8) for value, name in enumerate(("generated", "reference"))}
    images["reference-1"] = np.full((8, 12, 3), 200, np.uint8)
    folder = tmp_path_factory.mktemp("several")
    return make_trace(folder / "run.zarr", (TWO, ONE), images=images, image_size=(16, 16), spread=1.5)


@pytest.fixture(scope="module")
def trace(made: MadeTrace) -> Trace:
    return open_trace(made.path)


@pytest.mark.parametrize("number", [0, 1])
def test_the_map_over_a_picture_is_of_its_keys_alone(trace: Trace, made: MadeTrace, number: int) -> None:
    over_keys = softmax(made.scores[TWO.group], -1)[..., PLACES[number]]
    found = ulam(trace.sel(picture=number), direction="g2r", layers=["a", "b"], size=GRIDS[number])
    np.testing.assert_allclose(found.values.ravel(), over_keys.mean(axis=(0, 1, 2, 3)), rtol=1e-5)
    assert found.attrs["picture"] == number


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_a_picture_acts_by_its_keys_alone(made: MadeTrace, number: int, kept: bool, tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", (TWO, ONE), spread=1.5).path)
    trace = precompute(trace) if kept else trace
    over_queries = softmax(made.scores[TWO.group], -2)
    one = ulam(trace.sel(picture=number), direction="r2g", layers=["a", "b"])
    expected = over_queries[..., PLACES[number]].mean(axis=(0, 1, 2, 4))
    np.testing.assert_allclose(one.values.ravel(), expected, rtol=1e-5)
    every = ulam(trace, direction="r2g", layers=["a", "b"])
    np.testing.assert_allclose(every.values.ravel(), over_queries[..., 1:].mean(axis=(0, 1, 2, 4)), rtol=1e-5)


def test_patches_of_one_picture_are_chosen_and_found(trace: Trace, made: MadeTrace) -> None:
    second = trace.sel(picture=1)
    pixel = sram(second, (3, 10), direction="r2g")  # of 8 x 12: a patch has 2 x 3 pixels
    key = PLACES[1].start + 1 * 4 + 3
    expected = softmax(made.scores[TWO.group], -2)[..., key].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(pixel.values.ravel(), expected, rtol=1e-5)
    found = correspondence(second)
    assert found.sizes["layer"] == 2
    best = softmax(made.scores[TWO.group], -1)[..., PLACES[1]].mean(axis=(0, 2)).argmax(axis=-1)
    np.testing.assert_array_equal(found.sel(axis="row").values.reshape(2, -1), best // 4)


def test_layers_without_the_picture_drop_out(trace: Trace) -> None:
    assert (trace.pictures, trace.picture, trace.layers) == (2, None, ("a", "b", "c"))
    assert trace.sel(picture=0).layers == ("a", "b", "c")
    assert trace.sel(picture=1).layers == ("a", "b")
    assert trace.sel(picture=1).sel(context="reference").picture == 1
    kinds = list(trace.sel(picture=1).scores[TWO.group].coords["key_kind"].values)
    assert kinds == ["cls"] + ["other"] * 6 + ["patch"] * 16


def test_without_a_choice_there_is_no_map_over_the_reference(trace: Trace) -> None:
    with pytest.raises(InputError, match=r"hold 2 pictures \(2 x 3 and 4 x 4\).*sel\(picture=0\)"):
        ulam(trace, direction="g2r")
    with pytest.raises(SelectionError, match="has no picture 2 among what is selected: it has 0, 1"):
        trace.sel(picture=2)
    with pytest.raises(SelectionError, match="none of the layers"):
        trace.sel(layer="c").sel(picture=1)


def test_figures_lie_over_the_picture_looked_at(trace: Trace, tmp_path: Path) -> None:
    from attrace.analysis.figures.save import pictures_of

    assert trace.sel(picture=1).reference_name == "reference-1"
    assert pictures_of(trace.sel(picture=1))["reference"].shape == (8, 12, 3)
    assert pictures_of(trace.sel(picture=0))["reference"].shape == (16, 16, 3)
    files = save_figures(trace.sel(picture=1), tmp_path, levels=("ulam", "sram"))
    assert [file.stem for file in files] == ["ulam_r2g", "ulam_g2r", "sram_r2g", "sram_g2r"]
