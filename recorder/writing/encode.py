"""From captured queries and keys to what is stored: scores or factors, whichever is smaller or asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attrace.recorder.capture.projections import Projections
from attrace.recorder.capture.scores import additive, form_scores
from attrace.schemas import CaptureError, Encoding
from attrace.schemas.layout import KEY, QUERY, SCORES, VALUE

EncodingChoice = Literal["auto", "scores", "factors"]
"""How to store: as asked, or the smaller of the two."""

StoredType = Literal["float16", "float32", "float64"]

_STORED: dict[torch.dtype, StoredType] = {
    torch.float16: "float16",
    torch.bfloat16: "float32",  # NumPy and Zarr have no bfloat16; float32 holds it exactly
    torch.float32: "float32",
    torch.float64: "float64",
}
_LIKELY_STEPS = 50
"""Steps over which a key that does not change is shared, where they are not known."""


@dataclass(frozen=True)
class SiteShape:
    """What a site must have in common with others to share their arrays, and with itself in every step."""

    heads: int
    queries: int
    keys: int
    features: int
    scale: float
    dtype: StoredType
    encoding: Encoding
    has_bias: bool
    has_lse: bool = False
    channels: int | None = None
    """Length of what the site gives a query; None where values are not stored."""

    @property
    def output_bytes(self) -> int:
        """Bytes of the weights of its output projection, before compression."""
        return self.heads * self.features * (self.channels or 0) * _itemsize(self.dtype)

    def step_bytes(self, *, with_keys: bool) -> int:
        """Bytes that one step of one sample takes, before compression."""
        is_factors = self.encoding == "factors"
        # keys that are joined to others go through every layer with them, so they change in every step
        keys = self.keys * (is_factors + (self.channels is not None)) if with_keys or self.has_lse else 0
        values = self.features * keys + self.queries * (self.features if is_factors else self.keys)
        rest = 4 * self.keys * self.has_bias + 4 * self.heads * self.queries * self.has_lse
        return self.heads * values * _itemsize(self.dtype) + rest


@dataclass(frozen=True)
class Encoded:
    """What is stored of one attention call."""

    shape: SiteShape
    parts: dict[str, Tensor]
    """By array name; each (row, ...) and then as in the store."""


def encode(
    projections: Projections, choice: EncodingChoice, steps: int | None, *, channels: int | None = None
) -> Encoded:
    """Encode an attention call.

    Scores are formed in float32 at least, and stored so: they are not what the model's kernel held in its own
    precision, and float16 would overflow where it does not. Queries and keys are stored as the model made them.

    Parameters
    ----------
    projections
        What to keep of the call.
    choice
        What was asked for.
    steps
        Steps of the run, over which a key that does not change is shared; None where not known.
    channels
        Length of what the site gives a query, to store its values too, beside scores or factors; None for no values.

    Raises
    ------
    CaptureError
        If factors are asked for where a mask depends on the query.
    """
    query, key, lse = projections.query, projections.key, projections.lse
    dtype = torch.promote_types(query.dtype, key.dtype)
    if dtype not in _STORED:
        raise CaptureError(f"queries and keys of {dtype} cannot be stored: only float16, bfloat16, float32, float64")
    mask, bias = _split_mask(projections.mask)
    if mask is not None and choice == "factors":
        raise CaptureError("its attention mask depends on the query, so factors cannot hold it: pass encoding='auto'")
    factors = _shape(projections, _STORED[dtype], "factors", has_bias=bias is not None)
    scores = _shape(projections, "float64" if dtype == torch.float64 else "float32", "scores", has_bias=False)
    parts = {} if lse is None else {"lse": lse.float()}
    if channels is not None and projections.value is not None:
        scores, factors = (replace(one, channels=channels) for one in (scores, factors))
        parts[VALUE] = projections.value.to(dtype)
    # what a bfloat16 stored as float32 takes once it is compressed (benchmarks/codecs.py)
    compressed = replace(factors, dtype="float16") if dtype == torch.bfloat16 else factors
    if choice == "scores" or mask is not None or (choice == "auto" and _is_smaller(scores, compressed, steps)):
        parts[SCORES] = form_scores(query, key, projections.scale, mask if mask is not None else bias)
        return Encoded(scores, parts)
    parts |= {QUERY: query.to(dtype), KEY: key.to(dtype)}
    if bias is not None:
        parts["bias"] = bias[:, 0, 0].expand(len(query), -1).float()
    return Encoded(factors, parts)


def _shape(projections: Projections, dtype: StoredType, encoding: Encoding, *, has_bias: bool) -> SiteShape:
    _, heads, queries, features = projections.query.shape
    return SiteShape(
        heads=heads,
        queries=queries,
        keys=projections.key.shape[2],
        features=features,
        scale=float(projections.scale),
        dtype=dtype,
        encoding=encoding,
        has_bias=has_bias,
        has_lse=projections.lse is not None,
    )


def _is_smaller(scores: SiteShape, factors: SiteShape, steps: int | None) -> bool:
    """Whether the scores of a whole run take fewer bytes than queries in every step and keys once."""
    steps = steps or _LIKELY_STEPS
    queries = factors.step_bytes(with_keys=False) * steps
    keys = factors.step_bytes(with_keys=True) - factors.step_bytes(with_keys=False)
    return scores.step_bytes(with_keys=True) * steps < queries + keys


def _split_mask(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The mask as additive float, (row, head, query, key) or 1 in place of each of the first three.

    First what depends on the query or the head, then what depends on the key alone; one of them is None.
    """
    if mask is None:
        return None, None
    mask = additive(_drop_repeats(_drop_repeats(mask, 1), 2))
    return (None, mask) if mask.shape[1] == mask.shape[2] == 1 else (mask, None)


def _drop_repeats(mask: Tensor, dim: int) -> Tensor:
    """One slice where all slices along a dim are the same (masks are rare, so comparing costs nothing as a rule)."""
    first = mask.narrow(dim, 0, 1)
    return first if mask.shape[dim] == 1 or mask.stride(dim) == 0 or bool((mask == first).all()) else mask


def _itemsize(dtype: StoredType) -> int:
    return {"float16": 2, "float32": 4, "float64": 8}[dtype]
