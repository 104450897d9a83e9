"""Sending traces to an address as soon as they are recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attrace.cli.shared.output import chunk_progress

if TYPE_CHECKING:
    from attrace.analysis.storage.files import Files


_ROOT: Final = "zarr.json"
"""What is sent last of a trace."""


@dataclass(frozen=True)
class Sending:
    """Where complete traces go to, as `attrace push` sends them."""

    url: str
    is_folder: bool
    """Whether each has its own name below the address."""

    def check(self) -> None:
        """Refuse, before any work is done, what is no address, and one trace's address where one is.

        Raises
        ------
        click.BadParameter
            If it is refused.
        """
        from attrace.schemas.address import is_address

        if not is_address(self.url) or self.url.endswith(".zip"):
            expected = "the address of a folder, such as s3://bucket/runs, or of a trace, such as s3://bucket/run.zarr"
            raise click.BadParameter(f"expected {expected}, found {self.url!r}", param_hint="--push")
        files = self._files("")
        if not self.is_folder and files.size(_ROOT) is not None:
            raise click.BadParameter(f"{self.url}: a trace is there; choose another address", param_hint="--push")

    def send(self, trace: Path) -> str:
        """Send a trace, unless it is there; its address.

        Raises
        ------
        TraceExistsError
            If another trace is there.
        OSError
            If it does not arrive.
        """
        from attrace.analysis.sharing.transfer import push
        from attrace.schemas import TraceExistsError

        url, files = self._url(trace.name), self._files(trace.name)
        if files.size(_ROOT) is None:
            with chunk_progress("sending") as progress:
                push(trace, url, progress=progress)
        elif not files.holds(_ROOT, trace / _ROOT):
            raise TraceExistsError(f"{url}: another trace is there; remove it, or choose another address")
        return url

    def _url(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}" if self.is_folder else self.url

    def _files(self, name: str) -> Files:
        from attrace.analysis.storage.address import files_at

        return files_at(self._url(name))
