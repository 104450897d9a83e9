"""A web server on this machine that answers range requests, and counts what it sends."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = Literal["404", "500", "cut", "stale"]
"""Nothing there, an error of the server, half of the bytes that are announced, or an older version of the file."""


@dataclass
class Served:
    """A server and what it sent."""

    address: str
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    """Bytes of all answers, without their headers."""
    fault: Callable[[], Fault | None] = lambda: None
    """What is wrong with the next answer: see `Fault`."""
    old: Path | None = None
    """Folder of older versions of the files, for answers that are stale."""
    last: int | None = None
    """Bytes after which it breaks off, in the middle of an answer, and then refuses everything."""


@contextmanager
def serving(folder: Path, *, ranges: bool = True) -> Iterator[Served]:
    """Serve the files of a folder on the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            served.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            path, fault = folder / self.path.lstrip("/"), served.fault()
            if fault in ("404", "500"):
                self.send_error(int(fault))
                return
            if fault == "stale" and served.old is not None:
                path = served.old / self.path.lstrip("/")
            if served.last is not None and served.sent >= served.last:
                self.send_error(403)
                return
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", "")) if ranges else None
            if asked is None:
                self.send_response(200)
            else:
                first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                content = content[first : last + 1]
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                if served.last is not None:
                    content = content[: served.last - served.sent]
                served.sent += len(content)
                if fault == "cut":
                    content = content[: len(content) // 2]
                    self.close_connection = True
                with suppress(ConnectionError):  # of a client that wanted a part only
                    self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
