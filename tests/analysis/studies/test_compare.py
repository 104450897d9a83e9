"""Two sets of traces: paired differences against the single traces, and what is left out."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.browser import chromium
from support.report_page import Page, assert_shown
from support.traces import make_trace, site_class

from attrace.analysis import agreement, drift, hlam, imacs, llam, open_trace, psnr, sram, tlam, ulam
from attrace.analysis.explorer.compare_page import better_side, compare_page, score_rows, verdict
from attrace.analysis.studies.compare import Comparison, compare, ranked_changes
from attrace.analysis.studies.trace_statistics import Settings
from attrace.schemas import InputError

SETTINGS = Settings(size=(8, 8))
MASK = np.zeros((32, 32), np.uint8)
MASK[8:24, 4:20] = 255


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs, with one layer that only the second set has, a trace without a partner, and true pictures."""
    folder = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(0)
    truth = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for side in ("a", "b"):
        (folder / side).mkdir()
        layers = ("down.0.attn2", "up.0.attn2", *(["extra.attn2"] if side == "b" else []))
        for number in range(4):
            images = {"mask": MASK, "truth": truth, "generated": truth + random.integers(0, 9, truth.shape, np.uint8)}
            seed = number + 10 * (side == "b")
            make_trace(
                folder / side / f"{number}.zarr", (site_class(layers=layers),), seed=seed, steps=6, images=images
            )
    make_trace(folder / "a/alone.zarr", steps=6)
    return folder


@pytest.fixture(scope="module")
def compared(sets: Path) -> Comparison:
    return compare(sets / "a", sets / "b", settings=SETTINGS)


def test_scores_are_those_of_every_trace_and_differences_are_paired(sets: Path, compared: Comparison) -> None:
    dataset = compared.dataset
    assert dataset["pair"].values.tolist() == ["0", "1", "2", "3"]
    first, second = open_trace(sets / "a/2.zarr"), open_trace(sets / "b/2.zarr")
    for side, trace in (("a", first), ("b", second)):
        one = dataset[f"scores_{side}"].sel(pair="2")
        assert float(one.sel(score="imacs")) == pytest.approx(float(imacs(ulam(trace, size=(8, 8)), MASK > 127)))
        moved = float(drift(tlam(trace, direction="g2r", size=(8, 8))))
        assert float(one.sel(score="drift_g2r")) == pytest.approx(moved)
        alike = float(agreement(hlam(trace, size=(8, 8)), "head"))
        assert float(one.sel(score="head_agreement_r2g")) == pytest.approx(alike, rel=1e-6)
        near = psnr(trace.images["generated"].values, trace.images["truth"].values)
        assert float(one.sel(score="psnr")) == pytest.approx(near)
    differences = dataset["scores_b"] - dataset["scores_a"]
    assert np.allclose(dataset["scores_difference"], differences.mean("pair"))
    low, high = dataset["scores_interval"].sel(score="imacs").values
    assert low <= float(dataset["scores_difference"].sel(score="imacs")) <= high
    assert low < high
    assert (dataset["scores_pairs"] == 4).all()


def test_maps_of_difference_are_means_over_pairs(sets: Path, compared: Comparison) -> None:
    maps = {
        side: np.stack([llam(open_trace(sets / f"{side}/{one}.zarr"), size=(8, 8)).values[:2] for one in range(4)])
        for side in ("a", "b")
    }
    found = compared.dataset.sel(layer=["down.0.attn2", "up.0.attn2"])
    assert np.allclose(found["llam_a"].sel(direction="r2g"), maps["a"].mean(axis=0))
    assert np.allclose(found["llam_difference"].sel(direction="r2g"), (maps["b"] - maps["a"]).mean(axis=0), atol=1e-9)
    assert np.allclose(
        found["llam_deviation"].sel(direction="r2g"), (maps["b"] - maps["a"]).std(axis=0, ddof=1), rtol=1e-4
    )
    extra = compared.dataset.sel(layer="extra.attn2")
    assert extra["llam_b"].sel(direction="r2g").isnull().all()
    assert (extra["llam_count"].sel(direction="r2g") == 0).all()
    assert compared.only == {"a": (), "b": ("extra.attn2",)}


def test_layers_and_heads_are_ranked_by_what_changed(sets: Path, compared: Comparison) -> None:
    changes = ranked_changes(compared.dataset)
    distances = {}
    for layer in ("down.0.attn2", "up.0.attn2"):
        both = [
            xr.concat(
                [llam(open_trace(sets / f"{side}/{one}.zarr"), size=(8, 8)).sel(layer=layer) for side in "ab"], "side"
            )
            for one in range(4)
        ]
        distances[layer] = np.mean([1 - float(agreement(one, "side")) for one in both])
    ranked = changes["layer_distance_r2g"]
    assert [one.of for one in ranked] == sorted(distances, key=lambda layer: -distances[layer])
    assert ranked[0].difference == pytest.approx(max(distances.values()), rel=1e-6)
    assert ranked[0].low <= ranked[0].difference <= ranked[0].high
    assert {one.of for one in changes["entropy_g2r"]} == {
        f"{layer}, head {head}" for layer in distances for head in (0, 1)
    }
    sizes = [abs(one.difference) for one in changes["inside_r2g"]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_set_against_itself_has_no_difference(sets: Path) -> None:
    same = compare(sets / "a", sets / "a", settings=SETTINGS).dataset
    assert (same["scores_difference"].fillna(0) == 0).all()
    assert (same["ulam_difference"].sel(direction="r2g") == 0).all()
    assert np.allclose(same["layer_distance"].sel(direction="r2g").dropna("layer"), 0, atol=1e-12)


def test_the_result_does_not_depend_on_what_runs_it(sets: Path, compared: Comparison) -> None:
    with ThreadPoolExecutor(1) as pool:
        again = compare(sets / "a", sets / "b", settings=SETTINGS, executor=pool)
    assert again.dataset.identical(compared.dataset)


def test_what_is_left_out_is_named(sets: Path, compared: Comparison, tmp_path: Path) -> None:
    assert list(compared.unpaired) == [str(sets / "a/alone.zarr")]
    shutil.copytree(sets, tmp_path / "sets")
    (tmp_path / "sets/b/1.zarr/zarr.json").write_text("{")
    chunk = next((tmp_path / "sets/a/3.zarr/reference").rglob("query_vector/c/0/0/*"))
    broken = max([chunk, *chunk.rglob("*")], key=lambda path: path.stat().st_size if path.is_file() else 0)
    broken.write_bytes(b"broken")
    made = compare(tmp_path / "sets/a", tmp_path / "sets/b", settings=SETTINGS)
    assert made.dataset["pair"].values.tolist() == ["0", "2"]
    assert set(made.broken) == {str(tmp_path / "sets/b/1.zarr"), str(tmp_path / "sets/a/3.zarr")}
    (tmp_path / "sets/a/0.zarr/zarr.json").write_text("{")
    (tmp_path / "sets/a/2.zarr/zarr.json").write_text("{")
    with pytest.raises(InputError, match="no pair can be compared"):
        compare(tmp_path / "sets/a", tmp_path / "sets/b", settings=SETTINGS)


def test_a_side_is_better_only_where_the_interval_leaves_out_zero() -> None:
    assert better_side("imacs", 0.1, 0.2) == 1
    assert better_side("imacs", -0.2, -0.1) == 0
    assert better_side("imacs", -0.1, 0.2) is None
    assert better_side("correspondence_error", 0.1, 0.2) == 0
    assert better_side("drift_r2g", 0.1, 0.2) is None


def test_the_page_is_whole_and_escapes_what_comes_from_outside(compared: Comparison) -> None:
    names = ("<script>alert(1)</script>", "b & c")
    page = compare_page(compared, names, paired_by="name")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "b &amp; c" in page
    assert "alone.zarr" in page
    # four levels of two directions, all inlined
    assert page.count('<figure><img alt="') == page.count('" src="data:image/png;base64,') == 8
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in own.replace("http-equiv", "")
    for score, *cells in score_rows(compared, names):
        name = f'<abbr title="[^"]*">{score}</abbr>'
        assert re.search(f"<td>{name}</td><td>{re.escape(cells[0])}</td>", page), score


def test_the_verdict_comes_first_and_warns_of_few_pairs(compared: Comparison) -> None:
    page = compare_page(compared, ("one", "two"), paired_by="name")
    said = verdict(compared, ("one", "two"))
    rows = {row[0]: row[-1] for row in score_rows(compared, ("one", "two")) if row[-1]}
    assert [line.partition(" is better")[0] for line in said if " is better" in line] == list(rows.values())
    assert said[0] in page
    assert page.index(said[0]) < page.index("<h2>Scores</h2>")
    assert f"Over {compared.dataset.attrs['pairs']} pairs an interval says little" in page
    same = compared.dataset.assign(scores_interval=compared.dataset["scores_interval"] * 0)
    assert "No score tells one from two" in verdict(replace(compared, dataset=same), ("one", "two"))[0]


def test_pairs_that_differ_most_come_first(compared: Comparison) -> None:
    page = compare_page(compared, ("one", "two"), paired_by="name")
    changed = np.abs((compared.dataset["scores_b"] - compared.dataset["scores_a"]).transpose("pair", "score").values)
    largest = np.where(np.isnan(changed), 0, changed).max(axis=0)
    relative = changed / np.where(largest > 0, largest, 1)
    order = np.argsort(-np.nanmean(relative, axis=1), kind="stable")
    expected = compared.dataset["pair"].values[order].tolist()
    assert re.findall(r'<section class="linked" data-pair aria-label="Pair ([^"]*)">', page) == expected[:2]
    table = page.partition("Differences of every pair")[2].partition("</table>")[0]
    assert re.findall(r"<tr><td>([^<]*)</td>", table) == expected


def test_both_traces_of_a_pair_are_explored_together(compared: Comparison, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(compare_page(compared, ("one", "two"), paired_by="name"))
    pair = compared.dataset["pair"].values.tolist()
    with chromium(tmp_path / "profile") as driver:
        first = Page(driver, open_trace(compared.pairs[0].a), where="[data-pair] .explorer:nth-of-type(1) > div")
        first.open((tmp_path / "page.html").as_uri())
        other = Page(driver, first.trace, where="[data-pair] .explorer:nth-of-type(2) > div")
        other.settle()
        assert first.complaints() == first.requests() == []
        first.set(**{"from": "generated", "region": [1, 2, 2, 3], "unit": "even"})
        other.settle()
        assert other.chosen("generated") == [1, 2, 2, 3]
        name = first.js("return explorer.el.closest('[data-pair]').getAttribute('aria-label')").removeprefix("Pair ")
        shown = compared.pairs[pair.index(name)]
        for page, path in ((first, shown.a), (other, shown.b)):
            trace = open_trace(path)
            rows, columns = page.js("return explorer.relation.grids.generated")
            chosen = np.zeros((rows, columns))
            chosen[1, 2] = 1
            assert_shown(page.heat("keys"), sram(trace, chosen), page)
        other.set(layer=[*other.js("return explorer.relation.layers")].index("up.0"))
        first.settle()
        assert first.js("return explorer.relation.layers[explorer.state.layer]") == "up.0"
        other.set(layer=[*other.js("return explorer.relation.layers")].index("extra"))
        first.settle()
        assert first.js("return explorer.state.layer") == -1
