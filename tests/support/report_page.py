"""An explorer that is open in a browser: its clicks, its keys, and the numbers that it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.browser import wait_for

from attrace.analysis import Trace, write_report

FIND = """
const explorer = document.querySelector(arguments[0]).explorer;
const side = (name) => explorer.sides.find((one) => one.name === name);
"""


class Page:
    """An explorer that is open in a browser; `where` selects its element, where there are several."""

    def __init__(
        self, driver: Any, trace: Trace, path: Path | None = None, where: str = "[data-explorer]", **options: Any
    ) -> None:
        self.driver, self.trace, self.where = driver, trace, where
        if path is not None:
            write_report(trace, path, **options)
            self.open(path.as_uri())

    def open(self, address: str) -> None:
        """Open an address, and wait until its maps and small multiples stand."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get("about:blank")
        self.driver.get(address)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for last is shown."""
        done = (
            "const el = document.querySelector(arguments[0]); return el?.dataset.failed || el?.dataset.shows === 'all'"
        )
        wait_for(lambda: self.driver.execute_script(done, self.where))
        assert self.js("return explorer.el.dataset.failed ?? ''") == ""

    def js(self, code: str) -> Any:
        """What a piece of JavaScript returns; `explorer` is the explorer, `side` finds one of its sides."""
        return self.driver.execute_script(FIND + code, self.where)

    def heat(self, name: str) -> NDArray[np.float64]:
        """The values that are shown over a side."""
        return np.array(self.js(f"return Array.from(side('{name}').values)"), np.float64)

    def chosen(self, name: str) -> Any:
        """Top, left, bottom and right of the chosen cells of a side, `mask` or `all`; None where nothing is chosen."""
        return self.js(f"return side('{name}').pinned")

    def set(self, **changes: Any) -> None:
        """Choose a layer, head or group of steps by index, a unit, or what else the state holds."""
        self.js(f"explorer.change({json.dumps(changes)})")
        self.settle()

    def press(self, text: str) -> None:
        """Press the button of that text."""
        self.js(f"[...explorer.el.querySelectorAll('button')].find((one) => one.textContent === {text!r}).click()")
        self.settle()

    def click(self, name: str, row: int, column: int, grid: tuple[int, int]) -> None:
        """Click the middle of a cell of a side."""
        self.point(name, row, column, grid).click().perform()
        self.settle()

    def point(self, name: str, row: int, column: int, grid: tuple[int, int]) -> Any:
        """Move the pointer to the middle of a cell of a side; what can be done next."""
        from selenium.webdriver import ActionChains

        element = self.js(f"side('{name}').stage.scrollIntoView({{block: 'center'}}); return side('{name}').stage")
        x = ((column + 0.5) / grid[1] - 0.5) * element.size["width"]
        y = ((row + 0.5) / grid[0] - 0.5) * element.size["height"]
        ActionChains(self.driver).move_to_element_with_offset(element, x, y).perform()
        return ActionChains(self.driver)

    def keys(self, name: str, *keys: str) -> None:
        """Press keys while a side has the focus."""
        self.js(f"return side('{name}').stage").send_keys(*keys)
        self.settle()

    def told(self) -> str:
        """The sentence and the line below it."""
        words: str = self.js("return `${explorer.told.textContent} ${explorer.detail.textContent}`")
        return words

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def barriers(self, axe: str) -> list[tuple[str, str]]:
        """What axe finds on the page with all of it unfolded: rules, and the first element that breaks each."""
        self.js("for (const one of document.querySelectorAll('details')) one.open = true")
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})
        listed = "found.violations.map((one) => [one.id, one.nodes[0].html])"
        ran = f"axe.run(document).then((found) => arguments[0]({listed}))"
        found: list[tuple[str, str]] = self.driver.execute_async_script(ran)
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for, but for files and data."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:", "about:", "blob:", "chrome:"))]


def assert_shown(found: NDArray[np.float64], expected: Any, page: Page) -> None:
    """The map is the expected one, to within what the page says of its exactness."""
    bound = float(page.js("return explorer.error") or 0)  # NaN, which arrives as None, where values are exact
    values = np.asarray(expected.values).ravel()
    assert np.abs(found - values).max() <= bound * 1.001 + 1e-6 * values.max()
    assert bound < 0.04 * values.max()
    assert values.max() > 1.2 * values.mean()
