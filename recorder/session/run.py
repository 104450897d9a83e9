"""What happens while the model runs: steps begin and end, attention calls arrive, everything goes to the writer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from attrace.recorder.capture.methods import METHODS, CaptureMethod
from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import Candidate, QueryGrids, argument_reader, remove_all, shorten
from attrace.recorder.labels.branches import RunBranches
from attrace.recorder.labels.call import read_tile
from attrace.recorder.labels.contexts import ContextSplitter
from attrace.recorder.labels.keys import Tokens
from attrace.recorder.labels.profile import LabelWarning
from attrace.recorder.session.first_step import FirstStep
from attrace.recorder.session.options import RunOptions
from attrace.recorder.session.problems import fails_softly, format_bytes, over_limit
from attrace.recorder.session.provenance import identify
from attrace.recorder.session.session import Session
from attrace.recorder.session.steps import Step, StepCalls
from attrace.recorder.writing.plan import Plan, plan_groups
from attrace.recorder.writing.sink import TraceSink
from attrace.recorder.writing.writer import BackgroundWriter
from attrace.schemas import AttraceError, CaptureError, Guidance, SizeLimitError

logger = logging.getLogger("attrace")


@dataclass
class Findings:
    """What is found out while the model runs."""

    problem: AttraceError | None = None
    """What stopped the recording."""
    estimated_bytes: int = 0
    """What the recording is expected to take."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the trace should know: guesses, oddities."""
    tiles: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Row and column in the latent of the tile that a call worked at, by the number of the call."""

    def note(self, note: str) -> None:
        """Tell the user, and readers of the trace."""
        logger.warning("%s", note)
        self.notes.append(note)


class DenoiserRecorder:
    """Watches a denoiser: its first step makes the plan, with which a session records the others.

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
        self.found = Findings(notes=[] if options.profile.note is None else [options.profile.note])
        self.session: Session | None = None
        """Once the first step made its plan."""
        self._first = FirstStep(options)
        self._model, self._denoiser, self._candidates = model, denoiser, dict(candidates)
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
        self._grids = QueryGrids(denoiser, candidates)
        self._contexts = ContextSplitter(
            denoiser,
            self._grids,
            profile=options.profile,
            wanted=options.contexts,
            self_attention=options.self_attention,
            key_grid=options.key_grid,
        )
        self._methods: dict[str, CaptureMethod] = {
            method.name: method(self._take, self._is_recording) for method in METHODS
        }
        self._handles: list[RemovableHandle] = []
        self._read_arguments = argument_reader(denoiser)
        self._schedule: Any = None

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
        self._handles.append(self._denoiser.register_forward_pre_hook(self._begin_call, with_kwargs=True))
        self._handles.append(self._denoiser.register_forward_hook(self._end_call, always_call=True))

    def detach(self) -> None:
        """Remove every hook; the model is as it was found."""
        if self.calls.waiting is not None and self.session is not None:
            self.found.note(f"call {self.calls.waiting.call} is left out: not every branch of it was called")
        self.calls.forget()
        remove_all(self._handles)
        self._branches.detach()
        for method in self._methods.values():
            method.detach()
        self._grids.detach()

    def stop(self, problem: AttraceError) -> None:
        """Record nothing more; the model runs on, and the problem is raised at the end."""
        self.calls.forget()
        self._first = FirstStep(self._options)
        self.found.problem = problem
        logger.error("recording stopped: %s", problem)

    def fail(self, error: Exception) -> None:
        """Turn a problem in a hook into the end of the recording, not of the user's run.

        In the first recorded step the problem is raised at once: a wrong argument must not cost a whole run. Later it
        waits for the end of the `with` block, so that the picture is not lost; the recording stops.
        """
        if self.session is None:
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

    def _is_recording(self) -> bool:
        return self.calls.current is not None

    @fails_softly
    def _begin_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.calls.current is not None:
            raise CaptureError(
                "the denoiser was called while a call of it was under way (in another thread, or in itself): a "
                "recording follows one run"
            )
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
            self._watch_schedule()
            self._note_tile(begun)
        if self.calls.current is not None:
            self._contexts.begin(arguments)

    @fails_softly
    def _end_call(self, _module: nn.Module, _args: Any, result: Any) -> None:
        self.calls.end(failed=result is None)  # None if the model raised

    @fails_softly
    def _take(self, candidate: Candidate, projections: Projections) -> None:
        if self.calls.current is None:
            return
        if self.session is None and self._contexts.is_left_out(candidate, projections):
            self._first.left_out[candidate.module] = None
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

    def _note_tile(self, call: int) -> None:
        names = self._options.profile.tile
        tile = read_tile(self._model, names) if names is not None and self._options.samples == 1 else None
        if tile is not None:
            self.found.tiles[str(call)] = tile

    def _watch_schedule(self) -> None:
        """Note when the scheduler was set anew: most likely a second picture in a trace that holds one."""
        schedule = getattr(getattr(self._model, "scheduler", None), "timesteps", None)
        if self._schedule is not None and schedule is not self._schedule:
            self.found.note(
                f"the schedule was set anew before recorded step {self.calls.steps}, so the steps may be of several "
                "pictures: use one record() for each call of the pipeline"
            )
        self._schedule = schedule

    # -- the first step is over

    def _planned_steps(self) -> int | None:
        calls = self._branches.call.denoiser_calls
        return None if calls is None else self._options.steps.count(calls)

    def _begin_session(self) -> Session | None:
        """Decide the groups, now that every site was seen once, and write what the first step gave."""
        first, options = self._first, self._options
        first.check_seen(self._candidates)
        for module in first.left_out:
            for method in self._methods.values():
                method.detach(module)
        self._grids.detach()
        guesses = first.guesses([options.profile.guess, *self._branches.guesses])
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
        methods = {candidate.path: name for candidate, name in self._candidates.items()}
        return {
            "guidance": Guidance(
                branches=branches.all,
                kept=branches.kept,
                scale=call.guidance_scale if call.guided else None,
            ),
            "scheduler": identify(scheduler) if scheduler is not None else None,
            "call_arguments": dict(call.arguments),
            "capture": {
                "method": "+".join(sorted({methods[site.path] for site in self._first.sites})),
                "profile": options.profile.name,
                "encoding": options.encoding,
                **options.selection,
                "warnings": list(self.found.notes),
            },
        }
