"""Commands that choose patches, score maps and keep marginals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import Result
from support.commands import box_mask, noise_picture
from support.traces import make_trace

from attrace.analysis import agreement, drift, hlam, imacs, open_trace, psnr, sram, tlam, ulam
from attrace.analysis.integrity.verify import verify
from attrace.analysis.maps.masks import coverage
from attrace.analysis.scores.ground_truth import places_of_box

from .conftest import Run


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def failed(result: Result, code: int) -> str:
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.mark.usefixtures("trace")
def test_sram_lists_the_strongest_patches(run: Run) -> None:
    told = json.loads(succeeded(run("sram", "run.zarr", "--at", "9,30", "--top", 3, "--json")))
    heat = sram(open_trace("run.zarr"), (9, 30)).compute()
    strongest = np.argsort(-heat.values, axis=None)[:3]
    assert [patch["row"] * 4 + patch["column"] for patch in told["patches"]] == strongest.tolist()
    first = told["patches"][0]
    assert first["weight"] == pytest.approx(float(heat.max()))
    assert first["share"] == pytest.approx(float(heat.max() / heat.sum()))
    # 4 x 4 cells over a reference of 32 x 32 pixels
    assert first["pixel"] == [first["row"] * 8 + 4, first["column"] * 8 + 4]
    assert told["grid"] == [4, 4]
    table = succeeded(run("sram", "run.zarr", "--at", "9,30", "--top", 3)).splitlines()
    assert table[0].split() == ["row", "column", "pixel", "weight", "share"]
    assert table[1].split()[:2] == [str(first["row"]), str(first["column"])]


@pytest.mark.usefixtures("trace")
def test_sram_counts_pixels_of_the_other_picture(run: Run) -> None:
    told = json.loads(succeeded(run("sram", "run.zarr", "--at", "3,3", "--direction", "r2g", "--json")))
    first = told["patches"][0]
    assert told["grid"] == [8, 8]
    assert first["pixel"] == [first["row"] * 4 + 2, first["column"] * 4 + 2]


@pytest.mark.usefixtures("trace")
def test_sram_takes_a_box_and_a_mask(run: Run) -> None:
    box_mask().save("chosen.png")
    by_mask = succeeded(run("sram", "run.zarr", "--mask", "chosen.png", "--json"))
    by_box = succeeded(run("sram", "run.zarr", "--box", "8,8,16,16", "--json"))
    assert json.loads(by_mask)["patches"] == json.loads(by_box)["patches"]
    # 8 x 8 pixels are 2 x 2 patches of the 8 x 8 grid over 32 x 32
    assert json.loads(by_mask)["chosen"] == 4
    assert json.loads(by_mask)["map"] == "density, 4 x 4"
    assert "4 of 8 x 8 patches chosen" in run("sram", "run.zarr", "--mask", "chosen.png").stderr


@pytest.mark.usefixtures("trace")
def test_sram_writes_a_picture_and_data(run: Run) -> None:
    succeeded(run("sram", "run.zarr", "--at", "9,30", "-o", "sram.png"))
    with PIL.Image.open("sram.png") as drawn:
        assert drawn.width > 500
    succeeded(run("sram", "run.zarr", "--at", "9,30", "-o", "sram.npz"))
    with np.load("sram.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["sram_g2r"], sram(open_trace("run.zarr"), (9, 30)).values)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "exactly one of"),
        (("--at", "1,1", "--box", "1,1,2,2"), 2, "exactly one of"),
        (("--at", "40,1"), 2, "lies outside the picture"),
        (("--at", "1"), 2, "ROW,COLUMN"),
        (("--mask", "none.png"), 2, "there is no file"),
        (("--mask", "black.png"), 2, "selects nothing"),
        (("--mask", "white.png"), 2, "covers the whole"),
        (("--mask", "narrow.png"), 2, "expected the proportions"),
        (("--at", "1,1", "-o", "sram.csv"), 2, "expected a name that ends in"),
        (("--at", "1,1", "-o", "black.png"), 1, "--overwrite"),
        (("--at", "1,1", "--context", "text"), 2, "no grid"),
    ],
)
@pytest.mark.usefixtures("trace")
def test_sram_refuses(run: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    PIL.Image.new("L", (8, 8)).save("black.png")
    PIL.Image.new("L", (8, 8), 255).save("white.png")
    narrow = PIL.Image.new("L", (8, 16))
    narrow.paste(255, (0, 0, 4, 4))
    narrow.save("narrow.png")
    assert message in failed(run("sram", "run.zarr", *arguments), code)


@pytest.mark.usefixtures("trace")
def test_score_measures_the_unified_map_with_the_mask_of_the_trace(run: Run) -> None:
    told = json.loads(succeeded(run("score", "run.zarr", "--json")))
    assert list(told) == ["ulam_r2g", "ulam_g2r"]
    assert "imacs" not in told["ulam_g2r"]
    trace = open_trace("run.zarr")
    mask = trace.images["mask"].values > 127
    heat = ulam(trace).compute()
    card = told["ulam_r2g"]
    assert card["imacs"] == pytest.approx(float(imacs(heat, mask)))
    assert card["imacs_stableviton"] == pytest.approx(float(imacs(heat, mask, variant="stableviton")))
    assert card["area"] == pytest.approx(mask.mean())
    assert card["mask_box"] == [8, 4, 24, 20]
    inside = (heat.values * coverage(mask, (8, 8))).sum() / heat.values.sum()
    assert card["inside"] == pytest.approx(inside)


@pytest.mark.usefixtures("trace")
def test_score_prints_a_table(run: Run) -> None:
    box_mask().save("mask.png")
    table = succeeded(run("score", "run.zarr", "--reference-mask", "mask.png", "--compat", "i2am")).splitlines()
    assert table[0].split()[:4] == ["map", "IMACS", "IMACS", "(stableviton)"]
    assert [line.split("  ")[0] for line in table[1:3]] == [
        "ulam_r2g (density, 8 x 8)",
        "ulam_g2r (density, 4 x 4)",
    ]
    assert "(stableviton)" not in succeeded(run("score", "run.zarr"))


def test_score_without_a_mask(run: Run, tmp_path: Path) -> None:
    make_trace(tmp_path / "bare.zarr")
    table = succeeded(run("score", "bare.zarr"))
    assert "IMACS" not in table
    assert [line.split()[0] for line in table.splitlines()] == ["map", "ulam_r2g", "ulam_g2r"]
    box_mask().save(tmp_path / "mask.png")
    assert "IMACS" in succeeded(run("score", "bare.zarr", "--mask", "mask.png"))
    told = json.loads(succeeded(run("score", "bare.zarr", "--reference-mask", "mask.png", "--json")))
    assert "imacs" in told["ulam_g2r"]
    assert "holds no mask" in failed(run("score", "bare.zarr", "--places", "mask"), 2)


@pytest.mark.usefixtures("trace")
def test_score_tells_how_alike_the_maps_are(run: Run) -> None:
    told = json.loads(succeeded(run("score", "run.zarr", "--groups", 2, "--json")))
    trace = open_trace("run.zarr")
    of_heads = float(agreement(hlam(trace, direction="g2r"), "head"))
    moved = float(drift(tlam(trace, direction="g2r", groups=2)))
    assert told["ulam_g2r"]["head_agreement"] == pytest.approx(of_heads)
    assert told["ulam_g2r"]["drift"] == pytest.approx(moved)


@pytest.mark.usefixtures("trace")
def test_score_compares_the_picture_with_the_truth(run: Run) -> None:
    noise_picture(seed=5).save("truth.png")
    told = json.loads(succeeded(run("score", "run.zarr", "--truth", "truth.png", "--json")))["picture"]
    generated = open_trace("run.zarr").images["generated"].values
    assert told["psnr"] == pytest.approx(psnr(generated, np.asarray(noise_picture(seed=5))))
    assert told["psnr_inside"] != told["psnr"]
    assert "PSNR" in succeeded(run("score", "run.zarr", "--truth", "truth.png"))
    noise_picture(16).save("small.png")
    assert "one shape" in failed(run("score", "run.zarr", "--truth", "small.png"), 2)


@pytest.mark.usefixtures("trace")
def test_score_says_what_lpips_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "attrace.analysis.scores.perceptual.find_spec", lambda name: None if name == "torchvision" else "there"
    )
    result = run("score", "run.zarr", "--lpips")
    assert result.exit_code == 2
    assert 'torchvision must be installed for LPIPS: pip install "attrace[perceptual]"' in result.stderr
    assert result.stdout == ""


def test_score_prints_lpips_beside_the_others(run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr("attrace.analysis.scores.trace_scores.require_lpips", lambda: None)
    monkeypatch.setattr("attrace.analysis.scores.trace_scores.lpips", lambda *_: 0.125)
    PIL.Image.fromarray(open_trace(trace).images["generated"].values).save("truth.png")
    lines = run("score", "run.zarr", "--truth", "truth.png", "--lpips").stdout.splitlines()
    whole = next(line for line in lines if line.startswith("whole"))
    assert whole.split() == ["whole", "inf", "1.000", "0.1250"]
    assert next(line for line in lines if line.startswith("inside the mask")).split()[-1] == "1.000"
    told = json.loads(run("score", "run.zarr", "--truth", "truth.png", "--lpips", "--json").stdout)
    assert told["picture"]["lpips"] == 0.125


@pytest.mark.usefixtures("trace")
def test_score_measures_correspondence_where_the_places_are_known(run: Run) -> None:
    by_mask = json.loads(succeeded(run("score", "run.zarr", "--places", "mask", "--json")))["correspondence_error"]
    by_box = json.loads(succeeded(run("score", "run.zarr", "--places", "8,4,24,20", "--json")))["correspondence_error"]
    assert list(by_mask) == ["up_blocks.0.attn2", "up_blocks.1.attn2"]
    assert by_mask == by_box
    np.save("places.npy", places_of_box((8, 4, 24, 20), (32, 32)))
    by_file = json.loads(succeeded(run("score", "run.zarr", "--places", "places.npy", "--json")))
    assert by_file["correspondence_error"] == by_mask
    assert "correspondence error" in succeeded(run("score", "run.zarr", "--places", "mask"))
    Path("text.npy").write_text("no numbers")
    assert "no .npy file" in failed(run("score", "run.zarr", "--places", "text.npy"), 2)
    assert "within the picture" in failed(run("score", "run.zarr", "--places", "0,0,99,99"), 2)


@pytest.mark.usefixtures("trace")
def test_score_prints_a_line_for_each_number(run: Run) -> None:
    lines = list(csv.DictReader(succeeded(run("score", "run.zarr", "--csv")).splitlines()))
    found = {(line["score"], line["of"]): line for line in lines}
    told = json.loads(succeeded(run("score", "run.zarr", "--json")))
    assert float(found["imacs", "r2g"]["value"]) == pytest.approx(told["ulam_r2g"]["imacs"])
    assert found["imacs", "r2g"]["better"] == "higher"
    assert float(found["drift", "g2r"]["value"]) == pytest.approx(told["ulam_g2r"]["drift"])
    assert "not both" in failed(run("score", "run.zarr", "--csv", "--json"), 2)


@pytest.mark.parametrize(
    ("shape", "colour", "message"),
    [
        ((32, 16), 255, "expected the proportions"),
        ((32, 32), 0, "selects nothing"),
        ((32, 32), 255, "covers the whole"),
    ],
)
@pytest.mark.usefixtures("trace")
def test_score_with_a_mask_that_does_not_fit(run: Run, shape: tuple[int, int], colour: int, message: str) -> None:
    PIL.Image.new("L", shape, colour).save("mask.png")
    assert message in failed(run("score", "run.zarr", "--mask", "mask.png"), 2)


@pytest.mark.usefixtures("trace")
def test_a_mask_of_another_resolution_fits(run: Run) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 8:40] = 255
    PIL.Image.fromarray(mask).save("mask.png")
    fine = json.loads(succeeded(run("score", "run.zarr", "--mask", "mask.png", "--json")))["ulam_r2g"]
    stored = json.loads(succeeded(run("score", "run.zarr", "--json")))["ulam_r2g"]
    assert fine["imacs"] == pytest.approx(stored["imacs"])


def test_precompute_keeps_marginals_and_changes_no_map(run: Run, trace: Path) -> None:
    assert not (trace / "reference/64x16h2d8/derived").exists()
    before = ulam(open_trace(trace), direction="g2r").compute()
    result = run("precompute", "run.zarr")
    assert succeeded(result) == "run.zarr\n"
    assert result.stderr == ""
    assert np.allclose(before.values, ulam(open_trace(trace), direction="g2r").values, rtol=1e-6)
    assert (trace / "reference/64x16h2d8/derived/g2r").is_dir()
    assert verify(trace).issues == ()


def test_precompute_of_what_cannot_be_written(run: Run, trace: Path) -> None:
    shutil.make_archive(str(trace.with_suffix("")), "zip", trace)
    assert "zip" in failed(run("precompute", "run.zip"), 2)
