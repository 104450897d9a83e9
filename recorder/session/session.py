"""A recording once its plan is made: the sites of each step go to the writer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from attrace.recorder.capture.host_copies import HostCopier, HostCopy
from attrace.recorder.capture.sites import Candidate, shorten
from attrace.recorder.labels.contexts import KeysOfContext
from attrace.recorder.session.first_step import FirstStep
from attrace.recorder.session.problems import changed, writer_problem
from attrace.recorder.session.steps import Step
from attrace.recorder.writing.encode import EncodingChoice, encode
from attrace.recorder.writing.plan import Plan, SiteKey
from attrace.recorder.writing.sink import TraceSink
from attrace.recorder.writing.writer import BackgroundWriter
from attrace.schemas import CaptureError, SiteClass


class Session:
    """Sends every step to the writer, as the plan says.

    Parameters
    ----------
    plan
        The groups of arrays.
    sink, writer
        Where the steps go.
    """

    def __init__(self, plan: Plan, sink: TraceSink, writer: BackgroundWriter) -> None:
        self.plan = plan
        self._sink, self._writer = sink, writer
        self._copy = HostCopier()
        self._places = plan.places()
        self._shapes = {site.key: site.shape for site in plan.sites}
        self._missing: dict[str, list[int]] = {}

    def begin(
        self, first: FirstStep, classes: Sequence[tuple[SiteClass, ...]], steps: int, members: dict[str, Any]
    ) -> None:
        """Begin the traces, with room for that many steps, and write what the first step gave."""
        outputs = {self._places[site]: weights for site, weights in first.outputs.items()}
        self._writer.submit(partial(self._sink.begin, classes, steps, members, outputs), alone=True)
        for site, parts in zip(first.sites, first.parts, strict=True):
            self._submit(0, site.key, parts)

    def take(self, step: Step, candidate: Candidate, site: SiteKey, keys: KeysOfContext) -> None:
        """Write a site that is being called.

        Raises
        ------
        CaptureError
            If it is not what it was in the first step.
        """
        planned = self._shapes.get(site)
        choice: EncodingChoice = "auto" if planned is None else planned.encoding
        encoded = encode(keys.projections, choice, None, channels=None if planned is None else planned.channels)
        if planned != encoded.shape:
            raise CaptureError(changed(candidate.path, planned, encoded.shape))
        self._submit(step.number, site, {name: self._copy(part) for name, part in encoded.parts.items()})

    def finish(self, step: Step) -> None:
        """Make a step visible."""
        for path in dict.fromkeys(site[0] for site in self._places if site not in step.seen):
            self._missing.setdefault(path, []).append(step.call)
        finish = partial(self._sink.finish_step, step.number, call=step.call, timestep=step.timestep)
        self._writer.submit(finish, alone=True)

    def check_writer(self) -> None:
        """Raise what stopped the writer."""
        if self._writer.failure is not None:
            raise writer_problem(self._writer.failure, self._sink)

    @property
    def gaps(self) -> CaptureError | None:
        """That sites were not called in some of the steps."""
        if not self._missing:
            return None
        sites = shorten([f"{path} in call {calls[0]}" for path, calls in self._missing.items()])
        return CaptureError(
            f"{len(self._missing)} sites were not called in every recorded step: {sites}. Pass allow_gaps=True "
            "where the model skips layers on purpose (a block cache); the gaps are kept as missing values"
        )

    def _submit(self, step: int, site: SiteKey, parts: dict[str, HostCopy]) -> None:
        write = partial(self._sink.write_site, step, site[0], self._places[site], parts)
        self._writer.submit(write, sum(part.nbytes for part in parts.values()))
