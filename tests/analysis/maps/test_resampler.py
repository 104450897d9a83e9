"""Maps of tokens that a resampler made of the reference, laid on its patches: against a float64 restatement."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from support.exact import bicubic, no_computing, random_calls, softmax, write_calls
from support.traces import site_class

from attrace.analysis import (
    Trace,
    hlam as default_hlam,
    llam as default_llam,
    open_trace,
    resampler_shares,
    sram as default_sram,
    tlam as default_tlam,
    ulam as default_ulam,
)
from attrace.analysis.maps.attribution import level_maps, mappable_directions
from attrace.schemas import InputError, KeySegment, SiteClass

# without density, so that expected values are plain means; what density multiplies them by is tested by itself
hlam = partial(default_hlam, density=False)
llam = partial(default_llam, density=False)
sram = partial(default_sram, density=False)
tlam = partial(default_tlam, density=False)
ulam = partial(default_ulam, density=False)

Array = NDArray[np.float64]
How = Literal["last", "rollout"]

STEPS, TOKENS, GRID = 12, 4, (3, 2)  # more steps than one block of a pass
LAYERS = (0, 1, 2, 10)
ADAPTER = "{}.attn2.processor.to_k_ip.{}"
RESAMPLER = "encoder_hid_proj.image_projection_layers.{}.layers.{}.attn"


def adapter_class(query_grid: tuple[int, int], layers: tuple[str, ...], first_order: int) -> SiteClass:
    segments = (KeySegment(kind="other", count=TOKENS),)
    members: dict[str, Any] = {"keys": TOKENS, "key_segments": segments, "layers": layers, "first_order": first_order}
    return site_class(
        f"image-prompt/{query_grid[0] * query_grid[1]}x4h2d8", query_grid=query_grid, key_grid=None, **members
    )


def resampler_class() -> SiteClass:
    """Two resamplers of four layers; keys are a class token, the patches and the tokens themselves."""
    segments = (
        KeySegment(kind="cls", count=1),
        KeySegment(kind="patch", count=6, grid=GRID),
        KeySegment(kind="other", count=TOKENS),
    )
    # in another order than that of their numbers
    layers = tuple(RESAMPLER.format(adapter, layer) for adapter in (1, 0) for layer in (10, 0, 1, 2))
    members: dict[str, Any] = {"heads": 3, "keys": 11, "key_segments": segments, "layers": layers}
    one = site_class("image-prompt/4x11h3d8", query_grid=(1, TOKENS), key_grid=None, **members)
    return one.model_copy(update={"query_grid": None})


FINE = adapter_class((4, 6), (ADAPTER.format("down", 0), ADAPTER.format("down", 1), ADAPTER.format("up", 0)), 8)
COARSE = adapter_class((2, 3), (ADAPTER.format("mid", 0), ADAPTER.format("mid", 1)), 11)
PARTS = resampler_class()
CLASSES = (PARTS, FINE, COARSE)
CALLS = random_calls(CLASSES, STEPS, spread=2)
del CALLS[FINE.group, 3, 0]  # a gap


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(write_calls(tmp_path_factory.mktemp("tokens") / "run.zarr", CLASSES, CALLS, steps=STEPS))


def probabilities(one: SiteClass, path: str, step: int) -> Array:
    layer = [site.path for site in one.sites].index(path)
    return softmax(CALLS[one.group, step, layer].scores(one.scale), 2)


def shares(adapter: int, step: int, how: How) -> Array:
    """(token, patch)."""
    attention = [probabilities(PARTS, RESAMPLER.format(adapter, layer), step).mean(axis=0) for layer in LAYERS]
    made: Array = attention[-1][:, 1:7] if how == "last" else np.zeros((TOKENS, 6))
    if how == "last":
        return made
    for one in attention:
        made = 0.5 * (one[:, 1:7] + one[:, 7:] @ made) + 0.5 * made
    return made


def layer_maps(
    how: How, queries: dict[SiteClass, Array] | None = None, patches: Array | None = None
) -> dict[str, Array]:
    """By layer, in the order of their calls: (step, head, row, column); NaN in a gap."""
    found = {}
    for one in (FINE, COARSE):
        for layer, site in enumerate(one.sites):
            made = np.full((STEPS, 2, 6), np.nan)
            for step in range(STEPS):
                if (one.group, step, layer) in CALLS:
                    over_keys = probabilities(one, site.path, step)
                    weights = np.full(one.queries, 1 / one.queries) if queries is None else queries[one.group]  # type: ignore[index]
                    made[step] = np.einsum("q,hqk->hk", weights, over_keys) @ shares(int(site.path[-1]), step, how)
            found[site.path] = (made if patches is None else made * patches).reshape(STEPS, 2, *GRID)
    return found


def check(found: xr.DataArray, expected: Any) -> None:
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.max(expected))


@pytest.mark.parametrize("how", ["last", "rollout"])
class TestOnPatches:
    def test_every_level(self, trace: Trace, how: How) -> None:
        options: dict[str, Any] = {"direction": "g2r", "resampler": how}
        maps = layer_maps(how)
        over_steps = {path: np.nanmean(one, axis=0) for path, one in maps.items()}
        with no_computing():
            found = ulam(trace, **options)
        check(found, np.mean(list(over_steps.values()), axis=(0, 1)))
        check(hlam(trace, **options), np.mean(list(over_steps.values()), axis=0))
        by_layer = llam(trace, **options)
        assert by_layer["layer"].values.tolist() == list(maps)
        check(by_layer, [one.mean(axis=0) for one in over_steps.values()])
        halves = [[np.nanmean(one[part], axis=0) for one in maps.values()] for part in (slice(0, 6), slice(6, 12))]
        check(tlam(trace, groups=2, **options), np.mean(halves, axis=(1, 2)))
        assert found.attrs["resampler"] == how

    def test_a_selection_of_layers_heads_and_steps(self, trace: Trace, how: How) -> None:
        part = trace.sel(layer="down*to_k_ip.1", head=1, time=slice(4, 6))
        expected = layer_maps(how)[ADAPTER.format("down", 1)][4:7, 1].mean(axis=0)
        check(ulam(part, direction="g2r", resampler=how), expected)

    def test_resized_and_relative_to_even_attention(self, trace: Trace, how: How) -> None:
        found = ulam(trace, direction="g2r", resampler=how, size=(5, 7), density=True, layers="up*")
        over_steps = 11 * layer_maps(how)[ADAPTER.format("up", 0)].mean(axis=0)
        check(found, np.mean([np.maximum(bicubic(head, (5, 7)), 0) for head in over_steps], axis=0))

    def test_chosen_patches_and_a_mask_over_the_reference(self, trace: Trace, how: How) -> None:
        box = np.zeros((4, 6))
        box[1:3, 2:4] = 1
        coarse = box.reshape(2, 2, 3, 2).mean(axis=(1, 3))
        queries: Any = {FINE.group: box.ravel() / box.sum(), COARSE.group: coarse.ravel() / coarse.sum()}
        expected = np.mean([np.nanmean(one, axis=0) for one in layer_maps(how, queries).values()], axis=(0, 1))
        check(sram(trace, box, resampler=how), expected)
        mask = np.array([[1, 0], [0, 1], [0, 0]], bool)
        kept = layer_maps(how, patches=mask.ravel().astype(float))
        expected = np.mean([np.nanmean(one, axis=0) for one in kept.values()], axis=(0, 1))
        check(ulam(trace, direction="g2r", keys=mask, resampler=how), expected)

    def test_the_shares_themselves(self, trace: Trace, how: How) -> None:
        found = resampler_shares(trace, how, adapter=1)
        assert found.dims == ("time", "token", "row", "column")
        check(found, np.reshape([shares(1, step, how) for step in range(STEPS)], (STEPS, TOKENS, *GRID)))
        on_patches = found.sum(("row", "column"))
        assert (on_patches < 0.999).all()  # the rest went to the class token and to the tokens


def test_without_it_there_is_no_map_over_the_reference(trace: Trace) -> None:
    with pytest.raises(InputError, match="resampler='last'"):
        ulam(trace, direction="g2r")
    assert mappable_directions(trace) == ("r2g",)
    assert mappable_directions(trace, resampler="last") == ("r2g", "g2r")
    assert set(level_maps(trace, levels=["ulam"], resampler="last").children) == {"r2g", "g2r"}
    # the resampler's own attention, where it is what is asked for
    own = ulam(trace, direction="g2r", layers=RESAMPLER.format(0, 10))
    check(own, np.mean([shares(0, step, "last").mean(axis=0) for step in range(STEPS)], axis=0).reshape(GRID))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "r2g", "resampler": "last"}, "use direction='g2r'"),
        ({"direction": "g2r", "resampler": "first"}, "expected last or rollout"),
        ({"direction": "g2r", "resampler": "last", "keys": "patch"}, "keys: expected a mask"),
    ],
)
def test_refusals(trace: Trace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ulam(trace, **options)


def test_a_trace_without_a_resampler(tmp_path: Path) -> None:
    alone = open_trace(
        write_calls(tmp_path / "run.zarr", (FINE,), {k: v for k, v in CALLS.items() if k[0] == FINE.group}, steps=STEPS)
    )
    with pytest.raises(InputError, match="lie on no grid"):
        ulam(alone, direction="g2r", resampler="last")
    with pytest.raises(InputError, match="has no resampler of adapter 0"):
        resampler_shares(alone)
