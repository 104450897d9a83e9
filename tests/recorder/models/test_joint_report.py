"""The report of joint attention in a real browser: Flux Kontext, one softmax over text, picture and reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from support import models, transformers
from support.browser import chromium
from support.report_page import Page, assert_shown

from attrace.analysis import Trace, open_trace, sram, ulam
from attrace.recorder import record

GENERATED, REFERENCE = (4, 6), (5, 3)
"""Rows and columns of patches, of 8 x 8 pixels each."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("joint") / "run.zarr"
    pipeline, reference = transformers.flux_kontext(), models.picture(40, 24)
    with torch.no_grad(), record(pipeline, path, context=("reference", "text"), reference=reference) as recording:
        made = pipeline(
            prompt="a cat",
            image=reference,
            height=32,
            width=48,
            max_area=32 * 48,
            _auto_resize=False,
            num_inference_steps=3,
            generator=models.noise(),
            max_sequence_length=transformers.TEXT_TOKENS,
        )
        recording.images["generated"] = made.images[0]
    return open_trace(path)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driven:
        driven.set_window_size(1280, 1000)
        yield driven


@pytest.fixture(scope="module")
def page(driver: Any, trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(driver, trace, tmp_path_factory.mktemp("report") / "report.html")


def shares(trace: Trace) -> NDArray[np.float64]:
    """How much of the model's own softmax lies on the keys of the context: (layer, query), the mean over the others."""
    found = []
    for group in (one.group for one in trace.classes):
        scores, lse = trace.scores[group]["scores"], trace.tree[group]["lse"]
        weights = xr.ufuncs.exp(scores.astype(np.float64) - lse)
        found.append(weights.sum("key").mean(["time", "head"]).values)
    return np.concatenate(found)


def test_a_generated_patch_shows_its_reference_and_how_much_of_its_attention_that_gets(page: Page) -> None:
    assert page.complaints() == []
    page.click("generated", 2, 4, GENERATED)
    box = (16, 32, 24, 40)
    assert_shown(page.heat("keys"), sram(page.trace, box, density=True), page)
    of_patch = shares(page.trace)[:, 2 * 6 + 4].mean()
    assert 0.05 < of_patch < 0.95
    assert f"The reference gets {float(f'{100 * of_patch:.3g}'):g} % of its attention" in page.told()
    page.set(unit="share")
    assert_shown(page.heat("keys"), sram(page.trace, box, density=False), page)
    assert page.heat("keys").sum() == pytest.approx(of_patch, rel=0.01)
    page.set(layer=1)
    alone = shares(page.trace)[1, 2 * 6 + 4]
    assert f"The reference gets {float(f'{100 * alone:.3g}'):g} % of its attention" in page.told()
    page.set(layer=-1)


def test_a_reference_patch_shows_where_it_went(page: Page) -> None:
    page.set(unit="share")
    page.click("keys", 3, 1, REFERENCE)
    assert page.chosen("keys") == [3, 1, 4, 2]
    assert_shown(page.heat("generated"), sram(page.trace, (24, 8, 32, 16), direction="r2g", density=False), page)
    assert page.heat("generated").sum() == pytest.approx(1, rel=0.01)
    assert "of its attention" not in page.told()


def test_pictures_of_other_proportions_keep_them(page: Page) -> None:
    for name, (rows, columns) in {"generated": GENERATED, "keys": REFERENCE}.items():
        size = page.js(f"return side('{name}').stage").size
        assert size["width"] / size["height"] == pytest.approx(columns / rows, rel=0.05)


def test_the_page_says_what_its_weights_are_shares_of(page: Page) -> None:
    notes = page.js("return document.querySelector('.notes').textContent")
    assert "weights over the text sum to less than 1" in notes
    assert "weights over the reference sum to less than 1" in notes


def test_text_is_a_list_with_its_padding_in_one_line(driver: Any, trace: Trace, tmp_path: Path) -> None:
    page = Page(driver, trace.sel(context="text"), tmp_path / "text.html")
    assert page.complaints() == []
    assert "There is no map" not in page.js("return document.body.textContent")
    page.set(unit="share")
    page.click("generated", 2, 4, GENERATED)
    values = page.heat("keys")
    assert values.size == 8  # 7 tokens and the padding
    of_patch = shares(page.trace)[:, 2 * 6 + 4].mean()
    assert values[:7].sum() + 5 * values[7] == pytest.approx(of_patch, rel=0.01)
    assert f"The text gets {float(f'{100 * of_patch:.3g}'):g} %" in page.told()
    page.js("side('keys').chips.at(-1).click()")
    page.settle()
    assert "padding (the mean of 5)" in page.told()
    assert_shown(page.heat("generated"), ulam(page.trace, keys=[7, 8, 9, 10, 11], density=False), page)
