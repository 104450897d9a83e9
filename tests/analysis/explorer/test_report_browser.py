"""The report of a trace in a real browser: what it shows is what `sram` gives, by mouse, by touch and by keyboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import chromium, wait_for
from support.report_page import Page, assert_shown
from support.traces import make_trace, site_class

from attrace.analysis import hlam, llam, open_trace, sram, tlam, ulam

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


AXE = Path(os.environ.get("ATTRACE_NODE_MODULES", "")) / "axe-core/axe.min.js"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driven:
        driven.set_window_size(1280, 1000)
        yield driven


@pytest.fixture(scope="module")
def opened(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Two grids of queries, a class token, names that try to run, pictures and a mask."""
    folder = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    images = {name: random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("generated", "reference")}
    classes = (
        site_class(layers=(HOSTILE,), cls=True),
        site_class("reference/16x16h2d8", query_grid=(4, 4), layers=("mid.attn2", "up.0.attn2"), first_order=1),
    )
    made = make_trace(
        folder / "run.zarr",
        classes,
        steps=5,
        spread=1.5,
        images=images | {"mask": mask},
        image_size=(32, 32),
        call_arguments={"prompt": HOSTILE},
    )
    return Page(driver, open_trace(made.path), folder / "report.html")


@pytest.fixture
def page(opened: Page) -> Page:
    """The report with nothing chosen but the first patch."""
    whole = {"layer": -1, "head": -1, "group": -1, "unit": "share", "scale": "own"}
    opened.set(**{"from": "generated", "region": [0, 0, 1, 1]}, **whole)
    return opened


def test_it_loads_alone_and_without_an_error(driver: Any, page: Page, tmp_path: Path) -> None:
    fresh = Page(driver, page.trace, tmp_path / "report.html")
    assert fresh.complaints() == []
    assert fresh.requests() == []
    assert fresh.js("return window.hacked") is None
    assert HOSTILE in fresh.js("return document.querySelector('pre').textContent").replace("\\", "")
    assert HOSTILE in fresh.js("return document.querySelector('.tiles.layers').textContent")


def test_a_click_on_a_generated_patch_shows_where_it_comes_from(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    assert page.chosen("generated") == [5, 2, 6, 3]
    assert_shown(page.heat("keys"), sram(page.trace, (20, 8, 24, 12), density=False), page)
    assert "row 5, column 2 \N{MIDDLE DOT} pixel 22, 10" in page.told()
    assert page.told().startswith("This patch of the generated picture looks most at the ")


def test_a_click_on_a_reference_patch_shows_where_it_went(page: Page) -> None:
    page.click("keys", 1, 3, (4, 4))
    assert page.chosen("keys") == [1, 3, 2, 4]
    assert page.chosen("generated") is None
    assert_shown(page.heat("generated"), sram(page.trace, (8, 24, 16, 32), direction="r2g", density=False), page)
    assert page.told().startswith("This patch of the reference acts most on the ")


def test_pointing_shows_the_other_direction_and_leaves_what_is_pinned(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    pinned = page.heat("keys")
    page.point("keys", 2, 1, (4, 4))
    wait_for(partial(page.js, "return side('generated').values"))
    expected = sram(page.trace, (16, 8, 24, 16), direction="r2g", density=False)
    assert_shown(page.heat("generated"), expected, page)
    assert page.heat("keys").tolist() == pinned.tolist()
    value, where = page.js("return [...side('keys').tip.children].map((one) => one.textContent)")
    assert float(value.split()[0]) == pytest.approx(100 * pinned[2 * 4 + 1], rel=0.005)
    assert value.endswith("% of the attention")
    assert where.startswith("row 2, column 1 \N{MIDDLE DOT} pixel 20, 12")
    page.point("generated", 6, 6, (8, 8))
    wait_for(partial(page.js, "return side('generated').values === null"))
    assert_shown(page.heat("keys"), sram(page.trace, (24, 24, 28, 28), density=False), page)
    assert page.chosen("generated") == [5, 2, 6, 3]


def test_time_layer_head_and_unit_are_chosen(page: Page) -> None:
    page.click("generated", 3, 6, (8, 8))
    box = (12, 24, 16, 28)
    page.set(group=3, layer=2, head=1)
    selected = page.trace.sel(time=3, layer="up.0.attn2", head=1)
    assert_shown(page.heat("keys"), sram(selected, box, density=False), page)
    page.set(unit="even", layer=-1)
    assert_shown(page.heat("keys"), sram(page.trace.sel(time=3, head=1), box, density=True), page)
    assert "head 1" in page.told()
    assert "times the even share" in page.told()


def test_small_multiples_are_the_levels(page: Page) -> None:
    box = (12, 24, 16, 28)
    page.click("generated", 3, 6, (8, 8))
    asked = "return explorer.asker.ask(explorer.question(0, 'generated', [3, 6, 4, 7], ['groups', 'layers', 'heads']))"
    found = page.js(
        f"{asked}.then((one) => Object.fromEntries(Object.entries(one).map(([k, v]) => [k, [...(v.length ? v : [])]])))"
    )
    for part, level in {"groups": "tlam", "layers": "llam", "heads": "hlam"}.items():
        expected = sram(page.trace, box, level=level, density=False)  # type: ignore[arg-type]
        assert_shown(np.array(found[part]), expected, page)
    counts = page.js("return explorer.multiples.map((one) => one.tiles.length)")
    assert counts == [1 + 5, 1 + 2, 1 + 3]


def test_a_small_multiple_is_looked_through(page: Page) -> None:
    page.click("generated", 3, 6, (8, 8))
    page.js("explorer.multiples[2].tiles[2].click()")
    page.settle()
    assert page.js("return explorer.state.layer") == 1
    expected = sram(page.trace.sel(layer="mid.attn2"), (12, 24, 16, 28), density=False)
    assert_shown(page.heat("keys"), expected, page)
    assert page.js("return explorer.multiples[2].tiles[2].getAttribute('aria-checked')") == "true"
    page.js("explorer.multiples[2].tiles[0].click()")


@pytest.mark.parametrize("direction", ["g2r", "r2g"])
def test_everything_is_the_unified_map_and_its_levels(page: Page, direction: Any) -> None:
    origin, side = ("generated", "keys") if direction == "g2r" else ("keys", "generated")
    page.set(**{"from": origin, "region": "all", "unit": "even"})
    assert_shown(page.heat(side), ulam(page.trace, direction=direction), page)
    page.set(layer=0)
    assert_shown(page.heat(side), llam(page.trace, direction=direction)[0], page)
    page.set(layer=-1, head=1)
    assert_shown(page.heat(side), hlam(page.trace, direction=direction)[1], page)
    page.set(head=-1, group=4)
    assert_shown(page.heat(side), tlam(page.trace, direction=direction)[4], page)


def test_the_keyboard_moves_and_widens_the_choice(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.keys("generated", Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert page.chosen("generated") == [1, 1, 2, 2]
    assert_shown(page.heat("keys"), sram(page.trace, (4, 4, 8, 8), density=False), page)
    page.keys("generated", Keys.SHIFT + Keys.ARROW_RIGHT + Keys.ARROW_DOWN)
    assert page.chosen("generated") == [1, 1, 3, 3]
    assert_shown(page.heat("keys"), sram(page.trace, (4, 4, 12, 12), density=False), page)
    page.keys("generated", *[Keys.ARROW_LEFT] * 9)
    assert page.chosen("generated")[:2] == [1, 0]
    page.keys("generated", Keys.ESCAPE)
    assert page.chosen("generated") == "all"
    assert page.js("return explorer.live.textContent").startswith("All of the generated picture looks most at ")


def test_every_control_takes_the_focus(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.js("explorer.el.querySelector('details').open = true")
    page.js("document.querySelector('h1').tabIndex = -1; document.querySelector('h1').focus()")
    seen = []
    for _ in range(30):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(page.js("return document.activeElement"))
    controls = page.js(
        "return [...explorer.el.querySelectorAll('button:not([role=radio]), summary, select, input, .stage')]"
    )
    assert len(controls) > 12
    assert set(controls) <= set(seen)
    checked = page.js("return [...explorer.el.querySelectorAll('[role=radio][aria-checked=true]')]")
    assert len(checked) == 3
    assert set(checked) <= set(seen)
    page.js("explorer.el.querySelector('details').open = false")


def test_the_mask_is_a_region(page: Page) -> None:
    page.press("Mask")
    mask = page.trace.images["mask"].values > 127
    assert_shown(page.heat("keys"), sram(page.trace, mask, density=False), page)


def test_a_dragged_box_is_a_region(page: Page) -> None:
    from selenium.webdriver import ActionChains

    element = page.js("side('generated').stage.scrollIntoView({block: 'center'}); return side('generated').stage")
    cell = element.size["width"] / 8
    drag = ActionChains(page.driver).move_to_element_with_offset(element, -2.5 * cell, -1.5 * cell)
    drag.click_and_hold().move_by_offset(2 * cell, cell).move_by_offset(2, 2).release().perform()
    page.settle()
    assert page.chosen("generated") == [2, 1, 4, 4]
    assert_shown(page.heat("keys"), sram(page.trace, (8, 4, 16, 16), density=False), page)


def test_a_tap_pins(page: Page) -> None:
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    element = page.js("side('keys').stage.scrollIntoView({block: 'center'}); return side('keys').stage")
    box = page.js("return side('keys').stage.getBoundingClientRect().toJSON()")
    point = {"x": box["x"] + 0.6 * element.size["width"], "y": box["y"] + 0.9 * element.size["height"]}
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    wait_for(lambda: page.chosen("keys") == [3, 2, 4, 3])
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_link_restores_what_is_seen(page: Page) -> None:
    page.set(**{"from": "keys", "region": [0, 1, 2, 3], "layer": 1, "group": 2, "unit": "even"})
    address, shown = page.js("return location.href"), page.heat("generated")
    page.open(address)
    assert page.chosen("keys") == [0, 1, 2, 3]
    assert page.heat("generated").tolist() == shown.tolist()
    page.open(address.partition("#")[0] + "#from=nowhere&region=9,9,99,99&layer=77&relation=5")
    assert page.js("return [explorer.state.from, explorer.state.layer, explorer.state.relation]") == [
        "generated",
        -1,
        0,
    ]


def test_the_colours_can_be_held(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    page.set(scale="fixed")
    high = page.js("return explorer.high.textContent")
    page.click("generated", 1, 7, (8, 8))
    assert page.js("return explorer.high.textContent") == high
    page.set(scale="own")
    assert page.js("return explorer.high.textContent") != high


def test_time_plays(page: Page) -> None:
    page.press("Play")
    wait_for(lambda: page.js("return explorer.state.group") == 1)
    page.press("Pause")
    assert page.js("return explorer.playing") is None


def test_a_picture_is_saved(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    width, height, colours = page.js(
        "const made = explorer.picture(), context = made.getContext('2d');"
        "const { data } = context.getImageData(0, 0, made.width, made.height);"
        "return [made.width, made.height, new Set(new Uint32Array(data.buffer)).size]"
    )
    assert width > 2 * 720 - 10
    assert height == 870
    assert colours > 500


def test_a_click_shows_its_map_at_once(page: Page) -> None:
    spent = page.js(
        "return (async () => { const times = []; for (let cell = 0; cell < 8; cell++) {"
        "const start = performance.now(), before = explorer.turn;"
        "explorer.pin(side('generated'), [cell, 3, cell + 1, 4]);"
        "while (explorer.turn === before) await new Promise((done) => queueMicrotask(done));"
        "times.push(performance.now() - start); } return times.sort((a, b) => a - b)[4]; })()"
    )
    page.settle()
    assert spent < 50


@pytest.mark.parametrize(("width", "height", "seen"), [(1440, 900, 2), (1024, 768, 2), (390, 844, 1)])
def test_pictures_lie_above_the_fold(page: Page, width: int, height: int, seen: int) -> None:
    page.js("window.scrollTo(0, 0)")
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait_for(partial(page.js, f"return window.innerWidth === {width}"))
    ends = page.js("return explorer.sides.map((one) => one.stage.getBoundingClientRect().bottom)")
    assert sum(end <= height for end in ends) >= seen
    root = "document.documentElement"
    wait_for(partial(page.js, f"return {root}.scrollWidth <= {root}.clientWidth"))
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_list_of_words(driver: Any, tmp_path: Path) -> None:
    segments = ({"kind": "text", "count": 3},)
    one = site_class("text/64x3h2d8", key_grid=None, keys=3, key_segments=segments, tokens=("a", HOSTILE, "cat"))
    page = Page(driver, open_trace(make_trace(tmp_path / "run.zarr", (one,)).path), tmp_path / "report.html")
    assert page.complaints() == []
    page.set(unit="share")
    page.js("side('keys').chips[1].click()")
    page.settle()
    assert page.chosen("keys") == [1, 0, 2, 1]
    assert_shown(page.heat("generated"), ulam(page.trace, keys=[1], density=False), page)
    assert page.js("return window.hacked") is None


def test_text_and_reference_are_seen_at_once(driver: Any, tmp_path: Path) -> None:
    words = site_class(
        "text/64x3h2d8", key_grid=None, keys=3, key_segments=({"kind": "text", "count": 3},), tokens=("a", "red", "cat")
    )
    trace = open_trace(make_trace(tmp_path / "run.zarr", (site_class(), words), spread=1.5).path)
    page = Page(driver, trace, tmp_path / "report.html")
    page.set(unit="share")
    page.click("generated", 5, 2, (8, 8))
    assert_shown(page.heat("keys"), sram(trace, (5, 2), density=False), page)
    found = page.js("return Array.from(explorer.others[1].values)")
    scores = np.asarray(trace.sel(context="text").scores[words.group]["scores"])
    weights = np.exp(scores[:, :, :, 5 * 8 + 2])
    expected = (weights / weights.sum(-1, keepdims=True)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(found, expected, atol=0.004)
    page.js("explorer.others[1].chips[2].click()")
    page.settle()
    assert_shown(page.heat("generated"), ulam(trace.sel(context="text"), keys=[2], density=False), page)
    assert page.told().startswith("\N{LEFT DOUBLE QUOTATION MARK}cat\N{RIGHT DOUBLE QUOTATION MARK} acts most on")


def test_without_pictures_the_patches_are_shown_alone(driver: Any, tmp_path: Path) -> None:
    page = Page(driver, open_trace(make_trace(tmp_path / "run.zarr").path), tmp_path / "report.html")
    assert page.complaints() == []
    page.set(unit="share")
    page.click("generated", 5, 2, (8, 8))
    assert_shown(page.heat("keys"), sram(page.trace, (5, 2), density=False), page)


def test_one_key(driver: Any, tmp_path: Path) -> None:
    one = site_class("reference/64x1h2d8", key_grid=None, keys=1, key_segments=({"kind": "cls", "count": 1},))
    images = {name: np.full((16, 16, 3), 99, np.uint8) for name in ("generated", "reference")}
    made = make_trace(tmp_path / "run.zarr", (one,), images=images, image_size=(16, 16))
    page = Page(driver, open_trace(made.path), tmp_path / "report.html")
    assert page.complaints() == []
    page.set(unit="share")
    assert_shown(page.heat("generated"), ulam(page.trace, density=False), page)
    page.click("generated", 2, 2, (8, 8))
    assert page.told().startswith("All of the keys together act most on the ")


@pytest.mark.parametrize(
    "weights", [{"*": 1, "up.0": 0.25}, {"*": [2, 0.5], "up.0": [0.25, 3]}], ids=["by-layer", "by-head"]
)
def test_chosen_patches_are_weighted(driver: Any, opened: Page, tmp_path: Path, weights: Any) -> None:
    page = Page(driver, opened.trace, tmp_path / "weighted.html", weights=weights)
    page.click("generated", 5, 2, (8, 8))
    box = (20, 8, 24, 12)
    assert_shown(page.heat("keys"), sram(page.trace, box, weights=weights), page)
    page.set(head=1)
    assert_shown(page.heat("keys"), sram(page.trace.sel(head=1), box, weights=weights), page)
    page.set(head=-1, layer=2)
    assert_shown(page.heat("keys"), sram(page.trace.sel(layer="up.0"), box, weights=weights), page)


@pytest.mark.skipif(not AXE.is_file(), reason="ATTRACE_NODE_MODULES has no axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(driver: Any, opened: Page, tmp_path: Path, scheme: str) -> None:
    words = site_class(
        "text/64x3h2d8", key_grid=None, keys=3, key_segments=({"kind": "text", "count": 3},), tokens=("a", "red", "cat")
    )
    trace = open_trace(make_trace(tmp_path / "run.zarr", (site_class(), words)).path)
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    for page in (Page(driver, opened.trace, tmp_path / "one.html"), Page(driver, trace, tmp_path / "two.html")):
        assert page.barriers(AXE.read_text()) == []
