"""A headless Chromium that opens a report, where one is installed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PATIENCE = 60.0
"""Seconds to wait for what a page does by itself."""


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Selenium's driver of a fresh Chromium; skips the test where there is none."""
    selenium = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        yield driven
    finally:
        driven.quit()


def wait_for(what: Callable[[], Any]) -> Any:
    """What a function gives once it gives something."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, "the page did not do it"
        time.sleep(0.05)
    return found
