"""Every attention call of a denoiser in its first step: whose it is, and whether hooks saw what it used.

Hooks on projections see what a module projects, not what it attends with: a processor may edit, join or replace it. So
in the first step their values wait until the module's own attention call was seen: one of torch, of diffusers'
dispatcher or of xformers, or the softmax of code that multiplies by itself.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from attrace.recorder.capture import dispatch
from attrace.recorder.capture.attention_calls import projections_of_call
from attrace.recorder.capture.projections import Deliver, Fail, Projections, fails_softly
from attrace.recorder.capture.scores import additive, form_scores
from attrace.recorder.capture.sites import Candidate, remove_all
from attrace.schemas import CaptureError

_SOFTMAX: Final = frozenset({torch.softmax, Tensor.softmax, F.softmax})
_PRODUCTS: Final = frozenset({torch.einsum, torch.bmm, Tensor.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__})
_COMPARED_QUERIES: Final = 8
_TOLERANCE: Final = 0.03
"""Of the largest score: what bfloat16 products differ by is less, what an edit changes is more."""
_HIDDEN: Final = 5e3
"""A score beyond this is that of a masked key."""


@dataclass
class _ModuleCall:
    """A call of an attention module that is under way."""

    candidates: tuple[Candidate, ...]
    projected: dict[Candidate, Projections] = field(default_factory=dict)
    """What hooks saw."""
    used: set[Candidate] = field(default_factory=set)
    """Those of them whose attention call was seen."""
    confirmed: dict[Candidate, int] = field(default_factory=dict)
    """Rows, of the batch times the heads, whose softmax was of what hooks saw."""
    probabilities: tuple[Candidate, Tensor] | None = None
    """Of some queries, as the last softmax gave them, and whose; until it is seen what they are multiplied with."""
    multiplied: set[Candidate] = field(default_factory=set)
    """Those whose probabilities were multiplied with the values that hooks saw."""


class Census(TorchFunctionMode):
    """Sees every attention call of a denoiser while it is entered, and confirms what hooks saw.

    Parameters
    ----------
    denoiser
        Whose first step it is.
    candidates
        Its attention calls that are known, also those that are not recorded.
    deliver
        Takes the values that hooks saw, or what was used in their place, once a module's call is over.
    is_active
        Whether the step is still recorded.
    fail
        Takes what goes wrong.
    trust_hooks
        Hooks were asked for: where they cannot be confirmed, that is noted and not refused.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        candidates: Iterable[Candidate],
        deliver: Deliver,
        is_active: Callable[[], bool],
        fail: Fail,
        *,
        trust_hooks: bool,
    ) -> None:
        super().__init__()
        self.fail = fail
        self.unknown: dict[str, tuple[int, int]] = {}
        """Numbers of queries and keys of attention calls that are of no candidate, by module path."""
        self.intercepted: set[nn.Module] = set()
        """Modules whose attention call can be intercepted, which is more than hooks see."""
        self.notes: dict[str, None] = {}
        """What a reader of the trace should know."""
        self._by_module: dict[nn.Module, tuple[Candidate, ...]] = {}
        for one in candidates:
            self._by_module[one.module] = (*self._by_module.get(one.module, ()), one)
        self._paths = {id(module): path for path, module in denoiser.named_modules()}
        self._deliver, self._is_active, self._trust_hooks = deliver, is_active, trust_hooks
        self._thread: int | None = None
        self._running: list[_ModuleCall] = []
        self._handles: list[RemovableHandle] = []
        self._is_entered = self._is_computing = False
        self._unwatch: Callable[[], None] = _do_nothing

    def start(self) -> None:
        """Watch from now on, in this thread, until the denoiser's call is over."""
        dispatch.table.acquire()
        for module in self._by_module:
            self._handles.append(module.register_forward_pre_hook(self._enter_module))
            self._handles.append(module.register_forward_hook(self._leave_module, always_call=True))
        dispatch.running.censuses.append(self)
        self.__enter__()  # type: ignore[no-untyped-call]
        self._watch_xformers()
        self._is_entered = True
        self._thread = threading.get_ident()

    def stop(self) -> None:
        """Watch no longer."""
        if self._is_entered:
            self._is_entered = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            dispatch.running.censuses.remove(self)
            self._unwatch()
            remove_all(self._handles)
            dispatch.table.release()
            self._running.clear()

    @fails_softly
    def take_projected(self, candidate: Candidate, projections: Projections) -> None:
        """Take what hooks saw in the module that runs."""
        # the module may change them in place before it is over
        query, key = projections.query.detach().clone(), projections.key.detach().clone()
        value = None if projections.value is None else projections.value.detach().clone()
        self._running[-1].projected[candidate] = replace(projections, query=query, key=key, value=value)

    # -- what is seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not self._is_computing:
            self._note_torch(*args, **kwargs)
        elif func in _PRODUCTS and self._running:
            self._note_product(args)
        result = func(*args, **kwargs)
        if func in _SOFTMAX and self._running:
            self._note_softmax(args[0] if args else kwargs["input"], result)
        return result

    def take_dispatched(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool, scale: float | None
    ) -> None:
        """Note a call of diffusers' dispatcher, whose tensors are (row, token, head, feature)."""
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        self._note(query, key, value, mask, is_causal=is_causal, scale=scale)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A call that was noted is computed: what it calls itself is not noted again."""
        self._is_computing = True
        try:
            yield
        finally:
            self._is_computing = False

    def _note_torch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002
        is_causal: bool = False,
        *,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        self._note(query, key, value, attn_mask, is_causal=is_causal, scale=scale)

    @fails_softly
    def _note(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, is_causal: bool, scale: float | None
    ) -> None:
        if not self._running:
            self.unknown[self._calling_module()] = (query.shape[-2], key.shape[-2])
        elif self._running[-1].projected and self._is_active():
            call, mask = self._running[-1], mask if isinstance(mask, Tensor) else None
            heads = call.candidates[0].heads
            used = projections_of_call(query, key, value, mask, heads, is_causal=is_causal, scale=scale)
            self._take_used(call, used)

    def _take_used(self, call: _ModuleCall, used: Projections) -> None:
        """Deliver what an attention call is given, as the call of the projections that it agrees with, or the next."""
        left = [one for one in sorted(call.projected, key=lambda one: one.place) if one not in call.used]
        path = call.candidates[0].path
        if not left:
            raise CaptureError(f"{path} makes more attention calls than are known of it: leave it out with layers=")
        alike = [one for one in left if _agree(call.projected[one], used)]
        if self._trust_hooks and not alike:
            raise CaptureError(
                f"{path} attends with other queries or keys than it projects, which is all that hooks see: pass "
                "capture='auto' or 'attention'"
            )
        candidate = (alike or left)[0]
        call.used.add(candidate)
        if not self._trust_hooks:
            self.intercepted.add(candidate.module)
        projected = call.projected[candidate]
        # where hooks stay, the values of later steps are those that they see
        seen = projected.value if _are_values(used.value, projected.value) else None
        value = seen if self._trust_hooks else used.value
        self._deliver(candidate, replace(used, is_self=projected.is_self, value=value))

    def _watch_xformers(self) -> None:
        """Wrap the one function of xformers that modules attend with, which no mode of torch sees."""
        ops = sys.modules.get("xformers.ops")
        original = getattr(ops, "memory_efficient_attention", None)
        if ops is None or original is None:
            return

        @wraps(original)
        def attend(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None, *args: Any, **kwargs: Any) -> Any:
            if self._running and threading.get_ident() == self._thread:
                self._note_xformers(query, key, value, attn_bias, kwargs.get("scale"))
            return original(query, key, value, attn_bias, *args, **kwargs)

        ops.memory_efficient_attention = attend  # type: ignore[attr-defined]
        self._unwatch = partial(setattr, ops, "memory_efficient_attention", original)

    @fails_softly
    def _note_xformers(self, query: Tensor, key: Tensor, value: Tensor, bias: Any, scale: float | None) -> None:
        call, mask = self._running[-1], bias if isinstance(bias, Tensor) else None
        query, key, value = (one.transpose(1, 2) if one.ndim == 4 else one for one in (query, key, value))
        used = projections_of_call(query, key, value, mask, call.candidates[0].heads, is_causal=False, scale=scale)
        for candidate, projections in call.projected.items():
            if _agree(projections, used):
                call.confirmed[candidate] = used.query.shape[0] * used.query.shape[1]
                if _are_values(used.value, projections.value):
                    call.multiplied.add(candidate)

    def _calling_module(self) -> str:
        """Path of the module whose code attends, from the functions that wait."""
        frame = sys._getframe(2)
        while frame is not None:
            path: str | None = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path
            frame = frame.f_back  # type: ignore[assignment]
        return ""

    @fails_softly
    def _note_softmax(self, scores: Tensor, probabilities: Tensor) -> None:
        """Compare what a softmax is of with the scores of what hooks saw, slice by slice where there are slices."""
        call = self._running[-1]
        if scores.ndim not in (3, 4):
            return
        found = scores.flatten(0, -3)
        for candidate, projections in call.projected.items():
            rows, heads, queries, _ = projections.query.shape
            done = call.confirmed.get(candidate, 0)
            if found.shape[1:] != (queries, projections.key.shape[2]) or done + len(found) > rows * heads:
                continue
            some = _some(queries)
            expected = _scores(projections.of_queries(some)).flatten(0, 1)[done : done + len(found)]
            if _are_alike(found[:, some], expected):
                call.confirmed[candidate] = done + len(found)
                call.probabilities = candidate, probabilities.flatten(0, -3)[:, some].clone()
                return

    @fails_softly
    def _note_product(self, args: tuple[Any, ...]) -> None:
        """Notice probabilities that were edited before they are multiplied with the values."""
        call = self._running[-1]
        if call.probabilities is None:
            return
        candidate, expected = call.probabilities
        for one in args:
            if not isinstance(one, Tensor) or one.ndim not in (3, 4):
                continue
            found = one.flatten(0, -3)
            if len(found) == len(expected) and found.shape[2] == expected.shape[2]:
                call.probabilities = None
                value = call.projected[candidate].value
                others = [other for other in args if isinstance(other, Tensor) and other is not one]
                if value is not None and any(_are_values(_by_row(other), _by_row(value)) for other in others):
                    call.multiplied.add(candidate)
                some = found[:, _some(found.shape[1])]
                if some.shape != expected.shape or not torch.allclose(some.float(), expected.float(), atol=1e-2):
                    self.notes[
                        f"{call.candidates[0].path} edits its probabilities after the softmax: the scores that are "
                        "recorded are those before"
                    ] = None
                return

    # -- what it means

    def _enter_module(self, module: nn.Module, _args: Any) -> None:
        if threading.get_ident() == self._thread:
            self._running.append(_ModuleCall(self._by_module[module]))

    @fails_softly
    def _leave_module(self, _module: nn.Module, _args: Any, result: Any) -> None:
        if threading.get_ident() != self._thread or not self._running:
            return
        call = self._running.pop()
        if result is None or not call.projected or not self._is_active():
            return
        if call.used:
            return
        for candidate, projections in call.projected.items():
            rows = projections.query.shape[0] * projections.query.shape[1]
            if call.confirmed.get(candidate, 0) == rows:
                pass
            elif self._trust_hooks:
                self.notes[f"{candidate.path} was not seen to use the queries and keys that it projects"] = None
            else:
                raise CaptureError(
                    f"{candidate.path} was not seen to use the queries and keys that it projects: it edits them, or "
                    "computes attention in a way that is not seen. Leave it out with layers=, or pass capture='hooks' "
                    "to record the projections all the same"
                )
            seen = projections if candidate in call.multiplied else replace(projections, value=None)
            self._deliver(candidate, seen)


def _do_nothing() -> None: ...


def _agree(projected: Projections, used: Projections) -> bool:
    """Whether two captures of an attention call give the same scores, on some queries."""
    queries = projected.query.shape[2]
    if projected.query.shape[:3] != used.query.shape[:3] or projected.key.shape[2] != used.key.shape[2]:
        return False
    one, other = (_scores(captured.of_queries(_some(queries))) for captured in (projected, used))
    return _are_alike(one, other)


def _are_values(found: Tensor | None, expected: Tensor | None) -> bool:
    """Whether values are those that hooks saw, as far as rounding goes."""
    same_shape = found is not None and expected is not None and found.shape == expected.shape
    return same_shape and _are_alike(found, expected)  # type: ignore[arg-type]


def _by_row(tensor: Tensor) -> Tensor:
    """Values with the heads folded into the rows, however a module has them."""
    return tensor.flatten(0, -3) if tensor.ndim > 2 else tensor


def _some(queries: int) -> slice:
    return slice(None, None, max(1, queries // _COMPARED_QUERIES))


def _scores(projections: Projections) -> Tensor:
    mask = None if projections.mask is None else additive(projections.mask)
    return form_scores(projections.query, projections.key, projections.scale, mask)


def _are_alike(found: Tensor, expected: Tensor) -> bool:
    found, expected = (one.float().clamp(-_HIDDEN, _HIDDEN) for one in (found, expected))
    size = expected[expected.abs() < _HIDDEN].abs()
    tolerance = _TOLERANCE * float(size.max()) if size.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=tolerance + 1e-6, equal_nan=True)
