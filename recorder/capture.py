"""The two ways to see the queries and keys of an attention call without changing it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from attrace.recorder import dispatch
from attrace.recorder.sites import Candidate
from attrace.schemas import CaptureError

CaptureName = Literal["auto", "hooks", "attention"]
"""How to capture: by hooks on the projections, by interception of the attention call, or whichever fits."""

_EAGER_PROCESSORS = ("AttnProcessor", "AttnAddedKVProcessor", "CustomDiffusionAttnProcessor", "IPAdapterAttnProcessor")
_MASK_NAMES = ("attention_mask", "mask", "attn_mask")
_ROTARY_NAMES = ("image_rotary_emb", "rotary_emb", "freqs_cis", "rope")


@dataclass(frozen=True)
class Projections:
    """The queries and keys of one attention call, as the model computed with them."""

    query: Tensor
    """(row, head, query, feature); the rows are those of the batch."""
    key: Tensor
    """(row, head, key, feature)."""
    scale: float
    """s = scale * q.k (+ mask)."""
    mask: Tensor | None
    """Broadcasts to (row, head, query, key): bool, True where a key may be attended to, or added to s."""
    is_self: bool
    """The keys are made from the very tensor that the queries are made from."""
    lse: Tensor | None = None
    """(row, head, query): log of the sum of exp(s) over all keys that the model saw, where these are some of them."""

    def of_rows(self, rows: slice) -> Projections:
        """Some rows of the batch."""
        mask = self.mask if self.mask is None or self.mask.shape[0] == 1 else self.mask[rows]
        return replace(self, query=self.query[rows].detach(), key=self.key[rows].detach(), mask=mask)

    def of_queries(self, queries: slice) -> Projections:
        """Some of the queries."""
        mask = self.mask if self.mask is None or self.mask.shape[2] == 1 else self.mask[:, :, queries]
        return replace(self, query=self.query[:, :, queries], mask=mask)

    def of_keys(self, keys: slice, lse: Tensor) -> Projections:
        """Some of the keys, with the log-sum-exp over all of them."""
        mask = self.mask if self.mask is None or self.mask.shape[3] == 1 else self.mask[..., keys]
        return replace(self, key=self.key[:, :, keys], mask=mask, lse=lse)


Deliver = Callable[[Candidate, Projections], None]
"""Takes what was captured of one attention call, while the model waits."""


class CaptureMethod(Protocol):
    """A way to capture; hooks are all that it leaves on the model, and `detach` removes them."""

    name: ClassVar[str]
    """As in the manifest."""

    def __init__(self, deliver: Deliver, is_active: Callable[[], bool]) -> None: ...

    @staticmethod
    def refusal(candidate: Candidate) -> str | None:
        """Why this way cannot capture the candidate; None if it can."""

    def attach(self, candidates: Sequence[Candidate]) -> None:
        """Watch the candidates of one module."""

    def detach(self, module: nn.Module | None = None) -> None:
        """Stop watching a module, or all."""


class _Hooks:
    """Hooks by module, for both ways."""

    def __init__(self, deliver: Deliver, is_active: Callable[[], bool]) -> None:
        self._deliver = deliver
        self._is_active = is_active
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}

    def detach(self, module: nn.Module | None = None) -> None:
        for one in [module] if module is not None else list(self._handles):
            for handle in self._handles.pop(one, []):
                handle.remove()


class ProjectionHooks(_Hooks):
    """Forward hooks on the query and key projections: whatever kernel computes the attention, also none of torch's.

    Right where nothing happens to the projections before the product: not with query/key norms or rotary embeddings.
    """

    name: ClassVar[str] = "hooks"

    @staticmethod
    def refusal(candidate: Candidate) -> str | None:
        """Why hooks on the projections do not see what the attention computes with."""
        if candidate.joint:
            return "it joins keys of several kinds after their projections"
        if _has_query_key_norm(candidate.module):
            return "it normalises queries and keys after their projections"
        return None

    def attach(self, candidates: Sequence[Candidate]) -> None:
        """Watch the projections of one module."""
        module = candidates[0].module
        handles = self._handles.setdefault(module, [])
        call = _Call(module)
        handles.append(module.register_forward_pre_hook(call.begin, with_kwargs=True))
        for candidate in candidates:
            pair = _ProjectionPair(candidate, call, self._deliver, self._is_active)
            handles.append(candidate.query_projection.register_forward_hook(pair.take_query))
            handles.append(candidate.key_projection.register_forward_hook(pair.take_key))


class _Call:
    """The arguments of the module's call that is under way, as far as they matter."""

    def __init__(self, module: nn.Module) -> None:
        self._signature = inspect.signature(module.forward)
        self._number = 0
        self.mask: Tensor | None = None
        self.rotary: str | None = None

    @property
    def number(self) -> int:
        """Changes with every call."""
        return self._number

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the arguments of a call that begins."""
        self._number += 1
        given = dict(kwargs)
        if args:
            given.update(zip(self._signature.parameters, args, strict=False))
        self.mask = next((given[name] for name in _MASK_NAMES if given.get(name) is not None), None)
        self.rotary = next((name for name in _ROTARY_NAMES if given.get(name) is not None), None)


class _ProjectionPair:
    """Waits for the query and the key of one attention call, then delivers both."""

    def __init__(self, candidate: Candidate, call: _Call, deliver: Deliver, is_active: Callable[[], bool]) -> None:
        self._candidate = candidate
        self._call = call
        self._deliver = deliver
        self._is_active = is_active
        self._query: tuple[int, Any, Tensor] | None = None
        self._key: tuple[int, Any, Tensor] | None = None

    def take_query(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._is_active():
            self._query = (self._call.number, args[0], output)
            self._deliver_pair()

    def take_key(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._is_active():
            self._key = (self._call.number, args[0], output)
            self._deliver_pair()

    def _deliver_pair(self) -> None:
        if self._query is None or self._key is None:
            return
        (query_call, query_input, query), (key_call, key_input, key) = self._query, self._key
        if query_call != key_call:  # one is left from a call that failed half way
            self._query, self._key = (None, self._key) if query_call < key_call else (self._query, None)
            return
        self._query = self._key = None
        self._deliver(self._candidate, self._projections(query, key, query_input is key_input))

    def _projections(self, query: Tensor, key: Tensor, is_self: bool) -> Projections:
        path, heads = self._candidate.path, self._candidate.heads
        if self._call.rotary is not None:
            raise CaptureError(
                f"{path}: a rotary embedding ({self._call.rotary}) changes its queries and keys after the projections: "
                "pass capture='attention'"
            )
        query, key = _split_heads(query, heads), _split_heads(key, heads, features=query.shape[-1] // heads)
        mask = None
        # an IP-Adapter's own call takes no mask of keys
        if self._call.mask is not None and self._candidate.place == 0:
            mask = _mask_over_rows(self._call.mask, path, rows=query.shape[0], heads=heads, keys=key.shape[2])
        return Projections(query, key, _scale(self._candidate.module, query.shape[-1]), mask, is_self)


def _scale(module: nn.Module, features: int) -> float:
    """What the products are scaled by; the processors named 2_0 leave that to torch, whatever the module says."""
    scale = getattr(module, "scale", None)
    by_torch = type(getattr(module, "processor", None)).__name__.endswith("2_0")
    return features**-0.5 if by_torch or not isinstance(scale, float) else scale


def _split_heads(projected: Tensor, heads: int, features: int | None = None) -> Tensor:
    """(row, token, head * feature) as (row, head, token, feature); fewer key heads are repeated for their queries."""
    if projected.ndim == 4:  # an IP-Adapter's keys: (row, image, token, head * feature)
        projected = projected.flatten(1, 2)
    features = features or projected.shape[-1] // heads
    split: Tensor = projected.unflatten(-1, (-1, features)).transpose(1, 2)
    return split if split.shape[1] == heads else split.repeat_interleave(heads // split.shape[1], dim=1)


def _mask_over_rows(mask: Tensor, path: str, *, rows: int, heads: int, keys: int) -> Tensor:
    """The mask that a module was called with, as (row, head or 1, query or 1, key)."""
    if mask.shape[-1] == keys:
        if mask.ndim == 2 and mask.shape[0] == rows:
            return mask[:, None, None, :]
        if mask.ndim == 3 and mask.shape[0] in (1, rows):
            return mask[:, None]
        if mask.ndim == 3 and mask.shape[0] == rows * heads:
            return mask.view(rows, heads, *mask.shape[1:])
        if mask.ndim == 4:
            return mask
    raise CaptureError(
        f"{path}: its attention mask of shape {tuple(mask.shape)} does not fit {rows} rows of {keys} keys: "
        "pass capture='attention'"
    )


class AttentionCalls(_Hooks):
    """Interception of `scaled_dot_product_attention` and of diffusers' dispatcher, only while a watched module runs.

    Sees queries and keys after norms and rotary embeddings, and the mask and scale as they are used.
    """

    name: ClassVar[str] = "attention"

    def __init__(self, deliver: Deliver, is_active: Callable[[], bool]) -> None:
        super().__init__(deliver, is_active)
        self._modes: list[_WatchAttention] = []
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
                mode = _WatchAttention(candidates, inputs, self._deliver)
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
        self._by_module: dict[nn.Module, Any] = {}

    def note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._by_module[module] = args[0] if args else None

    def are_same(self, candidate: Candidate) -> bool:
        query = self._by_module.get(candidate.query_projection)
        return query is not None and query is self._by_module.get(candidate.key_projection)

    def clear(self) -> None:
        self._by_module.clear()


class _WatchAttention(TorchFunctionMode):
    """Delivers the attention calls made while it is entered; passes every call on as it is."""

    def __init__(self, candidates: Sequence[Candidate], inputs: _ProjectionInputs, deliver: Deliver) -> None:
        super().__init__()
        self._candidates = {one.place: one for one in candidates}
        self._known_calls = candidates[0].calls
        self._path = candidates[0].path
        self._heads = candidates[0].heads
        self._inputs = inputs
        self._deliver = deliver
        self._calls = 0
        self._computing = False

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
        """The dispatcher's backend works; what it calls was taken already."""
        self._computing = True
        try:
            yield
        finally:
            self._computing = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and not self._computing:
            self._take_from_torch(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _take_from_torch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,  # noqa: ARG002
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG002
    ) -> None:
        if query.ndim == 3:  # heads folded into the rows
            query, key = (one.unflatten(0, (-1, self._heads)) for one in (query, key))
            attn_mask = None if attn_mask is None else attn_mask.unflatten(0, (-1, self._heads))
        self._take(query, key, attn_mask, is_causal=is_causal, scale=scale)

    def take_dispatched(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        *,
        is_causal: bool,
        scale: float | None,
    ) -> None:
        """Take a call of diffusers' dispatcher, whose tensors are (row, token, head, feature)."""
        if mask is not None and mask.ndim == 2 and mask.shape == (key.shape[0], key.shape[1]):
            mask = mask[:, None, None]
        self._take(query.transpose(1, 2), key.transpose(1, 2), mask, is_causal=is_causal, scale=scale)

    def _take(self, query: Tensor, key: Tensor, mask: Tensor | None, *, is_causal: bool, scale: float | None) -> None:
        if self._calls >= self._known_calls:
            raise CaptureError(
                f"{self._path} makes more attention calls than are known of it: pass capture='hooks', or leave it out "
                "with layers="
            )
        candidate = self._candidates.get(self._calls)
        self._calls += 1
        if candidate is None:
            return  # not selected
        if key.shape[1] != query.shape[1]:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        if is_causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        if mask is not None:
            mask = mask[(None,) * (4 - mask.ndim)]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        self._deliver(candidate, Projections(query, key, scale, mask, is_self=self._inputs.are_same(candidate)))


METHODS: Final[tuple[type[CaptureMethod], ...]] = (ProjectionHooks, AttentionCalls)
"""The ways to capture, in the order in which they are tried."""


def choose_methods(candidates: Iterable[Candidate], wanted: CaptureName) -> dict[str, str]:
    """The method for each candidate, by path: the one that is wanted, or the first that can.

    Raises
    ------
    CaptureError
        If none can.
    """
    methods = [method for method in METHODS if wanted in ("auto", method.name)]
    return {candidate.path: _method_for(candidate, methods) for candidate in candidates}


def _method_for(candidate: Candidate, methods: Iterable[type[CaptureMethod]]) -> str:
    reasons = {}
    for method in methods:
        reason = method.refusal(candidate)
        if reason is None:
            return method.name
        reasons[method.name] = reason
    why = "; ".join(f"not by {name!r}, because {reason}" for name, reason in reasons.items())
    raise CaptureError(
        f"{candidate.path} ({type(candidate.module).__name__}) cannot be captured: {why}. Try another capture=, or "
        "leave it out with layers="
    )


def _has_query_key_norm(module: nn.Module) -> bool:
    return any(getattr(module, name, None) is not None for name in ("norm_q", "norm_k", "q_norm", "k_norm"))
