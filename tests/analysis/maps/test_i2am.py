"""`i2am` is what the published code computes: a float64 restatement of it on calls of StableVITON's layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from support.exact import bicubic, no_computing, random_calls, softmax, write_calls
from support.traces import site_class

from attrace.analysis import Trace, as_published, imacs, open_trace, open_traces
from attrace.analysis.maps import i2am
from attrace.schemas import InputError, SiteClass
from attrace.schemas.words import DIRECTIONS

Array = NDArray[np.float64]

STEPS = 10
FLOW = "warp_flow_blks.{}.transformer_blocks.0.attn2"
CLIP = "{}.1.transformer_blocks.0.attn2"


def flow(grid: tuple[int, int], blocks: range) -> SiteClass:
    """Blocks of one grid, which attend to the cloth's features on that grid."""
    size = grid[0] * grid[1]
    names = tuple(FLOW.format(block) for block in blocks)
    group = f"reference/{size}x{size}h2d8"
    return site_class(group, query_grid=grid, key_grid=grid, layers=names, first_order=10 + blocks.start)


def clip(grid: tuple[int, int], names: tuple[str, ...], first_order: int) -> SiteClass:
    """Layers that attend to the cloth as one vector."""
    layers = tuple(CLIP.format(name) for name in names)
    group = f"image-prompt/{grid[0] * grid[1]}x1h2d8"
    return site_class(group, query_grid=grid, key_grid=None, cls=True, layers=layers, first_order=first_order)


CLASSES = (
    clip((8, 6), ("input_blocks.1", "output_blocks.11"), 0),
    clip((4, 3), ("input_blocks.4", "middle_block", "output_blocks.8"), 3),
    flow((2, 2), range(3)),
    flow((4, 3), range(3, 6)),
    flow((8, 6), range(6, 9)),
)
CALLS = random_calls(CLASSES, STEPS, spread=3)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("published") / "run.zarr"
    return open_trace(write_calls(path, CLASSES, CALLS, steps=STEPS, image_size=(64, 48)))


def summed(axis: int, steps: range = range(STEPS)) -> dict[str, tuple[SiteClass, Array]]:
    """Sum over the steps of the softmax over queries (axis 1) or keys (2) by module path: (head, query, key)."""
    return {
        site.path: (one, sum(softmax(CALLS[one.group, s, n].scores(one.scale), axis) for s in steps))  # type: ignore[misc]
        for one in CLASSES
        for n, site in enumerate(one.sites)
    }


def published_r2g(steps: range = range(STEPS)) -> dict[str, Array]:
    """Maps of each layer that the code takes for R2G: (head, row, column)."""
    maps = {}
    for path, (one, shares) in summed(1, steps).items():
        if "middle_block" in path or "warp_flow_blks" in path:
            continue
        assert one.query_grid is not None
        on_grid = shares[:, :, 0].reshape(-1, *one.query_grid)
        maps[path] = np.stack([np.maximum(bicubic(head, (8, 6)), 0) for head in on_grid])
    return maps


def published_g2r(blocks: list[int], queries: list[int] | None = None, steps: range = range(STEPS)) -> Array:
    """Maps of the blocks for G2R, all of one grid: (block, head, row, column)."""
    shares = summed(2, steps)
    chosen = slice(None) if queries is None else queries
    return np.stack([shares[FLOW.format(block)][1][:, chosen].mean(axis=1).reshape(2, 4, 3) for block in blocks])


def check(found: xr.DataArray, expected: Array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


class TestLevels:
    def test_r2g(self, trace: Trace) -> None:
        maps = published_r2g()
        with no_computing():
            found = i2am.ulam(trace)
        check(found, np.mean(list(maps.values()), axis=(0, 1)))
        check(i2am.hlam(trace), np.mean(list(maps.values()), axis=0))
        by_layer = i2am.llam(trace)
        assert set(by_layer["layer"].values.tolist()) == set(maps)
        check(by_layer, np.stack([maps[path].mean(axis=0) for path in by_layer["layer"].values.tolist()]))
        assert (found.attrs["context"], found.attrs["compat"]) == ("image-prompt", "i2am")

    def test_r2g_in_five_groups_of_steps(self, trace: Trace) -> None:
        groups = [list(published_r2g(range(start, start + 2)).values()) for start in range(0, STEPS, 2)]
        check(i2am.tlam(trace), np.mean(groups, axis=(1, 2)))

    def test_g2r(self, trace: Trace) -> None:
        check(i2am.ulam(trace, direction="g2r"), published_g2r([4]).mean(axis=(0, 1)))
        check(i2am.hlam(trace, direction="g2r"), published_g2r([4])[0])
        groups = [published_g2r([3, 4, 5], steps=range(start, start + 2)) for start in range(0, STEPS, 2)]
        check(i2am.tlam(trace, direction="g2r"), np.mean(groups, axis=(1, 2)))
        assert i2am.llam(trace, direction="g2r").sizes["layer"] == 9

    def test_chosen_patches(self, trace: Trace) -> None:
        one = i2am.sram(trace, (33, 20))  # a pixel of the picture of 64 x 48, in the patch (2, 1)
        check(one, published_g2r([4], [2 * 3 + 1]).mean(axis=(0, 1)))
        mask = np.zeros((64, 48), bool)
        mask[16:40, 8:33] = True  # holds the first pixel of (1, 1), (1, 2), (2, 1) and (2, 2)
        check(i2am.sram(trace, mask), published_g2r([4], [4, 5, 7, 8]).mean(axis=(0, 1)))
        speck = np.zeros((64, 48), bool)
        speck[17, 17] = True
        with pytest.raises(InputError, match="no patch of 4 x 3 has its first pixel inside"):
            i2am.sram(trace, speck)

    def test_the_map_that_is_scored(self, trace: Trace) -> None:
        for direction in DIRECTIONS:
            xr.testing.assert_identical(
                i2am.scored_map(trace, direction, "stableviton"), i2am.ulam(trace, direction=direction)
            )
        assert i2am.scored_map(trace.sel(context="image-prompt"), "g2r", "stableviton") is None

    def test_the_map_that_viton_step_1_scores(self, trace: Trace) -> None:
        """Of all layers but the middle block; that of the reference of the queries inside the mask alone."""
        shares = summed(2)
        mask = np.zeros((64, 48), bool)
        mask[:32, :24] = True  # a quarter of each grid: whole cells but of (4, 3), whose column 1 it covers by half
        inside = {
            grid: np.kron(mask, np.ones(1))
            .reshape(grid[0], 64 // grid[0], grid[1], 48 // grid[1])
            .mean(axis=(1, 3))
            .ravel()
            for grid in ((2, 2), (4, 3), (8, 6))
        }
        expected = []
        for path, (one, share) in shares.items():
            if "warp_flow_blks" not in path:
                continue
            assert one.query_grid is not None
            weights = inside[one.query_grid]
            heads = np.tensordot(share, weights, (1, 0)) / weights.sum()
            on_grid = heads.reshape(-1, *one.query_grid)  # keys lie on a grid like that of the queries
            expected += [np.maximum(bicubic(head, (8, 6)), 0) for head in on_grid]
        found = i2am.scored_map(trace, "g2r", "viton-step-1", mask)
        assert found is not None
        check(found, np.mean(expected, axis=0))
        middle = trace.sel(context="image-prompt")
        of_picture = i2am.scored_map(middle, "r2g", "viton-step-1", mask)
        assert of_picture is not None
        check(of_picture, np.mean(list(published_r2g().values()), axis=(0, 1)))
        assert i2am.scored_map(middle.sel(layer="middle*"), "r2g", "viton-step-1") is None

    def test_layers_of_ones_own_take_the_same_formula(self, trace: Trace) -> None:
        found = i2am.ulam(trace, direction="g2r", layers=FLOW.format(3))
        check(found, published_g2r([3]).mean(axis=(0, 1)))
        xr.testing.assert_identical(i2am.ulam(trace.sel(layer=FLOW.format(3)), direction="g2r"), found)

    def test_all_maps_at_once_and_of_many_traces(self, trace: Trace) -> None:
        maps = i2am.level_maps(trace)
        assert {way: list(node.data_vars) for way, node in maps.children.items()} == {
            way: ["ulam", "tlam", "hlam", "llam"] for way in ("r2g", "g2r")
        }
        of_many = i2am.ulam(open_traces([trace.path]), direction="g2r")
        np.testing.assert_array_equal(of_many[0], maps["g2r/ulam"])

    def test_refusals(self, trace: Trace) -> None:
        with pytest.raises(InputError, match="level: expected ulam, tlam, hlam or llam"):
            i2am.attribution_map(trace, "foo", direction="g2r")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="density"):
            i2am.ulam(trace, density=True)  # type: ignore[call-arg]

    def test_a_model_without_its_blocks(self, tmp_path: Path) -> None:
        one = site_class()
        other = open_trace(write_calls(tmp_path / "run.zarr", (one,), random_calls((one,), 1), steps=1))
        with pytest.raises(InputError, match="takes warp_flow_blks 4 of StableVITON"):
            i2am.ulam(other, direction="g2r")
        assert list(i2am.level_maps(other, levels=["ulam"]).children) == ["r2g"]
        i2am.ulam(other, direction="g2r", layers="up.*")


def shown(values: Array, size: tuple[int, int], direction: str, mask: Array | None = None) -> Array:
    """The values under the published picture, written from its code."""
    if direction == "g2r" and mask is not None:
        values = values * bicubic(mask, values.shape)
    values = (values - values.min()) / (values.max() - values.min() + 1e-8)
    large = bicubic(values, size)
    large = (large - large.min()) / (large.max() - large.min() + 1e-8)
    if direction == "g2r":
        large = 1 - large
    large[large >= 0.6] = 1
    turned: Array = 1 - large
    return turned


class TestPicture:
    VALUES = np.random.default_rng(0).random((8, 6))
    MASK = np.zeros((64, 48))
    MASK[10:40, 7:30] = 1

    def a_map(self, direction: str) -> xr.DataArray:
        return xr.DataArray(self.VALUES, dims=("row", "column"), attrs={"direction": direction})

    @pytest.mark.parametrize("direction", ["r2g", "g2r"])
    def test_the_values_without_colours(self, direction: str) -> None:
        with no_computing():
            found = as_published(self.a_map(direction).chunk(), size=(64, 48), mask=self.MASK)
        expected = shown(self.VALUES, (64, 48), direction, self.MASK)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert 0.2 < float((found == 0).mean()) < 0.9
        small = as_published(self.a_map(direction))
        np.testing.assert_allclose(small, shown(self.VALUES, (8, 6), direction), atol=1e-12)

    @pytest.mark.parametrize("direction", ["r2g", "g2r"])
    def test_imacs(self, direction: str) -> None:
        values = shown(self.VALUES, (64, 48), direction, self.MASK)
        inside = (values * self.MASK).sum() / self.MASK.sum()
        outside = (values * (1 - self.MASK)).sum() / (1 - self.MASK).sum()
        found = imacs(self.a_map(direction), self.MASK, variant="stableviton")
        assert float(found) == pytest.approx(inside - 3 * outside, abs=1e-9)

    def test_what_has_no_direction(self) -> None:
        with pytest.raises(InputError, match="depend on the direction of the map"):
            as_published(xr.DataArray(self.VALUES, dims=("row", "column")))
        with pytest.raises(InputError, match="dims row and column"):
            as_published(xr.DataArray(self.VALUES, dims=("y", "x"), attrs={"direction": "r2g"}))
