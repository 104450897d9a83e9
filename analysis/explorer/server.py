"""The live view: a server on this machine alone that shows traces with exact values, and writes nothing."""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from attrace.analysis.explorer.exact import ExactAnswers
from attrace.analysis.explorer.facts import name_of, picture_address
from attrace.analysis.explorer.page import for_script, render_page
from attrace.analysis.explorer.words import notes_of, summary_of
from attrace.schemas import AttraceError, InputError

if TYPE_CHECKING:
    from attrace.analysis.maps.weights import LayerWeights
    from attrace.analysis.trace.trace import Trace

LONGEST_QUESTION: Final = 10_000
"""Bytes of a question, at most."""

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LiveView(ThreadingHTTPServer):
    """Serves the explorer of one trace, or a gallery of several, on the loopback address.

    Whoever knows `address` can look: it holds a token, and requests that name another host or come from another page
    are refused.

    Parameters
    ----------
    traces
        What is shown.
    port
        Of the server; 0 for any that is free.
    weights
        Of layers and heads in every mean over them, as for `attribution_map`.

    Raises
    ------
    InputError
        If there is no trace.
    OSError
        If the port is taken.
    """

    daemon_threads = True

    def __init__(self, traces: Sequence[Trace], *, port: int = 0, weights: LayerWeights = None) -> None:
        if not traces:
            raise InputError("there is no trace to show")
        self.traces, self.token = list(traces), secrets.token_urlsafe(16)
        self.answers = lru_cache(maxsize=64)(lambda number: ExactAnswers(self.traces[number], weights=weights))
        if len(self.traces) == 1:
            self.answers(0)  # what cannot be shown is said at once
        super().__init__(("127.0.0.1", port), _Request)
        self.host = f"127.0.0.1:{self.server_port}"

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{self.host}/{self.token}/"

    def page(self, number: int) -> tuple[str, str]:
        """The page of a trace, and the policy of its content."""
        answers = self.answers(number)
        trace = answers.plans[0].trace
        values = {
            "title": name_of(trace),
            "summary": summary_of(trace),
            "back": len(self.traces) > 1,
            "notes": [note for plan in answers.plans for note in notes_of(plan)],
            "embedding": for_script({"facts": answers.facts}),
        }
        start = (
            "for (const at of document.querySelectorAll('[data-explorer]')) "
            "await render({ model: live(at.parentNode), el: at });"
        )
        return render_page("view.html", ["local.js", "live.js", "explorer.js"], start, values)

    def gallery(self) -> tuple[str, str]:
        """The page of all traces, and the policy of its content."""
        listed = [
            {"name": name_of(one), "summary": summary_of(one), "picture": picture_address(one, "generated")}
            for one in self.traces
        ]
        return render_page("gallery.html", [], "", {"title": f"{len(listed)} traces", "traces": listed})

    def look(self, number: int, question: Any) -> bytes:
        """The answer to a question, as the page takes it: the length of the head, the head, float32 arrays."""
        head, arrays = self.answers(number).answer(question)
        encoded = json.dumps(head | {"bytes": [array.nbytes for array in arrays]}).encode()
        return struct.pack("<I", len(encoded)) + encoded + b"".join(array.astype("<f4").tobytes() for array in arrays)


class _Request(BaseHTTPRequestHandler):
    """One request; everything that is no question or page of ours is refused."""

    server: LiveView
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._respond(self._page)

    def do_POST(self) -> None:
        self._respond(self._look)

    def log_message(self, *_: object) -> None:
        """Say nothing of requests: the terminal is the user's."""

    def _page(self, path: list[str]) -> None:
        single = len(self.server.traces) == 1
        if path not in ([], ["0"]) and (single or len(path) != 1):
            raise LookupError
        if path == [] and not single:
            page, policy = self.server.gallery()
        else:
            page, policy = self.server.page(self._number(path))
        policy += "; connect-src 'self'; base-uri 'none'; form-action 'none'"
        self._send(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _look(self, path: list[str]) -> None:
        if path[-1:] != ["look"] or self.headers.get("Origin", self._origin) != self._origin:
            raise LookupError
        length = int(self.headers.get("Content-Length", ""))
        if not 0 < length <= LONGEST_QUESTION:
            raise InputError(f"expected a question of at most {LONGEST_QUESTION} bytes, found {length}")
        answer = self.server.look(self._number(path[:-1]), json.loads(self.rfile.read(length)))
        self._send(HTTPStatus.OK, answer, "application/octet-stream")

    def _number(self, path: list[str]) -> int:
        """The trace that a path names."""
        number = int(path[0]) if path else 0
        if len(path) > 1 or not 0 <= number < len(self.server.traces):
            raise LookupError
        return number

    @property
    def _origin(self) -> str:
        return f"http://{self.server.host}"

    def _respond(self, answer: Any) -> None:
        try:
            token, *path = self.path.partition("?")[0].strip("/").split("/")
            known = secrets.compare_digest(token.encode(), self.server.token.encode())
            if self.headers.get("Host") != self.server.host or not known:
                raise LookupError
            answer(path)
        except LookupError:
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that attrace view printed")
        except (AttraceError, ValueError, OSError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._send(status, why.encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))} | (headers or {})
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
