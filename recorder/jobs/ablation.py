"""Attention of one layer or head taken away while a model runs; everything else is computed as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from attrace.recorder.capture.attention_calls import AttentionCalls
from attrace.recorder.capture.methods import METHODS, CaptureMethod, choose_methods
from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.sites import Candidate, QueryGrids, argument_reader, remove_all, select_candidates
from attrace.recorder.labels.contexts import ContextSplitter
from attrace.recorder.labels.joint import TokenLayout
from attrace.recorder.labels.keys import Grid
from attrace.recorder.labels.target import Target
from attrace.schemas import CaptureError, Context, InputError
from attrace.schemas.words import CONTEXT_PREFERENCE

Baseline = Literal["zero", "mean"]
"""What stands in for the output of the attention: zeros, or its mean over the queries."""

BASELINES: Final[tuple[Baseline, ...]] = get_args(Baseline)


@dataclass(frozen=True)
class Site:
    """Attention of one layer to one context."""

    candidate: Candidate
    context: Context
    is_whole: bool
    """Whether all of its keys are of the context."""

    @property
    def path(self) -> str:
        """Its label."""
        return self.candidate.path


@dataclass
class Survey:
    """What the keys of the attention calls of a model are, seen in the first call of its denoiser."""

    contexts: dict[Candidate, tuple[Context, ...]] = field(default_factory=dict)

    def sites(self, context: Context | None) -> tuple[Site, ...]:
        """The layers that attend to a context; by default to the first that there is, in the order of `open_trace`.

        Raises
        ------
        InputError
            If none does.
        """
        present = [one for one in CONTEXT_PREFERENCE if any(one in found for found in self.contexts.values())]
        if context is None:
            context = present[0] if present else None
        if context not in present:
            raise InputError(f"context={context!r}: the attention of the model is to {', '.join(present) or 'nothing'}")
        return tuple(
            Site(one, context, found == (context,)) for one, found in self.contexts.items() if context in found
        )


@contextmanager
def surveyed(target: Target, layers: tuple[str, ...] | None, key_grid: Grid | None) -> Iterator[Survey]:
    """Note what the keys of attention calls are while the model runs.

    Raises
    ------
    InputError
        If `layers` name none.
    CaptureError
        If the attention of one cannot be seen.
    """
    chosen = select_candidates(target.candidates, layers)
    names, survey, is_over = choose_methods(chosen, "auto"), Survey(), False
    labels = _Labels(target, key_grid)

    def note(candidate: Candidate, projections: Projections) -> None:
        if candidate.path in names:
            survey.contexts.setdefault(candidate, labels.splitter.contexts_of(candidate, projections))

    def end(*_: Any) -> None:
        nonlocal is_over
        is_over = True

    methods: dict[str, CaptureMethod] = {method.name: method(note, lambda: not is_over) for method in METHODS}
    handle = target.denoiser.register_forward_hook(end)
    labels.attach()
    try:
        for module, path in {one.module: one.path for one in chosen}.items():
            methods[names[path]].attach(_calls_of(target, module))
        yield survey
    finally:
        for method in methods.values():
            method.detach()
        labels.detach()
        handle.remove()


class Ablation:
    """The attention of a layer to one context, or of one head of it, taken away while this is entered.

    Where all keys are of the context, `zero` makes the output of the attention, before its output projection, zero, and
    `mean` makes it its mean over the queries. Where a layer attends to several things at once, `zero` hides the
    keys of the context from the queries of the generated picture: the softmax runs over the others.

    Raises
    ------
    CaptureError
        When it is entered: if the attention cannot be reached; when it is left: if the model never computed it.
    InputError
        If there is no such head, or the mean is asked for where keys of several contexts are attended to at once.
    """

    def __init__(
        self, target: Target, site: Site, *, head: int | None = None, baseline: Baseline = "zero", key_grid: Grid | None
    ) -> None:
        if baseline not in BASELINES:
            raise InputError(f"baseline={baseline!r}: expected {' or '.join(map(repr, BASELINES))}")
        if head is not None and not 0 <= head < site.candidate.heads:
            raise InputError(f"head={head}: {site.path} has heads 0 to {site.candidate.heads - 1}")
        if baseline == "mean" and not site.is_whole:
            raise InputError(
                f"baseline='mean': {site.path} attends to the {site.context} and to other keys in one, so that its "
                "output has no mean of the context alone: use baseline='zero', which hides its keys"
            )
        self._target, self._site, self._head, self._baseline = target, site, head, baseline
        self._labels = _Labels(target, key_grid)
        self._calls = AttentionCalls(self._begin, lambda: True)
        self._handles: list[RemovableHandle] = []
        self._modes: list[_Edits] = []
        self._projections: Projections | None = None
        self._edited = 0

    def __enter__(self) -> None:
        module = self._site.candidate.module
        calls = _calls_of(self._target, module)
        try:
            if AttentionCalls.refusal(self._site.candidate) is not None:
                self._handles.append(self._output_projection(calls).register_forward_pre_hook(self._edit_input))
                return
            self._labels.attach()
            self._handles.append(module.register_forward_pre_hook(self._enter_module))
            # an attention call is delivered before it is computed only where it is not known to be joint
            self._calls.attach([replace(one, joint=False) for one in calls])
            self._handles.append(module.register_forward_hook(self._leave_module, always_call=True))
        except BaseException:
            self._detach()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._detach()
        if kind is None and self._edited == 0:
            raise CaptureError(
                f"{self._site.path}: its attention was not seen, so it could not be taken away: the model was not "
                "called, skips the layer, or computes its attention in another backend; choose the native one"
            )

    def _detach(self) -> None:
        remove_all(self._handles)
        self._calls.detach()
        while self._modes:  # left by a KeyboardInterrupt, for which torch runs no hooks
            self._modes.pop().stop()
        self._labels.detach()

    def _enter_module(self, *_: Any) -> None:
        self._modes.append(_Edits(self._edit_call))
        self._modes[-1].start()

    def _leave_module(self, *_: Any) -> None:
        if self._modes:
            self._modes.pop().stop()

    def _begin(self, candidate: Candidate, projections: Projections) -> None:
        self._projections = projections if candidate.path == self._site.path else None

    def _edit_call(self, result: Tensor, call: Callable[[slice, list[slice]], Tensor]) -> Tensor:
        """The result of an attention call, with that of the site taken away."""
        projections, self._projections = self._projections, None
        if projections is None:
            return result
        self._edited += 1
        folded = result.ndim == 3
        output = (result.unflatten(0, (-1, self._site.candidate.heads)) if folded else result).clone()
        layout = None if self._site.is_whole else self._labels.splitter.layout(self._site.candidate, projections)
        if layout is None:
            self._replace(output)
        else:
            self._hide(output, layout, call)
        return output.flatten(0, 1) if folded else output

    def _replace(self, output: Tensor) -> None:
        """Put the baseline in the place of an output (row, head, query, feature)."""
        heads = slice(None) if self._head is None else slice(self._head, self._head + 1)
        part = output[:, heads]
        output[:, heads] = 0 if self._baseline == "zero" else part.mean(dim=2, keepdim=True)

    def _hide(self, output: Tensor, layout: TokenLayout, call: Callable[[slice, list[slice]], Tensor]) -> None:
        """Compute the output of the generated picture's queries again, without the keys of the context."""
        queries, hidden = layout.span("self"), layout.span(self._site.context)
        without = call(queries, [slice(0, hidden.start), slice(hidden.stop, layout.tokens)])
        without = without.view(output.shape[0], output.shape[1], -1, output.shape[3])
        heads = slice(None) if self._head is None else slice(self._head, self._head + 1)
        output[:, heads, queries] = without[:, heads]

    def _edit_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the output projection is given, (row, query, head * feature), with the site's part taken away."""
        self._edited += 1
        output = args[0].unflatten(-1, (self._site.candidate.heads, -1)).transpose(1, 2).clone()
        self._replace(output)
        return (output.transpose(1, 2).flatten(2), *args[1:])

    def _output_projection(self, calls: tuple[Candidate, ...]) -> nn.Module:
        """What takes the attention's output, where the attention itself cannot be intercepted."""
        candidate = self._site.candidate
        projection = getattr(candidate.module, "to_out", None)
        projection = projection[0] if isinstance(projection, nn.ModuleList | nn.Sequential) else projection
        if len(calls) > 1 or not self._site.is_whole or not isinstance(projection, nn.Module):
            raise CaptureError(
                f"{candidate.path}: its attention cannot be taken away, because {AttentionCalls.refusal(candidate)}: "
                "choose a processor that calls scaled_dot_product_attention"
            )
        return projection


class _Labels:
    """Finds what the keys of attention calls are, while the denoiser runs."""

    def __init__(self, target: Target, key_grid: Grid | None) -> None:
        self._denoiser, self._read = target.denoiser, argument_reader(target.denoiser)
        self._grids = QueryGrids(target.denoiser, target.candidates)
        self._handles: list[RemovableHandle] = []
        self.splitter = ContextSplitter(
            target.denoiser,
            self._grids,
            profile=target.profile,
            wanted=None,
            self_attention=True,
            key_grid=key_grid,
        )

    def attach(self) -> None:
        """Look at the arguments of every call."""
        self._grids.attach()

        def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.splitter.begin(self._read(args, kwargs))

        self._handles.append(self._denoiser.register_forward_pre_hook(begin, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks."""
        self._grids.detach()
        remove_all(self._handles)


class _Edits(TorchFunctionMode):
    """Gives the results of attention calls to a function that may change them, while it is entered."""

    def __init__(self, edit: Callable[[Tensor, Callable[[slice, list[slice]], Tensor]], Tensor]) -> None:
        super().__init__()
        self._edit = edit

    def start(self) -> None:
        """Edit from now on, in this thread."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Edit no longer."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is not F.scaled_dot_product_attention:
            return result
        return self._edit(result, lambda queries, keys: _part_of_call(queries, keys, *args, **kwargs))


def _part_of_call(
    queries: slice,
    keys: list[slice],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attention of some queries to some keys, with the arguments of a call for all of them."""
    if is_causal:
        raise CaptureError("keys cannot be hidden from causal attention")

    def chosen(tensor: Tensor, dim: int) -> Tensor:
        return torch.cat([tensor.narrow(dim, one.start, one.stop - one.start) for one in keys], dim)

    if attn_mask is not None:
        attn_mask = attn_mask if attn_mask.shape[-1] == 1 else chosen(attn_mask, -1)
        attn_mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., queries, :]
    query, key, value = query[..., queries, :], chosen(key, -2), chosen(value, -2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)


def _calls_of(target: Target, module: nn.Module) -> tuple[Candidate, ...]:
    """Every attention call of a module."""
    return tuple(one for one in target.candidates if one.module is module)
