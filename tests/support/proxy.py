"""A proxy on this machine that counts what a server answers.

It passes all bytes on as they are but one status: `rclone serve s3` sends the part of an object that it was asked for
(`Content-Range`) with 200, where S3 says 206, and clients take that for a server that knows no ranges.
"""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Counted:
    """A proxy and what came through it."""

    address: str
    received: int = 0
    """Bytes that the server sent, headers included."""
    statuses: list[int] = field(default_factory=list)
    """Of every answer, where it began a packet."""


@contextmanager
def counting(server: str) -> Iterator[Counted]:
    """Pass connections on to a server, `host:port`."""
    host, _, port = server.rpartition(":")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as upstream:
                up = threading.Thread(target=self._pass_on, args=(self.request, upstream), daemon=True)
                up.start()
                self._pass_on(upstream, self.request, count=True)
                with suppress(OSError):
                    self.request.shutdown(socket.SHUT_RDWR)
                up.join()

        def _pass_on(self, source: socket.socket, target: socket.socket, *, count: bool = False) -> None:
            with suppress(OSError):
                while content := source.recv(2**16):
                    if count:
                        if b"\r\nContent-Range: " in content.partition(b"\r\n\r\n")[0]:
                            content = content.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 206 Partial Content", 1)
                        counted.received += len(content)
                        counted.statuses += map(int, re.findall(rb"^HTTP/1\.1 ([0-9]{3})", content))
                    target.sendall(content)
                target.shutdown(socket.SHUT_WR)

    proxy = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    counted = Counted(f"http://127.0.0.1:{proxy.server_address[1]}")
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield counted
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
