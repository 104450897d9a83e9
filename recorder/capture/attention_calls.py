"""Capture by interception of the attention call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrace.recorder.capture import dispatch
from attrace.recorder.capture.kernel_sums import KernelSums, TrustedSums
from attrace.recorder.capture.projections import (
    Deliver,
    Fail,
    ModuleHooks,
    Projections,
    fails_softly,
    is_beginning,
    raise_error,
)
from attrace.recorder.capture.sites import Candidate
from attrace.schemas import CaptureError

_EAGER_PROCESSORS = ("AttnProcessor", "AttnAddedKVProcessor", "CustomDiffusionAttnProcessor", "IPAdapterAttnProcessor")


class AttentionCalls(ModuleHooks):
    """Interception of `scaled_dot_product_attention` and of diffusers' dispatcher, only while a watched module runs.

    Sees queries and keys after norms and rotary embeddings, and the mask and scale as they are used.
    """

    name: ClassVar[str] = "attention"

    def __init__(self, deliver: Deliver, is_active: Callable[[], bool], fail: Fail = raise_error) -> None:
        super().__init__(deliver, is_active, fail)
        self._modes: list[_WatchAttention] = []
        self._sums = TrustedSums()
        self._watches_dispatcher = False

    @staticmethod
    def refusal(candidate: Candidate) -> str | None:
        """Why there is no call of scaled_dot_product_attention to intercept."""
        processor = type(getattr(candidate.module, "processor", None)).__name__
        if "XFormers" in processor:
            return f"xformers computes it ({processor})"
        if processor.startswith("Sliced"):
            return f"it is computed in slices ({processor}): call disable_attention_slicing()"
        if processor in _EAGER_PROCESSORS:
            return f"{processor} does not call scaled_dot_product_attention"
        return None

    def attach(self, candidates: Sequence[Candidate]) -> None:
        """Watch the attention calls of one module."""
        module = candidates[0].module
        inputs = _ProjectionInputs()
        handles = self._handles.setdefault(module, [])
        if not self._watches_dispatcher:
            dispatch.table.acquire()
            self._watches_dispatcher = True

        def enter(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
            if self._is_active():
                mode = _WatchAttention(candidates, inputs, self._sums, self._deliver, self._fail)
                mode.start()
                self._modes.append(mode)

        def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
            if self._modes:
                self._modes.pop().stop()
            inputs.clear()

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
        for candidate in candidates:
            handles.append(candidate.query_projection.register_forward_pre_hook(inputs.note))
            handles.append(candidate.key_projection.register_forward_pre_hook(inputs.note))

    def detach(self, module: nn.Module | None = None) -> None:
        """Stop watching a module, or all."""
        super().detach(module)
        if module is not None:
            return
        while self._modes:  # left by a KeyboardInterrupt, for which torch runs no hooks
            self._modes.pop().stop()
        if self._watches_dispatcher:
            self._watches_dispatcher = False
            dispatch.table.release()


class _ProjectionInputs:
    """What the projections of the module that runs were called with."""

    def __init__(self) -> None:
        self._by_module: dict[nn.Module, list[Any]] = {}
        self._are_same: dict[Candidate, bool] = {}
        """As the first call was: to look at values makes the model wait for the device."""

    def note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._by_module.setdefault(module, []).append(args[0] if args else None)

    def are_same(self, candidate: Candidate) -> bool:
        """Whether the keys, or the first of them, are made of what the queries are made of."""
        if candidate not in self._are_same:
            queries = self._by_module.get(candidate.query_projection, [None])
            keys = self._by_module.get(candidate.key_projection, [None])
            self._are_same[candidate] = is_beginning(queries[-1], keys[0])
        return self._are_same[candidate]

    def called(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those whose attention is computed: an adapter that is switched off (a scale of 0) projects no keys."""
        return [one for one in candidates if one.place == 0 or one.key_projection in self._by_module]

    def clear(self) -> None:
        self._by_module.clear()


def projections_of_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    heads: int,
    *,
    is_causal: bool,
    scale: float | None,
) -> Projections:
    """The arguments of an attention call, (row, head, token, feature) or with the heads folded into the rows."""
    if query.ndim == 3:
        query, key, value = (one.unflatten(0, (-1, heads)) for one in (query, key, value))
        mask = None if mask is None else mask.unflatten(0, (-1, heads))
    if key.shape[1] != query.shape[1]:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    if is_causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    elif mask is not None and mask.ndim == 2 and mask.shape == (key.shape[0], key.shape[2]):
        mask = mask[:, None, None]  # as diffusers' dispatcher takes it
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return Projections(query, key, scale, mask, is_self=False, value=value)


class _WatchAttention(TorchFunctionMode):
    """Delivers the attention calls made while it is entered; passes every call on as it is.

    A joint call is delivered once it was computed, with the kernel's sums over all keys.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        inputs: _ProjectionInputs,
        sums: TrustedSums,
        deliver: Deliver,
        fail: Fail,
    ) -> None:
        super().__init__()
        self.fail = fail
        self._candidates = sorted(candidates, key=lambda one: one.place)
        self._inputs, self._sums = inputs, sums
        self._deliver = deliver
        self._calls = 0
        self._computing = False
        self._waiting: tuple[Candidate, Projections] | None = None
        self._lse: Tensor | None = None

    def start(self) -> None:
        """Watch from now on, in this thread."""
        self.__enter__()  # type: ignore[no-untyped-call]
        dispatch.running.watchers.append(self)

    def stop(self) -> None:
        """Watch no longer."""
        if self in dispatch.running.watchers:
            dispatch.running.watchers.remove(self)
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A call that was taken is computed: what it calls itself is not taken again."""
        self._computing, self._lse = True, None
        try:
            yield
        finally:
            self._computing = False
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._deliver_computed(*waiting)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        call = partial(func, *args, **kwargs)
        if self._computing:
            return self._compute(call)
        self._take_from_torch(*args, **kwargs)
        with self.computing():
            return self._compute(call)

    @fails_softly
    def _deliver_computed(self, candidate: Candidate, projections: Projections) -> None:
        self._deliver(candidate, self._sums.add(candidate, projections, self._lse))

    def _compute(self, call: Callable[[], Tensor]) -> Tensor:
        """Call torch's attention; see the kernel's sums if they are wanted."""
        if self._waiting is None:
            return call()
        with KernelSums() as sums:
            result = call()
        self._lse = sums.lse
        return result

    def _take_from_torch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG002
    ) -> None:
        self._take(query, key, value, attn_mask, is_causal=is_causal, scale=scale)

    def take_dispatched(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        is_causal: bool,
        scale: float | None,
    ) -> None:
        """Take a call of diffusers' dispatcher, whose tensors are (row, token, head, feature)."""
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        self._take(query, key, value, mask, is_causal=is_causal, scale=scale)

    @fails_softly
    def _take(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        is_causal: bool,
        scale: float | None,
    ) -> None:
        candidates = self._inputs.called(self._candidates)
        if self._calls >= len(candidates):
            path = self._candidates[0].path
            raise CaptureError(f"{path} makes more attention calls than are known of it: leave it out with layers=")
        candidate = candidates[self._calls]
        self._calls += 1
        heads = candidate.heads
        projections = projections_of_call(query, key, value, mask, heads, is_causal=is_causal, scale=scale)
        projections = replace(projections, is_self=self._inputs.are_same(candidate))
        if candidate.joint:
            self._waiting = candidate, projections
        else:
            self._deliver(candidate, projections)
