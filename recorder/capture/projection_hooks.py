"""Capture by forward hooks on the query and key projections."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from attrace.recorder.capture.projections import Deliver, Fail, ModuleHooks, Projections, fails_softly, is_beginning
from attrace.recorder.capture.sites import Candidate
from attrace.schemas import CaptureError

_MASK_NAMES = ("attention_mask", "mask", "attn_mask")
_ROTARY_NAMES = ("image_rotary_emb", "rotary_emb", "freqs_cis", "rope")


class ProjectionHooks(ModuleHooks):
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
            pair = _ProjectionPair(candidate, call, self._deliver, self._is_active, self._fail)
            handles.append(candidate.query_projection.register_forward_hook(pair.take_query))
            handles.append(candidate.key_projection.register_forward_hook(pair.take_key))
            if candidate.value_projection is not None:
                handles.append(candidate.value_projection.register_forward_hook(pair.take_value))


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
    """Waits for the query and the key of one attention call, and the value where it is wanted, then delivers them."""

    def __init__(
        self, candidate: Candidate, call: _Call, deliver: Deliver, is_active: Callable[[], bool], fail: Fail
    ) -> None:
        self.fail = fail
        self._candidate = candidate
        self._call = call
        self._deliver = deliver
        self._is_active = is_active
        self._query: tuple[int, Any, Tensor] | None = None
        self._key: tuple[int, Any, Tensor] | None = None
        self._value: tuple[int, Tensor] | None = None

    def take_query(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._is_active():
            self._query = (self._call.number, args[0], output)
            self._deliver_pair()

    def take_key(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._is_active():
            self._key = (self._call.number, args[0], output)
            self._deliver_pair()

    @fails_softly
    def take_value(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        if self._is_active():
            self._value = (self._call.number, output)
            self._deliver_pair()

    def _deliver_pair(self) -> None:
        if self._query is None or self._key is None:
            return
        if self._candidate.value_projection is not None and (
            self._value is None or self._value[0] != self._call.number
        ):
            return
        (query_call, query_input, query), (key_call, key_input, key) = self._query, self._key
        if query_call != key_call:  # one is left from a call that failed half way
            self._query, self._key = (None, self._key) if query_call < key_call else (self._query, None)
            return
        value = None if self._value is None else self._value[1]
        self._query = self._key = self._value = None
        self._deliver(self._candidate, self._projections(query, key, value, is_beginning(query_input, key_input)))

    def _projections(self, query: Tensor, key: Tensor, value: Tensor | None, is_self: bool) -> Projections:
        path, heads = self._candidate.path, self._candidate.heads
        if self._call.rotary is not None:
            raise CaptureError(
                f"{path}: a rotary embedding ({self._call.rotary}) changes its queries and keys after the projections: "
                "pass capture='attention'"
            )
        is_as_key = value is not None and value.shape == key.shape
        features = query.shape[-1] // heads
        value = _split_heads(value, heads, features) if value is not None and is_as_key else None
        query, key = _split_heads(query, heads), _split_heads(key, heads, features)
        mask = None
        # an IP-Adapter's own call takes no mask of keys
        if self._call.mask is not None and self._candidate.place == 0:
            mask = _mask_over_rows(self._call.mask, path, rows=query.shape[0], heads=heads, keys=key.shape[2])
        return Projections(query, key, _scale(self._candidate.module, query.shape[-1]), mask, is_self, value=value)


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


def _has_query_key_norm(module: nn.Module) -> bool:
    return any(getattr(module, name, None) is not None for name in ("norm_q", "norm_k", "q_norm", "k_norm"))
