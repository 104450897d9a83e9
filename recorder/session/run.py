"""What happens while the model runs: steps begin and end, attention calls arrive, everything goes to the writer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from attrace.recorder.capture.host_copies import HostCopier, HostCopy
from attrace.recorder.capture.methods import METHODS, CaptureMethod
from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import Candidate, QueryGrids, argument_reader, remove_all, shorten, timestep_of
from attrace.recorder.labels.call import read_tile
from attrace.recorder.labels.contexts import ContextSplitter, KeysOfContext
from attrace.recorder.labels.keys import Tokens
from attrace.recorder.labels.profile import LabelWarning
from attrace.recorder.session.branches import RunBranches
from attrace.recorder.session.first_step import FirstStep
from attrace.recorder.session.options import RunOptions
from attrace.recorder.session.problems import changed, format_bytes, over_limit, stops_recording, writer_problem
from attrace.recorder.session.provenance import identify
from attrace.recorder.writing.encode import EncodingChoice, SiteShape, encode
from attrace.recorder.writing.plan import Place, Plan, SiteKey, plan_groups
from attrace.recorder.writing.sink import TraceSink
from attrace.recorder.writing.writer import BackgroundWriter
from attrace.schemas import AttraceError, CaptureError, Guidance

logger = logging.getLogger("attrace")


@dataclass
class _Step:
    """The recorded step that is under way."""

    number: int
    call: int
    timestep: HostCopy
    seen: set[SiteKey] = field(default_factory=set)


class DenoiserRecorder:
    """Watches a denoiser and sends every recorded step to the writer.

    Parameters
    ----------
    model, denoiser
        The pipeline (or the denoiser again), and the denoiser.
    candidates
        The attention calls to watch, with the capture method of each.
    sink, writer
        Where the steps go.
    options
        What to record and how.
    """

    def __init__(
        self,
        model: Any,
        denoiser: nn.Module,
        candidates: Mapping[Candidate, str],
        sink: TraceSink,
        writer: BackgroundWriter,
        options: RunOptions,
    ) -> None:
        self.plan: Plan | None = None
        self.problem: AttraceError | None = None
        self.estimated_bytes = 0
        self.steps = 0
        self.notes: list[str] = [] if options.profile.note is None else [options.profile.note]
        """What a reader of the trace should know: guesses, oddities."""
        self.tiles: dict[str, tuple[int, int]] = {}
        """Row and column in the latent of the tile that a call worked at, by the number of the call."""
        self._model, self._denoiser, self._candidates = model, denoiser, dict(candidates)
        self._sink, self._writer, self._options = sink, writer, options
        self._read_arguments = argument_reader(denoiser)
        self._copy = HostCopier()
        self.calls = 0
        self._step: _Step | None = None
        self._waiting: _Step | None = None
        """A step of which another branch is still to come."""
        self._branches = RunBranches(model, denoiser, options)
        self._first = FirstStep()
        self._shapes: dict[SiteKey, SiteShape] = {}
        self._places: dict[SiteKey, Place] = {}
        self._missing: dict[str, list[int]] = {}
        self._handles: list[RemovableHandle] = []
        self._grids = QueryGrids(denoiser, candidates)
        self._contexts = ContextSplitter(
            denoiser,
            self._grids,
            profile=options.profile,
            wanted=options.contexts,
            self_attention=options.self_attention,
            key_grid=options.key_grid,
        )
        self._schedule: Any = None
        self._methods_by_path = {candidate.path: name for candidate, name in candidates.items()}
        self._methods: dict[str, CaptureMethod] = {
            method.name: method(self._take, self._is_recording) for method in METHODS
        }

    # -- before and after the run

    def attach(self) -> None:
        """Put the hooks on the model."""
        by_module: dict[nn.Module, list[Candidate]] = {}
        for candidate in self._candidates:
            by_module.setdefault(candidate.module, []).append(candidate)
        for candidates in by_module.values():
            self._methods[self._candidates[candidates[0]]].attach(candidates)
        self._grids.attach()
        self._branches.attach()
        self._handles.append(self._denoiser.register_forward_pre_hook(self._begin_step, with_kwargs=True))
        self._handles.append(self._denoiser.register_forward_hook(self._end_step, always_call=True))

    def detach(self) -> None:
        """Remove every hook; the model is as it was found."""
        if self._waiting is not None and self.plan is not None:
            self._note(f"call {self._waiting.call} is left out: not every branch of it was called")
        self._step = self._waiting = None
        remove_all(self._handles)
        self._branches.detach()
        for method in self._methods.values():
            method.detach()
        self._grids.detach()

    def stop(self, problem: AttraceError) -> None:
        """Record nothing more; the model runs on, and the problem is raised at the end."""
        self._step = self._waiting = None
        self.problem = problem
        logger.error("recording stopped: %s", problem)

    def _note(self, note: str) -> None:
        """Tell the user, and readers of the trace."""
        logger.warning("%s", note)
        self.notes.append(note)

    def find_problem(self) -> AttraceError | None:
        """What the recording of a run that ended well left out, or what stopped it; None if it is whole."""
        if self.problem is not None:
            return self.problem
        if self.calls == 0:
            return CaptureError(
                f"{type(self._denoiser).__name__} was never called in the recording: call the pipeline inside the "
                "`with` block (a module that was compiled or copied beforehand is another one)"
            )
        if self.plan is None:
            return CaptureError(f"none of the {self.calls} denoiser calls was selected by steps=, or none finished")
        unreached = self._options.steps.unreached(self.calls)
        if unreached:
            self._note(f"steps= names {shorten(list(map(str, unreached)))}, but there were {self.calls} calls")
        if self._missing:
            sites = shorten([f"{path} in call {calls[0]}" for path, calls in self._missing.items()])
            return CaptureError(
                f"{len(self._missing)} sites were not called in every recorded step: {sites}. Pass allow_gaps=True "
                "where the model skips layers on purpose (a block cache); the gaps are kept as missing values"
            )
        return None

    # -- hooks

    def _is_recording(self) -> bool:
        return self._step is not None

    @stops_recording
    def _begin_step(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step is not None:
            raise CaptureError(
                "the denoiser was called while a call of it was under way (in another thread, or in itself): a "
                "recording follows one run"
            )
        arguments = self._read_arguments(args, kwargs)
        if self.problem is not None or arguments.get("skip_layers") is not None:
            return  # the call that SD3's skip-layer guidance adds to a step is of no branch
        self._prepare_first()
        if self._branches.begin(arguments):
            self._finish_waiting()
            call = self.calls
            self.calls += 1
            if call not in self._options.steps:
                return
            self._check_writer()
            self._watch_schedule()
            timestep = self._copy(torch.as_tensor(timestep_of(arguments)))
            self._waiting = _Step(self.steps, call, timestep)
            self._note_tile(call)
        if self._waiting is None or not self._branches.is_kept:
            return
        self._contexts.begin(arguments)
        self._step, self._waiting = self._waiting, None

    def _prepare_first(self) -> None:
        """Before a call that may be of the first step: forget one that failed, and read the pipeline's call."""
        if self.plan is not None:
            return
        if self._waiting is None:
            self._first = FirstStep()
            self._branches.forget()
        self._branches.read_again()

    @stops_recording
    def _end_step(self, _module: nn.Module, _args: Any, result: Any) -> None:
        step, self._step = self._step, None
        if result is None:  # the model raised
            self._branches.end_early()
            self._waiting = None
            return
        if step is None:
            return
        self._waiting = step
        if not self._branches.has_more:
            self._finish_waiting()

    def _finish_waiting(self) -> None:
        """Write the step whose last branch was called."""
        step, self._waiting = self._waiting, None
        if step is None:
            return
        if self.plan is None:
            self._begin_traces()
            if self.problem is not None:
                return
        if not self._options.allow_gaps:
            for path in {site[0] for site in self._places if site not in step.seen}:
                self._missing.setdefault(path, []).append(step.call)
        finish = partial(self._sink.finish_step, step.number, call=step.call, timestep=step.timestep)
        self._writer.submit(finish, alone=True)
        self.steps += 1

    @stops_recording
    def _take(self, candidate: Candidate, projections: Projections) -> None:
        step = self._step
        if step is None:
            return
        if self.plan is None and self._contexts.is_left_out(candidate, projections):
            self._first.left_out[candidate.module] = None
            return
        for branch, rows in self._branches.rows(projections.query.shape[0]):
            for keys in self._contexts.split(candidate, projections.of_rows(rows)):
                if self.problem is None:
                    self._take_keys(step, candidate, branch, keys)

    def _take_keys(self, step: _Step, candidate: Candidate, branch: str, keys: KeysOfContext) -> None:
        site = (candidate.path, branch, keys.context)
        if site in step.seen:
            raise CaptureError(
                f"{candidate.path} was called twice in one call of the denoiser: leave it out with layers="
            )
        step.seen.add(site)
        encoded = encode(keys.projections, self._choice(site), self._planned_steps())
        parts = {name: self._copy(part) for name, part in encoded.parts.items()}
        if self.plan is None:
            labels, query_grid = keys.labels(), keys.query_grid
            self._first.add(candidate, branch, encoded.shape, parts, labels=labels, query_grid=query_grid)
            self._check_first_step()
            return
        if self._shapes.get(site) != encoded.shape:
            raise CaptureError(changed(candidate.path, self._shapes.get(site), encoded.shape))
        self._submit(step.number, site, parts)

    def _note_tile(self, call: int) -> None:
        names = self._options.profile.tile
        tile = read_tile(self._model, names) if names is not None and self._options.samples == 1 else None
        if tile is not None:
            self.tiles[str(call)] = tile

    def _watch_schedule(self) -> None:
        """Note when the scheduler was set anew: most likely a second picture in a trace that holds one."""
        schedule = getattr(getattr(self._model, "scheduler", None), "timesteps", None)
        if self._schedule is not None and schedule is not self._schedule:
            self._note(
                f"the schedule was set anew before recorded step {self.steps}, so the steps may be of several "
                "pictures: use one record() for each call of the pipeline"
            )
        self._schedule = schedule

    # -- the first step

    def _planned_steps(self) -> int | None:
        calls = self._branches.call.denoiser_calls
        return None if calls is None else self._options.steps.count(calls)

    def _choice(self, site: SiteKey) -> EncodingChoice:
        """What was asked for in the first step; what was decided then, ever after."""
        shape = self._shapes.get(site)
        return self._options.encoding if shape is None else shape.encoding

    def _begin_traces(self) -> None:
        """Decide the groups, now that every site was seen once, and write what the first step gave."""
        first = self._first
        first.check_seen(self._candidates, allow_gaps=self._options.allow_gaps)
        for module in first.left_out:
            for method in self._methods.values():
                method.detach(module)
        self._grids.detach()
        self._note_guesses()
        plan = plan_groups(first.sites)
        self._estimate(plan)
        if self.problem is not None:
            return
        self._submit_beginning(plan)
        self._places = plan.places()
        self._shapes = {site.key: site.shape for site in first.sites}
        self.plan = plan
        self._branches.settle()
        for site, parts in zip(first.sites, first.parts, strict=True):
            self._submit(0, site.key, parts)
        self._first = FirstStep()

    def _check_first_step(self) -> None:
        """Stop before a first step that is itself larger than the limit fills the memory."""
        limit, first = self._options.limit_bytes, self._first
        if limit is not None and first.nbytes > limit:
            self._first = FirstStep()
            what = f"{len(first.sites)} sites of the first step alone take"
            self.stop(over_limit(what, first.nbytes, limit, "fewer layers= or contexts"))

    def _note_guesses(self) -> None:
        """Tell the user, and readers of the trace, which labels are guesses."""
        guesses = self._first.guesses([self._options.profile.guess, *self._branches.guesses])
        self.notes += guesses
        if guesses:
            warnings.warn(LabelWarning("; ".join(guesses)), stacklevel=2)

    def _estimate(self, plan: Plan) -> None:
        steps, options = self._planned_steps(), self._options
        self.estimated_bytes = plan.estimated_bytes(steps or 1) * options.samples
        logger.info(
            "recording %d sites: about %s for %s of %d samples, before compression",
            len(plan.sites),
            format_bytes(self.estimated_bytes),
            self._branches.call.span(steps),
            options.samples,
        )
        if options.limit_bytes is not None and self.estimated_bytes > options.limit_bytes:
            what = "the recording would take about"
            self.stop(over_limit(what, self.estimated_bytes, options.limit_bytes, "fewer layers= or steps="))

    def _submit_beginning(self, plan: Plan) -> None:
        options = self._options
        tokens = Tokens(self._model, self._branches.call, options.samples, options.tokens, options.profile)
        classes = [plan.classes(partial(tokens.of, sample)) for sample in range(options.samples)]
        members = self._manifest_members()
        begin = partial(self._sink.begin, classes, self._planned_steps() or 64, members)
        self._writer.submit(begin, alone=True)

    def _manifest_members(self) -> dict[str, Any]:
        options, branches, call = self._options, self._branches, self._branches.call
        scheduler = getattr(self._model, "scheduler", None)
        return {
            "guidance": Guidance(
                branches=branches.all,
                kept=branches.kept,
                scale=call.guidance_scale if call.guided else None,
            ),
            "scheduler": identify(scheduler) if scheduler is not None else None,
            "call_arguments": dict(call.arguments),
            "capture": {
                "method": "+".join(sorted({self._methods_by_path[site.path] for site in self._first.sites})),
                "profile": options.profile.name,
                "encoding": options.encoding,
                **options.selection,
                "warnings": list(self.notes),
            },
        }

    # -- to the writer

    def _submit(self, step: int, site: SiteKey, parts: dict[str, HostCopy]) -> None:
        write = partial(self._sink.write_site, step, site[0], self._places[site], parts)
        self._writer.submit(write, sum(part.nbytes for part in parts.values()))

    def _check_writer(self) -> None:
        if self._writer.failure is not None:
            raise writer_problem(self._writer.failure, self._sink)
