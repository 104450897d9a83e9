"""The atlas has one row for each head, group of steps and direction, each number that of its own function."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from support.traces import make_trace, site_class

from attrace.analysis import (
    AtlasSettings,
    Trace,
    agreement,
    atlas,
    best_heads,
    entropy,
    hlam,
    keep_effects,
    mass,
    open_trace,
    ulam,
)
from attrace.analysis.scores.ground_truth import correspondence_scores, places_of_mask
from attrace.schemas import InputError

CLASSES = (
    site_class(layers=("down.0.attn2", "up.0.attn2")),
    site_class("reference/16x16h3d8", query_grid=(4, 4), heads=3, layers=("mid.attn2",), first_order=2),
)
MASK = np.zeros((16, 16), np.uint8)
MASK[4:12, 4:16] = 255


def make(path: Path, seed: int = 0) -> Path:
    return make_trace(path, CLASSES, steps=5, seed=seed, images={"mask": MASK}, image_size=(16, 16)).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    for seed in range(2):
        make(folder / f"{seed}.zarr", seed)
    keep_effects(folder / "0.zarr", open_effects(open_trace(folder / "0.zarr")))
    return folder


def open_effects(trace: Trace) -> xr.DataArray:
    layers = list(trace.layers)
    return xr.DataArray(np.arange(1.0, len(layers) + 1), {"layer": layers}, ("layer",), "effect")


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return atlas(folder, settings=AtlasSettings(groups=2, places="mask")).table


def test_every_head_group_and_direction_has_a_row(table: pd.DataFrame, folder: Path) -> None:
    assert len(table) == 2 * (2 + 2 + 3) * 2 * 2
    assert not table.duplicated(["trace", "layer", "head", "time_group", "direction"]).any()
    assert sorted(table["trace"].unique()) == [str(folder / "0.zarr"), str(folder / "1.zarr")]
    assert set(zip(table["time_group"], table["first_call"], table["last_call"], strict=True)) == {(0, 0, 1), (1, 2, 4)}


def test_every_number_is_that_of_its_function(table: pd.DataFrame, folder: Path) -> None:
    trace = open_trace(folder / "0.zarr")
    rows = table[table["trace"] == trace.path].set_index(["layer", "head", "time_group", "direction"])
    errors = {
        group: correspondence_scores(trace.sel(time=steps), places_of_mask(trace, MASK > 127), heads=True)
        for group, steps in enumerate((slice(0, 1), slice(2, 4)))
    }
    for (layer, head, group, direction), row in rows.iterrows():
        part = trace.sel(layer=layer, time=(slice(0, 1), slice(2, 4))[group])
        size = (8, 8) if direction == "r2g" and layer != "mid.attn2" else (4, 4)  # the layer's own grid
        heat = ulam(part.sel(head=head), direction=direction, size=size)
        assert row["entropy"] == pytest.approx(float(entropy(heat)), rel=1e-5)
        expected = float(mass(heat, MASK > 127)) if direction == "r2g" else np.nan
        assert row["inside"] == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert row["agreement"] == pytest.approx(
            float(agreement(hlam(part, direction=direction, size=size), "head")), rel=1e-5
        )
        assert row["effect"] == trace.layers.index(layer) + 1
        for name, values in errors[group].sel(layer=layer, head=head).data_vars.items():
            assert row[name] == pytest.approx(float(values), nan_ok=True)


def test_what_is_not_known_is_nan(table: pd.DataFrame, folder: Path) -> None:
    assert table.loc[table["trace"] == str(folder / "1.zarr"), "effect"].isna().all()
    plain = atlas(folder).table
    assert plain["correspondence_error"].isna().all()
    given = atlas(folder, settings=AtlasSettings(effects={"*": 3})).table
    assert (given["effect"] == 3).all()


def test_places_come_from_a_folder(table: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    for name in ("0", "1"):
        np.save(tmp_path / f"{name}.npy", places_of_mask(open_trace(folder / f"{name}.zarr"), MASK > 127))
    again = atlas(folder, settings=AtlasSettings(groups=2, places=str(tmp_path))).table
    pd.testing.assert_frame_equal(again, table.assign(effect=again["effect"]))
    (tmp_path / "1.npy").unlink()
    left = atlas(folder, settings=AtlasSettings(places=str(tmp_path)))
    assert [path for path, reason in left.broken.items() if "expected its true places" in reason] == [
        str(folder / "1.zarr")
    ]


def test_the_best_heads_of_one_set_weigh_the_maps_of_another(table: pd.DataFrame, folder: Path) -> None:
    weights = best_heads(table[table["trace"] == str(folder / "0.zarr")], "correspondence_error", 2)
    means = table[table["trace"] == str(folder / "0.zarr")].groupby(["layer", "head"], observed=True)
    best = means["correspondence_error"].mean().nsmallest(2).index
    assert {pair for pair, weight in weights.items() if weight} == set(best)
    assert len(weights) == 7
    heat = ulam(open_trace(folder / "1.zarr"), weights=weights)
    other = open_trace(folder / "1.zarr")
    parts = [ulam(other.sel(layer=layer, head=head), size=(8, 8)) for layer, head in best]
    np.testing.assert_allclose(heat.values, sum(part.values for part in parts) / 2, rtol=1e-5)
    assert {pair for pair, one in best_heads(table, "entropy", 1, largest=True).items() if one} == {
        table.groupby(["layer", "head"], observed=True)["entropy"].mean().idxmax()
    }


def test_a_rule_that_does_not_fit_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 to 7 heads"):
        best_heads(table, "entropy", 8)
    with pytest.raises(InputError, match="entropy, inside"):
        best_heads(table, "trace", 1)
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match="none of 1 traces has an atlas"):
        atlas(tmp_path)


def test_a_thousand_traces_are_queried_in_a_second(table: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    many = pd.concat([table.assign(trace=f"{number}.zarr") for number in range(1000)], ignore_index=True)
    many.astype({"trace": "category"}).to_parquet(tmp_path / "atlas.parquet", index=False)
    begun = time.process_time()
    read = pd.read_parquet(tmp_path / "atlas.parquet")
    found = read[read["direction"] == "g2r"].groupby(["layer", "head"], observed=True)["correspondence_error"].median()
    assert time.process_time() - begun < 1
    assert len(found) == 7
