"""Figures say what they show, share one scale, and leave colour to the heat alone."""

from __future__ import annotations

import colorsys
import itertools
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from support.traces import make_trace, site_class

from attrace.analysis import Trace, open_trace, sram
from attrace.analysis.figures import Paint, draw_chosen, draw_map, draw_over, draw_sram, save_figures
from attrace.analysis.figures.blend import GREY_RANGE, as_grey, as_rgb, blend, canvas_size, reduced, resampled
from attrace.analysis.figures.draw import outline
from attrace.analysis.figures.layout import columns_for, plan_layout
from attrace.analysis.figures.save import strongest_place
from attrace.analysis.figures.scale import colour_scale
from attrace.analysis.figures.text import wrapped
from attrace.schemas import InputError

PICTURE = np.random.default_rng(7).integers(0, 256, (64, 48, 3)).astype(np.uint8)


def a_map(dim: str | None = None, labels: list[Any] | None = None, **attributes: Any) -> xr.DataArray:
    """Random heat on an 8 x 6 grid."""
    count = len(labels) if labels else 1
    values = np.random.default_rng(0).random((count, 8, 6)) + 0.1
    if dim is None or labels is None:
        return xr.DataArray(values[0], dims=("row", "column"), attrs=attributes)
    return xr.DataArray(values, dims=(dim, "row", "column"), coords={dim: labels}, attrs=attributes)


def panels_of(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


def pixels_of(axes: Axes) -> NDArray[np.float64]:
    return np.asarray(axes.images[0].get_array())


def texts_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def bar_of(figure: Figure) -> Axes:
    return figure.axes[-1]


def test_a_map_lies_beside_its_picture() -> None:
    figure = draw_map(a_map(level="ulam", direction="r2g", steps=20, layers=7), PICTURE)
    picture, heat = panels_of(figure)
    assert np.array_equal(pixels_of(picture), PICTURE / 255)
    assert (picture.get_title(loc="left"), heat.get_title(loc="left")) == ("generated", "where the reference acts")
    texts = texts_of(figure)
    assert "Unified attribution map (ULAM), reference \N{RIGHTWARDS ARROW} generated (R2G)" in texts
    assert "20 steps \N{MIDDLE DOT} 7 layers" in texts
    assert "8 \N{MULTIPLICATION SIGN} 6 grid, each cell one block" in texts


def test_a_map_without_a_picture_is_drawn_alone() -> None:
    (heat,) = panels_of(draw_map(a_map(direction="g2r")))
    assert pixels_of(heat).ndim == 3


def test_nothing_global_is_changed() -> None:
    before = dict(plt.rcParams)
    draw_map(a_map(), PICTURE)
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize(
    ("dim", "labels", "titles"),
    [
        ("head", [0, 3], ["head 0", "head 3"]),
        ("layer", ["up.0.attn2", "up.1.attn2"], ["up.0", "up.1"]),
        ("time_group", [0, 1], ["time group 0", "time group 1"]),
        ("trace", ["a", "b"], ["trace a", "trace b"]),
    ],
)
def test_every_map_along_a_dimension_gets_a_panel(dim: str, labels: list[Any], titles: list[str]) -> None:
    figure = draw_map(a_map(dim, labels, direction="g2r"), PICTURE)
    assert [axes.get_title(loc="left") for axes in panels_of(figure)] == ["reference", *titles]


def test_a_time_group_is_named_by_its_calls() -> None:
    heat = a_map("time_group", [0, 1]).assign_coords(
        first_call=("time_group", [0, 5]), last_call=("time_group", [4, 5])
    )
    titles = [axes.get_title(loc="left") for axes in panels_of(draw_map(heat))]
    assert titles == ["steps 0\N{EN DASH}4", "step 5"]


def test_panels_share_one_scale() -> None:
    heat = a_map("time_group", [0, 1])
    heat[1] = heat[0] / 2
    first, second = (pixels_of(axes) for axes in panels_of(draw_map(heat, limits=(0, 1))))
    halved = pixels_of(panels_of(draw_map(heat[0] / 2, limits=(0, 1)))[0])
    assert not np.allclose(first, second)
    assert np.array_equal(second, halved)


def test_the_colour_bar_says_its_unit() -> None:
    assert bar_of(draw_map(a_map())).get_ylabel() == "attention weight"
    assert bar_of(draw_map(a_map(normalisation="density"))).get_ylabel() == "attention (1 = even)"


def test_the_colour_bar_says_its_power_of_ten() -> None:
    heat = a_map() * 1e-4
    bar = bar_of(draw_map(heat))
    assert "10$^{-4}$" in bar.get_ylabel() or "10$^{-5}$" in bar.get_ylabel()
    labels = [float(label.get_text()) for label in bar.get_yticklabels() if label.get_text()]
    assert max(labels) >= 1


def test_few_high_cells_do_not_darken_a_figure_of_many_maps_and_the_bar_says_so() -> None:
    values = np.full((4, 16, 16), 1.0) + np.random.default_rng(0).random((4, 16, 16))
    values[0, 0, 0] = 1000
    scale = colour_scale(values, above=0.5)
    assert scale.high < 3
    assert scale.extend == "max"
    assert colour_scale(values).high == 1000
    assert colour_scale(values).extend == "neither"


def test_limits_set_the_scale() -> None:
    scale = colour_scale(np.array([0.0, 1.0, 5.0]), limits=(0.5, 2.0))
    assert (scale.low, scale.high, scale.extend) == (0.5, 2.0, "both")
    assert scale.share(np.array([0.0, 0.5, 1.25, 9.0])).tolist() == [0, 0, 0.5, 1]
    with pytest.raises(InputError, match="smaller value first"):
        colour_scale(np.ones(3), limits=(2, 1))


def test_a_map_of_one_value_is_drawn() -> None:
    heat = xr.zeros_like(a_map())
    assert panels_of(draw_map(heat, PICTURE))
    assert panels_of(draw_map(heat + 0.25, PICTURE))


def test_a_map_without_values_is_refused() -> None:
    with pytest.raises(InputError, match="no finite value"):
        draw_map(a_map() * np.nan, PICTURE)


def test_a_missing_cell_shows_the_picture_without_colour() -> None:
    heat = a_map()
    heat[0, 0] = np.nan
    pixels = pixels_of(panels_of(draw_map(heat, PICTURE))[1])
    corner = pixels[: pixels.shape[0] // 8, : pixels.shape[1] // 6]
    assert np.ptp(corner, axis=-1).max() == 0
    assert np.ptp(pixels, axis=-1).max() > 0.1


@given(hue=st.floats(0, 1), share=st.floats(0, 1))
def test_colour_means_heat_and_nothing_else(hue: float, share: float) -> None:
    coloured = np.full((2, 2, 3), colorsys.hsv_to_rgb(hue, 1, 0.5))
    luminance = (coloured[0, 0] @ [0.2126, 0.7152, 0.0722]).item()
    heat = np.full((2, 2), share)
    over_colour = blend(heat, coloured, Paint(), (2, 2))
    over_grey = blend(heat, np.full((2, 2, 3), luminance), Paint(), (2, 2))
    assert np.allclose(over_colour, over_grey)


def test_the_colour_bar_shows_the_colours_over_the_mean_grey() -> None:
    grey = np.full((8, 8, 3), 0.4)
    paint = Paint()
    drawn = blend(np.linspace(0, 1, 256).reshape(16, 16), grey, paint, (16, 16)).reshape(256, 3)
    assert np.allclose(drawn, paint.over_grey(float(as_grey(grey).mean()))(np.arange(256))[:, :3])


def test_more_heat_is_brighter_over_any_grey() -> None:
    for grey in GREY_RANGE:
        colours = Paint().over_grey(grey)(np.arange(256))[:, :3] @ [0.2126, 0.7152, 0.0722]
        assert colours[255] > colours[128]
        assert colours[255] > 0.5


def test_blocks_are_exact_and_smooth_heat_runs_between_them() -> None:
    values = np.array([[0.0, 1.0], [1.0, 0.0]])
    blocks = resampled(values, (8, 8), smooth=False)
    assert np.array_equal(blocks, values.repeat(4, 0).repeat(4, 1))
    smooth = resampled(values, (8, 8), smooth=True)
    assert smooth[0, 0] == 0
    assert 0 < smooth[3, 3] < 1
    assert np.allclose(smooth, smooth.T)


def test_resampling_bilinearly_keeps_a_ramp() -> None:
    ramp = np.arange(4.0)[None].repeat(4, 0)
    inner = resampled(ramp, (4, 16), smooth=True)[0, 2:-2]
    assert np.allclose(np.diff(inner), 0.25)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (7, 3)])
@pytest.mark.parametrize("smooth", [True, False])
def test_any_grid_is_laid_over_any_picture(grid: tuple[int, int], smooth: bool) -> None:
    pixels = blend(np.random.default_rng(0).random(grid), as_rgb(PICTURE, "picture"), Paint(smooth=smooth), (64, 48))
    assert pixels.shape == (64, 48, 3)
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_small_pictures_are_drawn_as_whole_pixels() -> None:
    assert canvas_size(as_rgb(PICTURE, "picture"), (8, 6)) == (384, 288)
    assert canvas_size(None, (8, 6)) == (344, 258)
    assert canvas_size(np.zeros((700, 500, 3)), (8, 6)) == (700, 500)


@pytest.mark.parametrize(
    "picture",
    [
        PICTURE,
        PICTURE / 255,
        PICTURE[..., 0],
        PICTURE[..., 0] > 100,
        np.dstack([PICTURE, PICTURE[..., 0]]),
        PIL.Image.fromarray(PICTURE),
        xr.DataArray(PICTURE, dims=("row", "column", "channel")).chunk(),
    ],
)
def test_pictures_come_in_many_forms(picture: Any) -> None:
    rgb = as_rgb(picture, "picture")
    assert rgb.shape == (64, 48, 3)
    assert rgb.max() <= 1


@pytest.mark.parametrize("picture", [np.zeros(5), np.zeros((4, 4, 2)), np.full((4, 4), 300), np.zeros((0, 4))])
def test_what_is_no_picture_is_refused(picture: Any) -> None:
    with pytest.raises(InputError, match=r"^picture: expected"):
        draw_map(a_map(), picture)


def test_maps_may_be_lazy() -> None:
    lazy = a_map("head", [0, 1]).chunk()
    eager = lazy.compute()
    for left, right in zip(panels_of(draw_map(lazy)), panels_of(draw_map(eager)), strict=True):
        assert np.array_equal(pixels_of(left), pixels_of(right))


def test_other_dims_are_refused() -> None:
    with pytest.raises(InputError, match="single further dimension"):
        draw_map(xr.DataArray(np.zeros((2, 2, 4, 4)), dims=("layer", "head", "row", "column")))
    with pytest.raises(InputError, match="expected a map"):
        draw_map(xr.DataArray(np.zeros((4, 4)), dims=("row", "key")))


def test_the_mask_is_outlined_on_every_heat_panel() -> None:
    mask = np.zeros((64, 48), bool)
    mask[10:20, 10:20] = True
    picture, *heats = panels_of(draw_map(a_map("head", [0, 1]), PICTURE, mask=mask))
    assert not picture.collections
    assert all(any(isinstance(one, LineCollection) for one in axes.collections) for axes in heats)


def test_the_outline_of_cells_is_their_border() -> None:
    cells = np.zeros((4, 4), bool)
    cells[1, 2] = True
    lines = {tuple(map(tuple, line)) for line in (outline(cells) * 4).tolist()}
    assert lines == {((2, 1), (3, 1)), ((2, 2), (3, 2)), ((2, 1), (2, 2)), ((3, 1), (3, 2))}
    assert len(outline(np.ones((3, 5), bool))) == 2 * (3 + 5)
    assert len(outline(np.zeros((3, 5), bool))) == 0


def test_chosen_patches_are_marked_on_the_other_picture() -> None:
    chosen = np.zeros((8, 6), bool)
    chosen[2, 3] = True
    heat = a_map(level="sram", direction="g2r")
    marked, used = panels_of(draw_sram(heat, chosen, marked_picture=PICTURE, picture=PICTURE))
    assert marked.get_title(loc="left") == "generated: 1 of 8 \N{MULTIPLICATION SIGN} 6 patches chosen"
    assert used.get_title(loc="left") == "reference: what they use"
    assert marked.collections
    assert not used.collections
    mirrored = draw_sram(heat.assign_attrs(direction="r2g"), chosen)
    assert [axes.get_title(loc="left") for axes in panels_of(mirrored)] == [
        "reference: 1 of 8 \N{MULTIPLICATION SIGN} 6 patches chosen",
        "generated: where they act",
    ]


def test_chosen_patches_have_one_map() -> None:
    with pytest.raises(InputError, match="select one first"):
        draw_sram(a_map("head", [0, 1]), np.ones((2, 2), bool))


@given(
    count=st.integers(1, 40),
    columns=st.integers(1, 12),
    aspect=st.floats(0.3, 3),
    width=st.floats(0.8, 3),
    lines=st.integers(0, 2),
)
def test_panels_lie_inside_and_apart(count: int, columns: int, aspect: float, width: float, lines: int) -> None:
    layout = plan_layout(
        count, aspect=aspect, columns=columns, panel_width=width, text_width=3, label_lines=lines, subtitle_lines=1
    )
    boxes = [*layout.panels, layout.bar]
    assert len(layout.panels) == count
    for left, bottom, across, down in boxes:
        assert left > 0
        assert bottom > layout.note_bottom
        assert left + across < 1
        assert bottom + down < layout.subtitle_top
    for one, other in itertools.combinations(boxes, 2):
        apart_across = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
        apart_down = one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]
        assert apart_across or apart_down


@given(count=st.integers(1, 200), aspect=st.floats(0.3, 3))
def test_grids_have_few_empty_places(count: int, aspect: float) -> None:
    columns = columns_for(count, aspect=aspect, strip=False)
    assert 1 <= columns <= count
    assert -count % columns < columns


def test_a_short_strip_is_one_row() -> None:
    assert columns_for(6, aspect=1, strip=True) == 6


def test_what_is_left_out_of_the_paths_of_layers_is_said() -> None:
    paths = [f"{block}.attentions.{number}.attn2" for block in ("down.0", "mid", "up.1") for number in range(2)]
    figure = draw_map(a_map("layer", paths))
    titles = [axes.get_title(loc="left") for axes in panels_of(figure)]
    assert titles == ["down.0.0", "down.0.1", "mid.0", "mid.1", "up.1.0", "up.1.1"]
    assert "layers without attentions, attn2 in their paths" in texts_of(figure)


def test_large_pictures_are_averaged_not_sampled() -> None:
    stripes = np.zeros((600, 900, 3))
    stripes[:, ::3] = 1
    small = reduced(stripes, 200)
    assert small.shape == (200, 300, 3)
    assert np.allclose(small, 1 / 3)
    assert reduced(small, 200) is small


@given(text=st.text(st.sampled_from("ab. _"), max_size=60), width=st.integers(4, 30))
def test_wrapped_text_fits_in_two_lines(text: str, width: int) -> None:
    lines = wrapped(text, width).split("\n")
    assert len(lines) <= 2
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_figure_is_saved_in_any_format(suffix: str) -> None:
    file = BytesIO()
    draw_map(a_map("head", [0, 1]), PICTURE).savefig(file, format=suffix)
    assert file.tell() > 1000


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    images = {"generated": PICTURE, "reference": PICTURE[::-1], "mask": PICTURE[..., 0] // 128 * 255}
    return open_trace(make_trace(tmp_path_factory.mktemp("made") / "run.zarr", steps=2, images=images).path)


def test_the_whole_set_is_every_level_in_both_directions_and_chosen_patches(trace: Trace, tmp_path: Path) -> None:
    files = save_figures(trace, tmp_path / "new/figures")
    levels = ["ulam", "tlam", "hlam", "llam"]
    names = [f"{level}_{direction}.png" for direction in ("r2g", "g2r") for level in levels]
    assert [file.name for file in files] == [*names, "sram_r2g.png", "sram_g2r.png"]
    assert sorted((tmp_path / "new/figures").iterdir()) == sorted(files)


def test_no_figure_is_overwritten_and_nothing_half_done(trace: Trace, tmp_path: Path) -> None:
    (tmp_path / "llam_g2r.png").write_text("precious")
    with pytest.raises(FileExistsError, match=r"llam_g2r\.png"):
        save_figures(trace, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["llam_g2r.png"]
    save_figures(trace, tmp_path, levels=["llam"], directions=["g2r"], overwrite=True)
    assert (tmp_path / "llam_g2r.png").read_bytes().startswith(b"\x89PNG")


def test_a_trace_without_pictures_is_drawn(tmp_path: Path) -> None:
    bare = open_trace(make_trace(tmp_path / "run.zarr", steps=1).path)
    files = save_figures(bare, tmp_path / "figures", levels=["ulam", "sram"])
    assert [file.name for file in files] == ["ulam_r2g.png", "ulam_g2r.png", "sram_r2g.png", "sram_g2r.png"]


def test_a_reference_of_one_vector_is_drawn_over_the_generated_picture_alone(tmp_path: Path) -> None:
    classes = (site_class("reference/64x1h2d8", key_grid=None, cls=True),)
    single = open_trace(make_trace(tmp_path / "run.zarr", classes, steps=1, images={"generated": PICTURE}).path)
    files = save_figures(single, tmp_path / "figures", levels=["ulam", "sram"])
    assert [file.name for file in files] == ["ulam_r2g.png"]


def test_a_map_is_drawn_over_the_picture_of_its_direction(trace: Trace) -> None:
    pictures = {name: image.values for name, image in trace.images.items()}
    for direction, name, outlined in (("r2g", "generated", True), ("g2r", "reference", False)):
        shown, heat = panels_of(draw_over(a_map(direction=direction), pictures))
        assert np.array_equal(pixels_of(shown), pictures[name] / 255)
        assert bool(heat.collections) is outlined


def test_the_patch_that_holds_a_chosen_pixel_is_marked(trace: Trace) -> None:
    # an 8 x 8 grid over 64 x 48 pixels: a patch has 8 x 6
    heat = sram(trace, (17, 13))
    marked, used = panels_of(draw_chosen(trace, heat, (17, 13)))
    top_edge = np.asarray(marked.collections[0].get_paths()[0].vertices)
    assert np.allclose(top_edge, [(2 / 8, 2 / 8), (3 / 8, 2 / 8)])
    assert np.array_equal(pixels_of(marked), trace.images["generated"].values / 255)
    assert not used.collections


def test_the_default_patch_lies_in_the_mask(trace: Trace) -> None:
    row, column = strongest_place(trace, "g2r")
    patch = trace.images["mask"].values[row - 4 : row + 4, column - 3 : column + 3]
    assert patch.any()
