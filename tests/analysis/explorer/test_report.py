"""The report of a trace as a file: what it holds, how it is escaped, and that its numbers are those of `sram`."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from support.traces import make_trace, site_class

from attrace.analysis import Trace, open_trace, sram, write_report
from attrace.analysis.explorer.attention import attention_of, differences, lazy_attention, quantised
from attrace.analysis.explorer.embedding import Embedding, embed
from attrace.analysis.explorer.plan import plan_report
from attrace.schemas import Direction, InputError

LIMIT = 10_000_000

TWO_GRIDS = (
    site_class(layers=("down.0.attn2",), cls=True),
    site_class("reference/16x16h2d8", query_grid=(4, 4), layers=("mid.attn2", "up.0.attn2"), first_order=1),
)

TEXT = site_class(
    "text/64x3h2d8",
    key_grid=None,
    keys=3,
    key_segments=({"kind": "text", "count": 3},),
    tokens=("a", "red", "cat"),
)


def traced(path: Path, *args: Any, **options: Any) -> Trace:
    return open_trace(make_trace(path / "run.zarr", *args, **options).path)


def pictures(side: int = 16) -> dict[str, NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    mask = np.zeros((side, side), np.uint8)
    mask[4:12, 4:8] = 255
    made = {name: random.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in ("generated", "reference")}
    return made | {"mask": mask}


def stored_rows(embedding: Embedding, number: int, direction: Direction) -> NDArray[np.float64]:
    """Attention as the page decodes it: (time_group, layer, head, chosen cell, shown cell)."""
    whole = np.cumsum(embedding.arrays[f"0_{number}_{direction}"], axis=0, dtype=np.uint8)
    scale = embedding.arrays[f"0_{number}_{direction}_scale"]
    decoded: NDArray[np.float64] = whole.astype(np.float64) * scale[..., None]
    return decoded


def described(embedding: Embedding) -> dict[str, Any]:
    """What the page is told of the first context."""
    facts: dict[str, Any] = embedding.facts["relations"][0]
    return facts


@pytest.mark.parametrize("direction", ["g2r", "r2g"])
def test_stored_attention_is_that_of_sram(tmp_path: Path, direction: Direction) -> None:
    trace = traced(tmp_path, TWO_GRIDS, steps=5, spread=1.5)
    embedding = embed(trace, groups=2, limit=LIMIT)
    assert (embedding.levels, embedding.plans[0].coarser, embedding.plans[0].heads_apart) == (255, False, True)
    for number, one in enumerate(embedding.plans[0].classes):
        rows = stored_rows(embedding, number, direction)
        chosen, shown = (one.queries, one.keys) if direction == "g2r" else (one.keys, one.queries)
        for (group, span), place, head, cell in [((0, slice(0, 1)), 0, 1, 5), ((1, slice(2, 4)), -1, 0, 10)]:
            mask = np.zeros(chosen.cells)
            mask[cell] = 1
            selected = trace.sel(layer=one.selected.paths[place], head=head, time=span)
            expected = sram(
                selected, mask.reshape(chosen.kept), direction=direction, size=shown.kept, density=False
            ).values.ravel()
            found = rows[group, place, head, cell]
            bound = stored_rows(embedding, number, direction)[:, place, head, cell].max() / 255 / 2
            assert np.abs(found - expected).max() <= bound * 1.001
            assert expected.max() > 1.5 * expected.mean()


def test_coarse_cells_are_means_of_patches(tmp_path: Path) -> None:
    one = site_class("reference/1024x64h2d8", query_grid=(32, 32), key_grid=(8, 8), layers=("a",))
    trace = traced(tmp_path, (one,), steps=2)
    plan = plan_report(trace, 1, 100_000)
    assert (plan.grids, plan.coarser, plan.heads_apart) == ({"r2g": (16, 16), "g2r": (8, 8)}, True, True)
    embedding = embed(trace, groups=1, limit=LIMIT)
    assert not embedding.plans[0].coarser
    coarse = attention_of(plan, plan.classes[0], lazy_attention(plan, plan.classes[0]).compute())
    box = np.zeros((32, 32))
    box[6:8, 10:12] = 1
    expected = sram(trace.sel(head=1), box, density=False).values.ravel()
    np.testing.assert_allclose(coarse.rows["g2r"][0, 0, 1, 3 * 16 + 5], expected, rtol=1e-5)
    key = np.zeros((8, 8))
    key[2, 3] = 1
    fine = sram(trace.sel(head=0), key, direction="r2g", density=False).values
    expected = fine.reshape(16, 2, 16, 2).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(coarse.rows["r2g"][0, 0, 0, 2 * 8 + 3], expected, rtol=1e-5)


def test_heads_are_averaged_where_they_do_not_fit(tmp_path: Path) -> None:
    trace = traced(tmp_path, steps=2)
    fine = plan_report(trace, 1, 10**9)
    coarse = plan_report(trace, 1, fine.cost - 1)
    assert (fine.heads_apart, coarse.heads_apart) == (True, False)
    assert coarse.cost < fine.cost == plan_report(trace, 1, fine.cost).cost
    with pytest.raises(InputError, match="select layers"):
        plan_report(trace, 1, coarse.cost - 1)


def test_quantised_rows_are_within_half_a_quantum() -> None:
    rows = np.random.default_rng(0).random((3, 2, 2, 4, 50)).astype(np.float32) ** 4
    rows[:, 1, 0, 2] = 0
    broken = rows.copy()
    broken[2, 0, 1, 3, 7] = np.nan
    whole, scale = quantised(broken, 255)
    assert np.isnan(scale).sum() == 1
    assert np.isnan(scale[0, 1, 3])
    known = ~np.isnan(scale)
    assert np.array_equal(whole[:, known], quantised(rows, 255)[0][:, known])
    for levels in (255, 15):
        whole, scale = quantised(rows, levels)
        assert whole.max() == levels
        assert np.abs(whole * scale[..., None] - rows).max() <= rows.max() / levels / 2 * 1.001
        assert not whole[:, 1, 0, 2].any()
        assert np.array_equal(np.cumsum(differences(whole), axis=0, dtype=np.uint8), whole)


def test_a_smaller_limit_gives_a_smaller_file_that_says_so(tmp_path: Path) -> None:
    one = site_class("reference/256x256h4d8", heads=4, query_grid=(16, 16), key_grid=(16, 16))
    trace = traced(tmp_path, (one,), steps=5, spread=0.7)
    fine = write_report(trace, tmp_path / "fine.html", limit=20_000_000)
    coarse = write_report(trace, tmp_path / "coarse.html", limit=6_000_000)
    assert coarse.bytes < fine.bytes
    assert coarse.levels < fine.levels == 255
    assert f"from 0 to {coarse.levels} with a scale" in coarse.path.read_text()
    least = write_report(trace, tmp_path / "least.html", limit=1_500_000)
    assert least.bytes <= 1_500_000 < coarse.bytes
    assert (fine.heads_apart, least.heads_apart) == (True, False)
    assert "heads do not fit the limit one by one" in least.path.read_text()
    with pytest.raises(InputError, match="limit"):
        write_report(trace, tmp_path / "none.html", limit=1000)
    assert not (tmp_path / "none.html").exists()


def test_the_file_carries_everything(tmp_path: Path) -> None:
    trace = traced(tmp_path, TWO_GRIDS, steps=5, images=pictures(), seed=3, image_size=(16, 16))
    written = write_report(trace, tmp_path / "report.html", title="A title")
    page = written.path.read_text()
    assert written.bytes == written.path.stat().st_size < 6_000_000
    assert "<title>A title</title>" in page
    assert trace.manifest.id in page
    assert "data-rows" in page
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    own = page.replace("</script>", "<script").split("<script")[::2]  # what is not a script
    assert not any("src=" in part or 'href="http' in part for part in own)
    with pytest.raises(FileExistsError, match="overwrite"):
        write_report(trace, written.path)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_labels_are_escaped(tmp_path: Path) -> None:
    one = site_class(
        "text/64x3h2d8",
        key_grid=None,
        keys=3,
        key_segments=({"kind": "text", "count": 3},),
        tokens=(HOSTILE, "b", "c"),
        layers=(HOSTILE,),
    )
    trace = traced(tmp_path, (one,), call_arguments={"prompt": HOSTILE}, citation=HOSTILE)
    page = write_report(trace, tmp_path / "report.html", title=HOSTILE).path.read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 4


def test_text_is_a_list_of_tokens(tmp_path: Path) -> None:
    embedding = embed(traced(tmp_path, (TEXT,)), groups=None, limit=LIMIT)
    facts = described(embedding)
    assert (facts["kind"], facts["tokens"]) == ("tokens", ["a", "red", "cat"])
    assert facts["grids"] == {"generated": [8, 8], "keys": [3, 1]}


def test_one_key_has_no_map_over_the_reference(tmp_path: Path) -> None:
    one = site_class("reference/64x1h2d8", key_grid=None, keys=1, key_segments=({"kind": "cls", "count": 1},))
    trace = traced(tmp_path, (one,))
    embedding = embed(trace, groups=None, limit=LIMIT)
    assert described(embedding)["kind"] == "whole"
    assert [name for name in embedding.arrays if "g2r" in name] == []
    assert "softmax over keys is 1 everywhere" in write_report(trace, tmp_path / "r.html").path.read_text()


def test_all_contexts_are_shown_unless_one_is_asked_for(tmp_path: Path) -> None:
    trace = traced(tmp_path, (site_class(), TEXT))
    assert write_report(trace, tmp_path / "r.html").contexts == ("reference", "text")
    alone = embed(trace.sel(context="text"), groups=None, limit=LIMIT)
    assert [one["kind"] for one in alone.facts["relations"]] == ["tokens"]


def test_a_context_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(tmp_path, (site_class(), TEXT))
    monkeypatch.setattr("attrace.analysis.explorer.embedding.FIRST_SHARE", 0.9999)
    written = write_report(trace, tmp_path / "r.html")
    assert written.contexts == ("reference",)
    assert "The trace has text attention too, which this page leaves out: " in written.path.read_text()


def test_a_trace_without_steps_is_refused(tmp_path: Path) -> None:
    trace = open_trace(make_trace(tmp_path / "run.zarr", steps=0).path)
    with pytest.raises(InputError, match="no finished step"):
        write_report(trace, tmp_path / "r.html")


def test_selections_reach_the_page(tmp_path: Path) -> None:
    trace = traced(tmp_path, TWO_GRIDS, steps=4).sel(layer="*attn2", head=1, time=slice(1, 2)).sel(layer="mid.*")
    embedding = embed(trace, groups=None, limit=LIMIT)
    facts = json.loads(json.dumps(described(embedding)))
    assert facts["layers"] == ["mid.attn2"]
    assert facts["groups"] == ["step 1", "step 2"]
    assert facts["heads"] == ["head 1"]
    assert embedding.relations[0][0]["heads"] == [0]
    assert facts["grids"]["generated"] == [8, 8]  # the finest recorded, as the default size of a map


def test_the_page_has_the_weights_of_every_layer_and_head(tmp_path: Path) -> None:
    trace = traced(tmp_path, TWO_GRIDS, steps=2)
    weights = {"*": [1.0, 0.0, 0.0], "mid.attn2": [0.5, 2.0, 3.0]}
    embedding = embed(trace, groups=1, limit=LIMIT, weights=weights)
    pairs = {
        path: one["weights"][place][: len(one["heads"])]
        for one in embedding.relations[0]
        for place, path in enumerate(np.array(trace.layers)[one["layers"]])
    }
    assert all(one["by_head"] for one in embedding.relations[0])
    assert all(found == weights.get(path, weights["*"])[: len(found)] for path, found in pairs.items())
    page = write_report(trace, tmp_path / "r.html", weights=weights).path.read_text()
    assert "Layers and heads are weighted by given numbers in every mean over them." in page
    (by_layer,) = embed(trace, groups=1, limit=LIMIT, weights={"*": 1}).relations
    assert not any(one["by_head"] for one in by_layer)
    assert all(np.sum(row) == pytest.approx(1) for one in by_layer for row in one["weights"])


def test_what_other_keys_get_is_told_exactly(tmp_path: Path) -> None:
    made = make_trace(tmp_path / "run.zarr", TWO_GRIDS, steps=4, spread=1.5)
    embedding = embed(open_trace(made.path), groups=2, limit=LIMIT)
    over_keys = softmax(made.scores[TWO_GRIDS[0].group], -1)
    expected = 1 - over_keys[2:4, :, :, :, 0].mean(axis=0)  # the first key is the class token
    np.testing.assert_allclose(embedding.arrays["0_0_shares"][1], expected, rtol=1e-5)
    assert expected.max() > 1.2 * expected.min()
    assert "0_1_shares" not in embedding.arrays  # all of its keys are shown


def test_padding_is_one_line_of_the_list(tmp_path: Path) -> None:
    segments = [("text", 2), ("pad", 300), ("text", 1), ("pad", 200)]
    one = site_class(
        "text/64x503h2d8",
        key_grid=None,
        keys=503,
        key_segments=tuple({"kind": kind, "count": count} for kind, count in segments),
        layers=("a",),
    )
    made = make_trace(tmp_path / "run.zarr", (one,), steps=2, spread=1.5)
    embedding = embed(open_trace(made.path), groups=1, limit=LIMIT)
    assert described(embedding)["tokens"] == [
        *("0: text", "1: text", "padding (the mean of 300)", "302: text", "padding (the mean of 200)")
    ]
    over_keys = softmax(made.scores[one.group], -1).mean(axis=0)[0, 1, 9]
    expected = [*over_keys[:2], over_keys[2:302].mean(), over_keys[302], over_keys[303:].mean()]
    found = stored_rows(embedding, 0, "g2r")[0, 0, 1, 9]
    np.testing.assert_allclose(found, expected, atol=max(expected) / 255 / 2 * 1.001)
    assert "There is no map" not in write_report(open_trace(made.path), tmp_path / "r.html").path.read_text()


def test_of_several_pictures_the_first_is_shown(tmp_path: Path) -> None:
    segments = ({"kind": "patch", "count": 6, "grid": (2, 3)}, {"kind": "patch", "count": 16, "grid": (4, 4)})
    one = site_class("reference/64x22h2d8", key_grid=None, keys=22, key_segments=segments)
    images = pictures() | {"reference-1": np.full((8, 8, 3), 7, np.uint8)}
    trace = traced(tmp_path, (one,), images=images, image_size=(16, 16))
    page = write_report(trace, tmp_path / "first.html").path.read_text()
    assert "reference is here picture 0, counted from 0, and all numbers are of its patches: --picture 1" in page
    first, second = (embed(one, groups=None, limit=LIMIT) for one in (trace, trace.sel(picture=1)))
    for made, grid, size, name in [(first, [2, 3], [16, 16], "1 of 2"), (second, [4, 4], [8, 8], "2 of 2")]:
        facts = described(made)
        assert (facts["grids"]["keys"], facts["size"], facts["name"]) == (grid, size, f"Reference {name}")
    encoded = base64.b64decode(described(second)["picture"].partition("base64,")[2])
    assert set(np.asarray(Image.open(io.BytesIO(encoded))).ravel().tolist()) == {7}
