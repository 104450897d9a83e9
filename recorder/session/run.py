"""What happens while the model runs: steps begin and end, attention calls arrive, everything goes to the writer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from attrace.recorder.capture.projections import Projections, fails_softly
from attrace.recorder.capture.sites import Candidate, QueryGrids, argument_reader, remove_all, shorten
from attrace.recorder.capture.watch import AttentionWatch
from attrace.recorder.labels.branches import RunBranches
from attrace.recorder.labels.contexts import ContextSplitter
from attrace.recorder.labels.keys import Tokens
from attrace.recorder.labels.profile import LabelWarning
from attrace.recorder.session.findings import Findings
from attrace.recorder.session.first_step import FirstStep
from attrace.recorder.session.guard import CallGuard
from attrace.recorder.session.options import RunOptions
from attrace.recorder.session.problems import format_bytes, over_limit
from attrace.recorder.session.provenance import identify
from attrace.recorder.session.session import Session
from attrace.recorder.session.steps import Step, StepCalls
from attrace.recorder.writing.plan import Plan, plan_groups
from attrace.recorder.writing.sink import TraceSink
from attrace.recorder.writing.writer import BackgroundWriter
from attrace.schemas import AttraceError, CaptureError, Guidance, SizeLimitError

logger = logging.getLogger("attrace")


class DenoiserRecorder:
    """Watches a denoiser: its first step makes the plan, with which a session records the others.

    Parameters
    ----------
    model, denoiser
        The pipeline (or the denoiser again), and the denoiser.
    candidates
        Every attention call that could be recorded.
    methods
        The capture method of each of those to record, by path.
    sink, writer
        Where the steps go.
    options
        What to record and how.
    """

    def __init__(
        self,
        model: Any,
        denoiser: nn.Module,
        candidates: Sequence[Candidate],
        methods: Mapping[str, str],
        sink: TraceSink,
        writer: BackgroundWriter,
        options: RunOptions,
    ) -> None:
        self.found = Findings(notes=[] if options.profile.note is None else [options.profile.note])
        self.session: Session | None = None
        """Once the first step made its plan."""
        self._first = FirstStep(options)
        self._model, self._denoiser = model, denoiser
        self._sink, self._writer, self._options = sink, writer, options
        self._branches = RunBranches(
            model,
            denoiser,
            profile=options.profile,
            samples=options.samples,
            named=options.guidance,
            branch=options.branch,
            prompts=options.prompts,
        )
        self.calls = StepCalls(self._branches, options.steps, self._finish_step)
        self._watch = AttentionWatch(
            denoiser,
            candidates,
            methods,
            self._take,
            self._is_recording,
            self.fail,
            trust_hooks=options.capture == "hooks",
        )
        self._guard = CallGuard(denoiser, self._watch.chosen)
        self._grids = QueryGrids(denoiser, self._watch.chosen)
        self._contexts = ContextSplitter(
            denoiser,
            self._grids,
            profile=options.profile,
            wanted=options.contexts,
            self_attention=options.self_attention,
            key_grid=options.key_grid,
        )
        self._process = os.getpid()
        self._handles: list[RemovableHandle] = []
        self._read_arguments = argument_reader(denoiser)

    # -- before and after the run

    def attach(self) -> None:
        """Put the hooks on the model."""
        self._watch.attach()
        self._guard.attach()
        self._grids.attach()
        self._branches.attach()
        self._handles.append(self._denoiser.register_forward_pre_hook(self._begin_call, with_kwargs=True))
        self._handles.append(self._denoiser.register_forward_hook(self._end_call, always_call=True))

    def detach(self) -> None:
        """Remove every hook; the model is as it was found."""
        if self.calls.waiting is not None and self.session is not None:
            self.found.note(f"call {self.calls.waiting.call} is left out: not every branch of it was called")
        self.calls.forget()
        remove_all(self._handles)
        self._guard.detach()
        self._branches.detach()
        self._watch.detach()
        self._grids.detach()

    def stop(self, problem: AttraceError) -> None:
        """Record nothing more; the model runs on, and the problem is raised at the end."""
        self.calls.forget()
        self._first = FirstStep(self._options)
        self.found.problem = problem
        logger.error("recording stopped: %s", problem)

    def fail(self, error: Exception) -> None:
        """Turn a problem in a hook into the end of the recording, not of the user's run.

        In the first recorded step what an argument can mend is raised at once: that must not cost a whole run. All else
        waits for the end of the `with` block, so that the picture is not lost; the recording stops.
        """
        if self.session is None and isinstance(error, AttraceError):
            raise error
        # a recorder that fails, out of memory or by a fault of its own, must not cost the picture
        if not isinstance(error, AttraceError):
            fault = CaptureError(f"recording stopped in step {self.calls.steps} ({type(error).__name__}: {error})")
            fault.__cause__ = error
            error = fault
        self.stop(error)

    def find_problem(self) -> AttraceError | None:
        """What the recording of a run that ended well left out, or what stopped it; None if it is whole."""
        if self.found.problem is not None:
            return self.found.problem
        calls = self.calls.calls
        if calls == 0:
            return CaptureError(
                f"{type(self._denoiser).__name__} was never called in the recording: call the pipeline inside the "
                "`with` block (a module that was compiled or copied beforehand is another one)"
            )
        if self.session is None:
            return CaptureError(f"none of the {calls} denoiser calls was selected by steps=, or none finished")
        unreached = self._options.steps.unreached(calls)
        if unreached:
            self.found.note(f"steps= names {shorten(list(map(str, unreached)))}, but there were {calls} calls")
        return None if self._options.allow_gaps else self.session.gaps

    # -- hooks

    @property
    def was_called(self) -> bool:
        """Whether the denoiser was called at all."""
        return self._guard.was_called

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that records: it has the hooks, but not the threads that write."""
        return os.getpid() != self._process

    def _is_recording(self) -> bool:
        return self.calls.current is not None and not self.is_forked

    @fails_softly
    def _begin_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_forked:
            return
        try:
            self._guard.enter()
        except CaptureError as problem:
            if self._guard.is_nested:
                raise
            if self.found.problem is None:
                self.stop(problem)
            return
        arguments = self._read_arguments(args, kwargs)
        if self.found.problem is not None or arguments.get("skip_layers") is not None:
            return  # the call that SD3's skip-layer guidance adds to a step is of no branch
        if self.session is None:
            if self.calls.waiting is None:  # forget a first step that failed
                self._first = FirstStep(self._options)
                self._branches.forget()
            self._branches.read_again()
        begun = self.calls.begin(arguments)
        if begun is not None:
            if self.session is not None:
                self.session.check_writer()
            self.found.watch_schedule(self._model, self.calls.steps)
            if self._options.samples == 1:
                self.found.note_tile(begun, self._model, self._options.profile.tile)
        if self.calls.current is not None:
            self._contexts.begin(arguments)
            self._watch.begin_call()

    @fails_softly
    def _end_call(self, _module: nn.Module, _args: Any, result: Any) -> None:
        if self.is_forked or not self._guard.leave():
            return  # a call that was not recorded, beside the one that is
        self._watch.end_call()
        self.calls.end(failed=result is None)  # None if the model raised

    @fails_softly
    def _take(self, candidate: Candidate, projections: Projections) -> None:
        if self.session is None:
            omission = self._contexts.omission(candidate, projections)
            if omission is not None:
                self._first.leave_out(candidate.path, omission.reason)
            if omission is not None and omission.is_whole:
                self._first.modules_left_out[candidate.module] = None
                return
        for branch, rows in self._branches.rows(projections.query.shape[0]):
            for keys in self._contexts.split(candidate, projections.of_rows(rows)):
                step = self.calls.current
                if step is None:  # stopped
                    return
                site = (candidate.path, branch, keys.context)
                if site in step.seen:
                    raise CaptureError(
                        f"{candidate.path} was called twice in one call of the denoiser: leave it out with layers="
                    )
                step.seen.add(site)
                if self.session is not None:
                    self.session.take(step, candidate, site, keys)
                    continue
                try:
                    self._first.take(candidate, branch, keys, self._planned_steps())
                except SizeLimitError as problem:
                    self.stop(problem)

    def _finish_step(self, step: Step) -> None:
        """Write a step that is whole."""
        if self.session is None:
            self.session = self._begin_session()
        if self.session is not None:
            self.session.finish(step)
            self.calls.steps += 1

    # -- the first step is over

    def _planned_steps(self) -> int | None:
        calls = self._branches.call.denoiser_calls
        return None if calls is None else self._options.steps.count(calls)

    def _begin_session(self) -> Session | None:
        """Decide the groups, now that every site was seen once, and write what the first step gave."""
        first, options = self._first, self._options
        first.check_seen(self._watch.chosen)
        self._note_left_out()
        self._guard.detach()
        recorded = {site.path for site in first.sites}
        self._watch.settle(recorded, first.modules_left_out, self._contexts.joined)
        self._grids.detach()
        self.found.notes += self._watch.census.notes
        guesses = first.guesses([options.profile.guess, *self._branches.guesses, *self._contexts.guesses])
        self.found.notes += guesses
        if guesses:
            warnings.warn(LabelWarning("; ".join(guesses)), stacklevel=2)
        plan = plan_groups(first.sites)
        self._estimate(plan)
        if self.found.problem is not None:
            return None
        tokens = Tokens(self._model, self._branches.call, options.samples, options.tokens, options.profile)
        classes = [plan.classes(partial(tokens.of, sample)) for sample in range(options.samples)]
        session = Session(plan, self._sink, self._writer)
        session.begin(first, classes, self._planned_steps() or 64, self._manifest_members())
        self._branches.settle()
        self._first = FirstStep(options)
        return session

    def _note_left_out(self) -> None:
        """Note which attention calls are not recorded, and why."""
        for one in self._watch.not_chosen:
            self._first.leave_out(one.path, "layers= did not choose it")
        for path, (queries, keys) in self._watch.census.unknown.items():
            self._first.leave_out(path or "(the denoiser itself)", "no to_q and to_k: what its keys are is not known")
            self.found.note(
                f"{path}: attention of {queries} queries to {keys} keys is not recorded: it has no to_q, to_k"
            )
        self.found.left_out = self._first.left_out

    def _estimate(self, plan: Plan) -> None:
        steps, options = self._planned_steps(), self._options
        expected = self.found.estimated_bytes = plan.estimated_bytes(steps or 1) * options.samples
        logger.info(
            "recording %d sites: about %s for %s of %d samples, before compression",
            len(plan.sites),
            format_bytes(expected),
            self._branches.call.span(steps),
            options.samples,
        )
        if options.limit_bytes is not None and expected > options.limit_bytes:
            what = "the recording would take about"
            self.stop(over_limit(what, expected, options.limit_bytes, "fewer layers= or steps="))

    def _manifest_members(self) -> dict[str, Any]:
        options, branches, call = self._options, self._branches, self._branches.call
        scheduler = getattr(self._model, "scheduler", None)
        recorded = {site.path for site in self._first.sites}
        return {
            "guidance": Guidance(
                branches=branches.all,
                kept=branches.kept,
                scale=call.guidance_scale if call.guided else None,
            ),
            "scheduler": identify(scheduler) if scheduler is not None else None,
            "call_arguments": dict(call.arguments),
            "capture": {
                "method": "+".join(self._watch.method_names(recorded)),
                "profile": options.profile.name,
                "encoding": options.encoding,
                **options.selection,
                "left_out": self.found.left_out,
                "warnings": list(self.found.notes),
            },
        }
