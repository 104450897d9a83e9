"""The live view: exact values in a browser, for nobody but who has its address, and nothing written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import chromium
from support.report_page import Page, assert_shown
from support.traces import make_trace, site_class

from attrace.analysis import Trace, open_trace, sram
from attrace.analysis.explorer.server import LiveView
from attrace.schemas import InputError


@contextmanager
def serving(*traces: Trace) -> Iterator[LiveView]:
    """A server that runs on another thread."""
    with LiveView(traces) as server:
        running = threading.Thread(target=server.serve_forever)
        running.start()
        try:
            yield server
        finally:
            server.shutdown()
            running.join()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("generated", "reference")}
    words = site_class(
        "text/64x3h2d8", key_grid=None, keys=3, key_segments=({"kind": "text", "count": 3},), tokens=("a", "red", "cat")
    )
    path = tmp_path_factory.mktemp("live") / "run.zarr"
    made = make_trace(path, (site_class(), words), steps=4, spread=1.5, images=images, image_size=(32, 32))
    return open_trace(made.path)


@pytest.fixture(scope="module")
def server(trace: Trace) -> Iterator[LiveView]:
    with serving(trace) as running:
        yield running


def asked(server: LiveView, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of the answer to a request."""
    connection = HTTPConnection("127.0.0.1", server.server_port)
    try:
        connection.request(method, path, body or None, {"Host": server.host} | headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace"), answer.headers
    finally:
        connection.close()


def test_exact_values_in_a_browser(server: LiveView, trace: Trace, tmp_path: Path) -> None:
    files = sorted(path for path in Path(trace.path).rglob("*"))
    with chromium(tmp_path / "profile") as driver:
        page = Page(driver, trace)
        page.open(server.address)
        assert page.complaints() == []
        assert {url.partition("?")[0] for url in page.requests()} <= {server.address, server.address + "look"}
        page.click("generated", 5, 2, (8, 8))
        assert_shown(page.heat("keys"), sram(trace, (20, 8, 24, 12)), page)
        assert "exact values" in page.told()
        page.set(layer=1, head=0, group=3, unit="share")
        chosen = trace.sel(layer="up.0.attn2", head=0, time=3)
        assert_shown(page.heat("keys"), sram(chosen, (20, 8, 24, 12), density=False), page)
        page.open(server.address + "#from=keys&region=1,3,2,4")
        assert_shown(page.heat("generated"), sram(trace, (8, 24, 16, 32), direction="r2g"), page)
    assert sorted(path for path in Path(trace.path).rglob("*")) == files


def test_several_traces_are_a_gallery(trace: Trace) -> None:
    with serving(trace, trace.sel(context="text")) as server:
        status, page, _ = asked(server, "GET", f"/{server.token}/")
        assert (status, page.count('src="data:image/png')) == (200, 2)
        for number in (0, 1):
            assert f'href="{number}/"' in page
            status, one, _ = asked(server, "GET", f"/{server.token}/{number}/")
            assert status == 200
            assert "All traces" in one
        assert asked(server, "GET", f"/{server.token}/2/")[0] == 403


def test_only_who_has_the_address_is_answered(server: LiveView) -> None:
    path = f"/{server.token}/"
    assert server.server_address[0] == "127.0.0.1"
    status, page, headers = asked(server, "GET", path)
    assert status == 200
    assert "data-facts" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert (headers["X-Frame-Options"], headers["Referrer-Policy"]) == ("DENY", "no-referrer")
    for wrong in ("/", "/favicon.ico", f"/{server.token}x/", f"/{server.token}/../zarr.json", path + "run.zarr"):
        assert asked(server, "GET", wrong)[0] in (400, 403), wrong
    assert asked(server, "GET", path, Host="attacker.example")[0] == 403
    assert asked(server, "GET", path, Host=f"localhost:{server.server_port}")[0] == 403
    assert asked(server, "PUT", path)[0] == 501


def test_questions_from_other_pages_are_refused(server: LiveView) -> None:
    look = f"/{server.token}/look"
    question = (
        '{"id": 1, "relation": 0, "from": "generated", "region": "all", "layer": -1, "head": -1, "group": -1, '
        '"unit": "even", "parts": ["map"]}'
    )
    assert asked(server, "POST", look, question, Origin=f"http://{server.host}")[0] == 200
    assert asked(server, "POST", look, question, Origin="https://attacker.example")[0] == 403
    assert asked(server, "POST", look, question, Origin="null")[0] == 403
    assert asked(server, "POST", "/wrong/look", question)[0] == 403
    status, told, _ = asked(server, "POST", look, question.replace('"all"', '"nothing"'))
    assert status == 400
    assert "expected a question" in told
    for body in ("x", "[]", '"' + 20_000 * "x" + '"'):
        assert asked(server, "POST", look, body)[0] == 400


def test_what_cannot_be_shown_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished step"):
        LiveView([open_trace(make_trace(tmp_path / "run.zarr", steps=0).path)])
    with pytest.raises(InputError, match="no trace"):
        LiveView([])
