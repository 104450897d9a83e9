"""The report of a trace in a real browser: what it shows is what `sram` gives, by mouse and by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import chromium, wait_for
from support.report_page import Page, assert_shown
from support.traces import make_trace, site_class

from attrace.analysis import open_trace, sram, ulam

pytest.importorskip("bokeh")

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


TOOLTIPS = """
const texts = (root) => Array.from(root.querySelectorAll('*')).flatMap((one) => [
    ...(one.matches('.bk-tooltip-row-label, .bk-tooltip-row-value') ? [one.textContent.trim()] : []),
    ...(one.shadowRoot ? texts(one.shadowRoot) : []),
]);
return texts(document);
"""
"""The words of the tooltips that are open, in their order."""


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
    """The report as it is when it opens."""
    for name, value in {"time": 0, "layer": "-1", "head": "-1", "value": "weight"}.items():
        opened.set(name, "value", value)
    for name in ("direction", "region", "scale", "level"):
        opened.set(name, "active", 0)
    return opened


def test_it_loads_alone_and_without_an_error(page: Page) -> None:
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.js("return window.hacked") is None
    assert HOSTILE in page.js("return document.querySelector('pre').textContent").replace("\\", "")


def test_a_click_on_a_generated_patch_shows_where_it_comes_from(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    assert page.chosen("generated") == [5, 2, 6, 3]
    assert_shown(page.heat("reference"), sram(page.trace, (20, 8, 24, 12), density=False), page)
    assert "row 5, column 2 (pixel 22, 10)" in page.js("return document.getElementById('told').textContent")


def test_a_click_on_a_reference_patch_shows_where_it_went(page: Page) -> None:
    page.click("reference", 1, 3, (4, 4))
    assert page.chosen("reference") == [1, 3, 2, 4]
    assert page.js("return model('direction').active") == 1
    assert_shown(page.heat("generated"), sram(page.trace, (8, 24, 16, 32), direction="r2g", density=False), page)


def test_time_layer_head_and_unit_are_chosen(page: Page) -> None:
    page.click("generated", 3, 6, (8, 8))
    box = (12, 24, 16, 28)
    page.set("time", "value", 4)
    page.set("layer", "value", "2")
    page.set("head", "value", "1")
    selected = page.trace.sel(time=3, layer="up.0.attn2", head=1)
    assert_shown(page.heat("reference"), sram(selected, box, density=False), page)
    page.set("value", "value", "density")
    page.set("layer", "value", "-1")
    assert_shown(page.heat("reference"), sram(page.trace.sel(time=3, head=1), box, density=True), page)
    page.set("direction", "active", 1)
    place = [8 * side for side in page.chosen("reference")]
    expected = sram(page.trace.sel(time=3, head=1), tuple(map(int, place)), direction="r2g", density=True)
    assert_shown(page.heat("generated"), expected, page)


def test_the_keyboard_moves_and_widens_the_choice(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.click("generated", 0, 0, (8, 8))
    page.keys("generated", Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert page.chosen("generated") == [1, 1, 2, 2]
    assert_shown(page.heat("reference"), sram(page.trace, (4, 4, 8, 8), density=False), page)
    page.keys("generated", Keys.SHIFT + Keys.ARROW_RIGHT + Keys.ARROW_DOWN)
    assert page.chosen("generated") == [1, 1, 3, 3]
    assert_shown(page.heat("reference"), sram(page.trace, (4, 4, 12, 12), density=False), page)
    page.keys("generated", *[Keys.ARROW_LEFT] * 9)
    assert page.chosen("generated")[:2] == [1, 0]
    slider = page.js("return model('time').value")
    page.js("document.activeElement.blur()")
    assert slider == 0


def test_every_control_takes_the_focus(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.js("document.querySelector('h1').tabIndex = -1; document.querySelector('h1').focus()")
    seen = set()
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        seen.add(page.js("const one = document.activeElement; return one.id || one.closest('.control')?.id"))
    controls = page.js("return Array.from(document.querySelectorAll('.control'), (one) => one.id)")
    assert len(controls) == 11
    assert {"generated", "reference", *controls} <= seen


def test_the_mask_is_a_region(page: Page) -> None:
    page.set("region", "active", 2)
    mask = page.trace.images["mask"].values > 127
    assert_shown(page.heat("reference"), sram(page.trace, mask, density=False), page)


def test_a_dragged_box_is_a_region(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.set("region", "active", 1)
    element = page.driver.find_element("id", "generated")
    page.js("document.getElementById('generated').scrollIntoView({block: 'center'})")
    cell = element.size["width"] / 8
    drag = ActionChains(page.driver).move_to_element_with_offset(element, -2.5 * cell, -1.5 * cell)
    drag.click_and_hold().move_by_offset(2 * cell, cell).move_by_offset(2, 2).release().perform()
    assert page.chosen("generated") == [2, 1, 4, 4]
    assert_shown(page.heat("reference"), sram(page.trace, (8, 4, 16, 16), density=False), page)


def test_values_and_units_stand_at_the_pointer(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    page.point("reference", 2, 1, (4, 4))
    value = page.heat("reference")[2 * 4 + 1]
    told = wait_for(partial(page.js, TOOLTIPS))
    assert told[:5] == ["row:", "2", "column:", "1", "value:"]
    assert float(told[5].split()[0]) == pytest.approx(value, rel=0.005)
    assert told[5].endswith("of the attention")


def test_the_choice_follows_the_pointer_where_that_is_wanted(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    page.point("generated", 1, 1, (8, 8))
    assert page.chosen("generated") == [5, 2, 6, 3]
    page.set("follow", "active", True)
    page.point("generated", 6, 3, (8, 8))
    assert wait_for(lambda: page.chosen("generated") == [6, 3, 7, 4])
    page.set("follow", "active", False)


def test_a_click_on_a_level_chooses_it(page: Page) -> None:
    for level, control, expected in ((1, "time", 1), (2, "head", "0"), (3, "layer", "0")):
        page.set("level", "active", level)
        page.click_at("gallery-r2g", 40, 100)
        assert page.js(f"return model({control!r}).value") == expected
    assert any("script" in word for word in wait_for(partial(page.js, TOOLTIPS)))
    assert page.js("return window.hacked") is None


def test_the_scale_can_be_fixed(page: Page) -> None:
    page.click("generated", 5, 2, (8, 8))
    page.set("scale", "active", 1)
    high = page.js("return document.getElementById('legend-high').textContent")
    page.click("generated", 1, 7, (8, 8))
    assert page.js("return document.getElementById('legend-high').textContent") == high
    page.set("scale", "active", 0)
    assert page.js("return document.getElementById('legend-high').textContent") != high


def test_the_galleries_show_every_level(page: Page) -> None:
    for level, count in enumerate((1, 5, 2, 3)):
        page.set("level", "active", level)
        for way in ("r2g", "g2r"):
            assert page.js(f"return model('maps-gallery_{way}').data.value.length") == count
    page.set("level", "active", 0)
    found = page.js("return Array.from(model('maps-gallery_g2r').data.value[0])")
    np.testing.assert_allclose(found, ulam(page.trace, direction="g2r", density=False).values.ravel(), rtol=1e-5)


def test_a_narrow_page_does_not_scroll_sideways(page: Page) -> None:
    for width in (390, 1280):
        page.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        wait_for(partial(page.js, f"return window.innerWidth === {width}"))
        root = "document.documentElement"
        wait_for(partial(page.js, f"return {root}.scrollWidth <= {root}.clientWidth"))
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_list_of_tokens(driver: Any, tmp_path: Path) -> None:
    segments = ({"kind": "text", "count": 3},)
    one = site_class("text/64x3h2d8", key_grid=None, keys=3, key_segments=segments, tokens=("a", HOSTILE, "cat"))
    page = Page(driver, open_trace(make_trace(tmp_path / "run.zarr", (one,)).path), tmp_path / "report.html")
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    page.set("value", "value", "weight")
    page.keys("reference", "\ue015", "\ue015", "\ue015", "\ue013")  # down, down, down, up
    assert page.chosen("reference") == [1, 0, 2, 1]
    assert_shown(page.heat("generated"), ulam(page.trace, keys=[1], density=False), page)
    assert page.js("return window.hacked") is None


def test_without_pictures_the_patches_are_shown_alone(driver: Any, tmp_path: Path) -> None:
    page = Page(driver, open_trace(make_trace(tmp_path / "run.zarr").path), tmp_path / "report.html")
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    page.set("value", "value", "weight")
    page.click("generated", 5, 2, (8, 8))
    assert_shown(page.heat("reference"), sram(page.trace, (5, 2), density=False), page)


def test_one_key(driver: Any, tmp_path: Path) -> None:
    one = site_class("reference/64x1h2d8", key_grid=None, keys=1, key_segments=({"kind": "cls", "count": 1},))
    images = {name: np.full((16, 16, 3), 99, np.uint8) for name in ("generated", "reference")}
    made = make_trace(tmp_path / "run.zarr", (one,), images=images, image_size=(16, 16))
    page = Page(driver, open_trace(made.path), tmp_path / "report.html")
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    page.set("value", "value", "weight")
    assert_shown(page.heat("generated"), ulam(page.trace, density=False), page)


@pytest.mark.parametrize(
    "weights", [{"*": 1, "up.0": 0.25}, {"*": [2, 0.5], "up.0": [0.25, 3]}], ids=["by-layer", "by-head"]
)
def test_chosen_patches_are_weighted(driver: Any, opened: Page, tmp_path: Path, weights: Any) -> None:
    page = Page(driver, opened.trace, tmp_path / "weighted.html", weights=weights)
    page.set("value", "value", "density")
    page.click("generated", 5, 2, (8, 8))
    box = (20, 8, 24, 12)
    assert_shown(page.heat("reference"), sram(page.trace, box, weights=weights), page)
    page.set("head", "value", "1")
    assert_shown(page.heat("reference"), sram(page.trace.sel(head=1), box, weights=weights), page)
    page.set("head", "value", "-1")
    page.set("layer", "value", "2")
    assert_shown(page.heat("reference"), sram(page.trace.sel(layer="up.0"), box, weights=weights), page)
