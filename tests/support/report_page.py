"""A report that is open in a browser: its clicks, its keys, and the numbers that it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.browser import wait_for

from attrace.analysis import Trace, write_report


class Page:
    """A report that is open in a browser."""

    def __init__(self, driver: Any, trace: Trace, path: Path, **options: Any) -> None:
        self.driver, self.trace = driver, trace
        write_report(trace, path, **options)
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(path.as_uri())
        wait_for(lambda: self.js("return document.documentElement.dataset.ready"))

    def js(self, code: str) -> Any:
        """What a piece of JavaScript returns; `model` finds a model of Bokeh by its name."""
        return self.driver.execute_script("const model = (n) => Bokeh.documents[0].get_model_by_name(n);" + code)

    def heat(self, name: str) -> NDArray[np.float64]:
        """The values that are shown over a picture."""
        return np.array(self.js(f"return Array.from(model('heat-{name}').data.image[0])"), np.float64)

    def chosen(self, name: str) -> list[float]:
        """Top, left, bottom and right of the chosen cells of a picture."""
        data = self.js(f"return model('chosen-{name}').data")
        return [data[side][0] for side in ("top", "left", "bottom", "right")]

    def set(self, name: str, attribute: str, value: Any) -> None:
        self.js(f"model({name!r}).{attribute} = {json.dumps(value)}")

    def click(self, name: str, row: int, column: int, grid: tuple[int, int]) -> None:
        """Click the middle of a cell of a picture."""
        self.point(name, row, column, grid).click().perform()

    def point(self, name: str, row: int, column: int, grid: tuple[int, int]) -> Any:
        """Move the pointer to the middle of a cell of a picture; what can be done next."""
        from selenium.webdriver import ActionChains

        element = self.driver.find_element("id", name)
        self.js(f"document.getElementById({name!r}).scrollIntoView({{block: 'center'}})")
        x = ((column + 0.5) / grid[1] - 0.5) * element.size["width"]
        y = ((row + 0.5) / grid[0] - 0.5) * element.size["height"]
        actions = ActionChains(self.driver).move_to_element_with_offset(element, x, y)
        actions.perform()
        return ActionChains(self.driver)

    def click_at(self, name: str, x: int, y: int) -> None:
        """Click so many pixels from the left and the lower end of an element."""
        from selenium.webdriver import ActionChains

        element = self.driver.find_element("id", name)
        self.js(f"document.getElementById({name!r}).scrollIntoView({{block: 'center'}})")
        left, down = x - element.size["width"] / 2, element.size["height"] / 2 - y
        ActionChains(self.driver).move_to_element_with_offset(element, left, down).click().perform()

    def keys(self, name: str, *keys: str) -> None:
        self.driver.find_element("id", name).send_keys(*keys)


def assert_shown(found: NDArray[np.float64], expected: Any, page: Page) -> None:
    """The map is the expected one, to within what the page says of its exactness."""
    bound = float(page.js("return document.getElementById('legend-error').textContent").split()[-1])
    values = expected.values.ravel()
    assert np.abs(found - values).max() <= bound * 1.05
    assert bound < 0.02 * values.max()
    assert values.max() > 1.2 * values.mean()
