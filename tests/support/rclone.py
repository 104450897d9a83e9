"""Real servers on the loopback interface: rclone serves a folder over S3, WebDAV or plain HTTP."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ALLOW_HTTP": "true",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def rclone_serving(kind: Literal["s3", "webdav", "http"], folder: Path) -> Iterator[str]:
    """Serve a folder, whose own folders are the buckets of S3; the test is skipped where rclone is not installed.

    Yields the address to put before a path: over S3 `s3:/`, with the endpoint in the environment.
    """
    rclone = shutil.which("rclone") or shutil.which("rclone", path=Path(sys.executable).parent)
    if rclone is None:
        pytest.skip("no rclone, which is the server")
    pytest.importorskip("obstore")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [rclone, "serve", kind, str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", "key,secret"] if kind == "s3" else []
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        address = f"http://127.0.0.1:{port}"
        with pytest.MonkeyPatch.context() as patch:
            if kind == "s3":
                for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": address}).items():
                    patch.setenv(name, value)
            yield "s3:/" if kind == "s3" else address
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until the server listens."""
    for _ in range(6000):
        assert server.poll() is None, "rclone ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    pytest.fail("rclone does not listen after a minute")
