"""Effects are means over inputs with intervals; a trace keeps them through copies, and maps take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from support.traces import make_trace, site_class

from attrace.analysis import content_id, effects, keep_effects, open_trace, pack, precompute, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.scores.bootstrap import bootstrap_interval
from attrace.schemas import InputError

LAYERS = ("down.0.attn2", "up.0.attn2", "mid.0.attn2")
CLASSES = (
    site_class("reference/48x16h2d8", query_grid=(8, 6), layers=LAYERS[:2]),
    site_class("reference/12x16h3d8", query_grid=(4, 3), heads=3, layers=LAYERS[2:], first_order=2),
    site_class("text/48x16h2d8", query_grid=(8, 6), layers=LAYERS[:1]),
)


def changes(*, heads: bool = False, masked: bool = True, inputs: int = 4) -> xr.Dataset:
    shape = (inputs, 2, 3, 3) if heads else (inputs, 2, 3)
    values = np.random.default_rng(0).random(shape)
    if heads:
        values[:, :, :2, 2] = np.nan
    if not masked:
        values[-1, 1] = np.nan
    dims = ("input", "region", "layer", "head")[: len(shape)]
    labels = {"input": list("abcd")[:inputs], "region": ["whole", "inside"], "layer": list(LAYERS)}
    of_heads = {"head": [0, 1, 2]} if heads else {}
    of = xr.DataArray(values, labels | of_heads, dims)
    return xr.Dataset({"absolute": of, "squared": of**2}, attrs={"context": "reference", "baseline": "zero"})


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_an_effect_is_the_mean_over_inputs_with_its_interval(heads: bool, masked: bool) -> None:
    given = changes(heads=heads, masked=masked)
    found = effects(given, seed=3)
    values = given["absolute"].values[:, int(masked)]
    np.testing.assert_allclose(found["effect"].values, values.mean(axis=0))
    np.testing.assert_array_equal(found["effect_interval"].values, bootstrap_interval(values, seed=3))
    assert found.attrs["region"] == ("inside" if masked else "whole")
    assert found["absolute"].identical(given["absolute"])


def test_one_input_has_no_interval() -> None:
    assert effects(changes(inputs=1))["effect_interval"].isnull().all()


def test_what_is_no_change_is_refused() -> None:
    with pytest.raises(InputError, match=r"attrace\.ablate measured"):
        effects(xr.Dataset({"absolute": ("layer", [1.0])}))


@pytest.mark.parametrize("heads", [False, True])
def test_a_trace_keeps_effects_and_its_maps_take_them(tmp_path: Path, heads: bool) -> None:
    path = make_trace(tmp_path / "run.zarr", CLASSES).path
    before = content_id(open_trace(path))
    effect = effects(changes(heads=heads))["effect"]
    keep_effects(path, effects(changes(heads=not heads))["effect"])
    trace = keep_effects(path, effect)  # in place of others
    expected = ulam(trace, weights=effect).values
    np.testing.assert_array_equal(ulam(trace, weights="effect").values, expected)
    assert ulam(trace, weights="effect").attrs["weights"] == "effect"
    assert content_id(trace) == before
    report = verify(path)
    assert (report.valid, report.issues) == (True, ())
    stored = zarr.open_group(path, mode="r")["reference/48x16h2d8/effect"]
    assert stored.metadata.dimension_names == (("layer", "head") if heads else ("layer",))  # type: ignore[union-attr]
    assert stored.dtype == np.float64  # type: ignore[union-attr]
    assert "text/48x16h2d8/effect" not in zarr.open_group(path, mode="r")
    with pytest.raises(InputError, match="holds no measured effects"):
        ulam(trace.sel(context="text"), weights="effect")


def test_effects_outlive_precompute_and_travel_with_copies(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", CLASSES).path
    effect = effects(changes())["effect"]
    keep_effects(path, effect)
    precompute(path)
    whole = open_trace(path)
    expected = ulam(whole.sel(layer=LAYERS[1:]), weights=effect).values
    pack(whole.sel(layer=LAYERS[1:]), tmp_path / "part.zip")
    packed = open_trace(tmp_path / "part.zip")
    np.testing.assert_allclose(ulam(packed, weights="effect").values, expected, rtol=1e-6)
    assert verify(tmp_path / "part.zip").valid


def test_layers_that_were_not_measured_are_told_when_a_map_needs_them(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", CLASSES).path
    trace = keep_effects(path, effects(changes())["effect"].isel(layer=[0, 2]))
    with pytest.raises(InputError, match=f"effect has no weight of layer {LAYERS[1]}"):
        ulam(trace, weights="effect")
    assert verify(path).valid
    ulam(trace.sel(layer=[LAYERS[0], LAYERS[2]]), weights="effect").compute()


def test_effects_of_other_layers_are_not_kept(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", CLASSES[:1]).path
    with pytest.raises(InputError, match="has none of the layers side"):
        keep_effects(path, xr.DataArray([1.0], {"layer": ["side"]}, ("layer",)))
    with pytest.raises(InputError, match=r"as attrace\.effects makes it"):
        keep_effects(path, None)  # type: ignore[arg-type]


def test_damaged_effects_are_told(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "run.zarr", CLASSES).path
    keep_effects(path, effects(changes())["effect"])
    chunk = path / "reference/48x16h2d8/effect/c/0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    assert not verify(path).valid
