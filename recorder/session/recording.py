"""A recording: its beginning, its end, and what it did."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from torch import nn

from attrace.recorder.capture.sites import Candidate
from attrace.recorder.session.options import RunOptions
from attrace.recorder.session.problems import writer_problem
from attrace.recorder.session.run import DenoiserRecorder
from attrace.recorder.writing.folder import check_room
from attrace.recorder.writing.images import Images
from attrace.recorder.writing.sink import TraceSink
from attrace.recorder.writing.store import TraceStore, new_manifest_fields
from attrace.recorder.writing.writer import BackgroundWriter
from attrace.schemas import AttraceError, InputError, Manifest, Status
from attrace.schemas.codecs import Codec


class RecordingWarning(UserWarning):
    """The model ran to its end, but its recording failed: the trace holds the steps before, or some layers less."""


@dataclass(frozen=True)
class Statistics:
    """What a recording did."""

    steps: int
    """Recorded steps."""
    sites: int
    """Recorded attention calls of one step, in every kept branch."""
    bytes_written: int
    """Bytes of all arrays, before compression."""
    estimated_bytes: int
    """What was expected after the first step."""
    waited_seconds: float
    """How long the model waited for the writer."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """Attention calls of which something is not recorded, or nothing, by the reason."""


@dataclass(frozen=True)
class Output:
    """Where a recording goes."""

    paths: tuple[Path, ...]
    codec: Codec
    queue_bytes: int
    strict: bool
    overwrite: bool


@dataclass(frozen=True)
class _Parts:
    """What works together while a recording is under way."""

    run: DenoiserRecorder
    sink: TraceSink
    writer: BackgroundWriter


class Recording:
    """A recording: made by `record`, under way inside its `with` block."""

    def __init__(
        self,
        model: Any,
        denoiser: nn.Module,
        candidates: Sequence[Candidate],
        methods: Mapping[str, str],
        options: RunOptions,
        output: Output,
        images: Images,
        manifest: dict[str, Any],
    ) -> None:
        self.images = images
        """The pictures to keep; set `images["generated"]` inside the block."""
        self.paths = output.paths
        """The traces, one for each sample."""
        self.problem: AttraceError | None = None
        """What went wrong with the recording, once its `with` block ended; None if all is in the trace."""
        self._model, self._denoiser = model, denoiser
        self._candidates, self._methods = candidates, methods
        self._options, self._output, self._manifest = options, output, manifest
        self._parts: _Parts | None = None

    @property
    def statistics(self) -> Statistics:
        """What the recording did up to now."""
        if self._parts is None:
            return Statistics(0, 0, 0, 0, 0.0)
        run, sink, writer = self._parts.run, self._parts.sink, self._parts.writer
        return Statistics(
            steps=run.calls.steps,
            sites=0 if run.session is None else len(run.session.plan.sites),
            bytes_written=sink.bytes_written,
            estimated_bytes=run.found.estimated_bytes,
            waited_seconds=writer.waited_seconds,
            left_out={reason: tuple(paths) for reason, paths in run.found.left_out.items()},
        )

    def __enter__(self) -> Self:
        if self._parts is not None:
            raise InputError("a recording cannot be entered twice: call record() again")
        failure: BaseException | None = None
        try:
            stores = self._create_stores()
        except RuntimeError as error:  # zarr can start no thread: no reason to stop the user's run
            stores, failure = [], error
        sink = TraceSink(stores, self._options.limit_bytes)
        writer = BackgroundWriter(self._output.queue_bytes)
        run = DenoiserRecorder(
            self._model, self._denoiser, self._candidates, self._methods, sink, writer, self._options
        )
        failure = failure or writer.failure
        if failure is not None:
            run.stop(writer_problem(failure, sink))
        self._parts = _Parts(run, sink, writer)
        try:
            run.attach()
        except BaseException:
            self._close(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if self._parts is not None and self._parts.run.is_forked:
            self._parts.run.detach()
            warnings.warn(
                RecordingWarning("a forked process left the recording, which its parent goes on with"), stacklevel=2
            )
            return False
        problem = self.problem = self._close(failed=error is not None)
        if problem is None or problem is error:
            return False
        if error is not None:
            error.add_note(f"attrace: {problem}")
        elif self._output.strict or not self._has_run:
            raise problem
        else:
            warnings.warn(
                RecordingWarning(f"the model ran to its end, but its recording failed: {problem}"), stacklevel=2
            )
        return False

    @property
    def _has_run(self) -> bool:
        return self._parts is not None and self._parts.run.was_called

    def _close(self, *, failed: bool) -> AttraceError | None:
        """Remove the hooks, write what waits, close the traces; what went wrong with the recording itself."""
        assert self._parts is not None
        run, sink, writer = self._parts.run, self._parts.sink, self._parts.writer
        run.detach()
        writer.close()
        problem = run.found.problem if failed else run.find_problem()
        if writer.failure is not None:
            problem = run.found.problem or writer_problem(writer.failure, sink)
        status: Status = "interrupted" if failed or problem is not None else "complete"
        try:
            sink.close(status, self.images, run.found.notes, run.found.tiles)
        except Exception as failure:  # whatever a store or its disk raises must not cost the run
            problem = problem or writer_problem(failure, sink)
        return problem

    def _create_stores(self) -> list[TraceStore]:
        output = self._output
        for path in output.paths:
            check_room(path, overwrite=output.overwrite)
        stores: list[TraceStore] = []
        try:
            for sample, path in enumerate(output.paths):
                fields = {**new_manifest_fields(), **self._manifest, "sample": sample, "samples": len(output.paths)}
                # more steps once the first tells how many there will be
                stores.append(
                    TraceStore(path, Manifest(**fields), steps=1, codec=output.codec, overwrite=output.overwrite)
                )
        except BaseException:
            for store in stores:
                store.discard()
            raise
        return stores
