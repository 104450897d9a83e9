"""The manifest: what was recorded, from which model, how it is stored. One JSON object in the store's attributes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from attrace.schemas.words import Context, Encoding, KeyKind, Status

FORMAT: Final = "attrace-trace"
"""Value of `Manifest.format`: says what the store is."""

VERSION: Final = "2.0"
"""Version of the format that this code writes: major.minor. A reader refuses a newer major version."""

MAJOR: Final = int(VERSION.partition(".")[0])
"""Its major version."""

MAX_CHUNK_BYTES: Final = 2**31 - 1
"""Size of the largest chunk before compression: what every Zarr implementation and codec can hold."""

_BYTES: Final = {"float16": 2, "float32": 4, "float64": 8}


def utc_now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _without_nonfinite(value: Any) -> Any:
    """Plain JSON has no NaN and no infinity: they become the strings that Zarr uses for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _without_nonfinite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(member) for member in value]
    return value


Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""An index or a count, from 0."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A count of at least one."""
Length = Annotated[int, Field(ge=1, le=2**24)]
"""Length of an array along one dimension."""
Grid = tuple[Length, Length]
"""Rows and columns."""
Label = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""A line of printable text."""
Text = Annotated[str, Field(min_length=1, max_length=20_000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")]
"""Lines of printable text."""
BranchName = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""A name that can be part of a path."""
GroupPath = Annotated[
    str,
    Field(
        max_length=200,
        pattern=r"^(reference|text|image-prompt|self)(\.[A-Za-z0-9][A-Za-z0-9_-]*)?/[A-Za-z0-9][A-Za-z0-9._-]*$",
    ),
]
"""`<context>/<class>` or `<context>.<branch>/<class>`: two parts that are safe in every store."""
Timestamp = Annotated[
    str, Field(max_length=40, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z$")
]
"""ISO 8601 in UTC."""
JsonObject = Annotated[dict[str, JsonValue], BeforeValidator(_without_nonfinite)]
"""Plain JSON; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity"."""


class _Model(BaseModel):
    """Unknown members are kept: a newer minor version may add some."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)


class KeySegment(_Model):
    """A run of consecutive keys of one kind."""

    kind: KeyKind
    """What these keys are."""
    count: Length
    """How many."""
    grid: Grid | None = None
    """Rows and columns, for patches that lie on a grid, in row-major order."""

    @model_validator(mode="after")
    def _grid_holds_the_keys(self) -> Self:
        if self.grid is not None and math.prod(self.grid) != self.count:
            raise ValueError(f"a grid of {self.grid[0]} x {self.grid[1]} does not hold {self.count} keys")
        return self


class Site(_Model):
    """One recorded attention module: a layer of the trace."""

    path: Label
    """Module path in the denoiser: its label along `layer`."""
    order: Index
    """Index in the order of calls within a step, over all sites of the trace."""
    module: str = ""
    """Class of the module."""


class SiteClass(_Model):
    """The sites that share context, branch, shape and encoding, and so share one group of arrays."""

    group: GroupPath
    """Path of the group in the store."""
    context: Context
    """What the keys are."""
    branch: BranchName = "conditional"
    """Branch of classifier-free guidance that the arrays hold."""
    encoding: Encoding
    """Whether `scores`, or `query_vector` and `key_vector`, are stored."""
    dtype: Literal["float16", "float32", "float64"]
    """Data type of the stored values."""
    heads: Length
    """Attention heads of each site."""
    queries: Length
    """Patches of the generated picture."""
    keys: Length
    """Tokens of the context."""
    features: Length
    """Length of one query, key or value vector of one head."""
    channels: Length | None = None
    """Length of what a site gives each query; None where `value_vector` and `output` are not stored."""
    scale: float
    """s = scale * q.k (+ bias); already applied in `scores`."""
    query_grid: Grid | None = None
    """Rows and columns of the queries, in row-major order; None where they are on no grid."""
    key_segments: Annotated[tuple[KeySegment, ...], Field(min_length=1)]
    """What the keys are, in order."""
    tokens: tuple[str, ...] | None = None
    """Text of every key, where keys are text."""
    has_bias: bool = False
    """`bias` is stored: an additive mask over the keys. Only with `factors`; `scores` have it applied already."""
    has_lse: bool = False
    """`lse` is stored: only a block of the keys is in the trace, and this is the row log-sum-exp over all of them."""
    sites: Annotated[tuple[Site, ...], Field(min_length=1)]
    """The layers, in the order of the `layer` dimension."""

    @model_serializer(mode="wrap")
    def _as_before_channels(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `channels` out where there are none: classes without values keep the content identifier they had."""
        members: dict[str, Any] = serialize(self)
        return members if self.channels is not None else {k: one for k, one in members.items() if k != "channels"}

    @model_validator(mode="after")
    def _members_agree(self) -> Self:
        problem = next(_disagreements(self), None)
        if problem is not None:
            raise ValueError(f"{self.group}: {problem}")
        return self


def _disagreements(site_class: SiteClass) -> Iterator[str]:
    if site_class.query_grid is not None and math.prod(site_class.query_grid) != site_class.queries:
        yield f"query grid {site_class.query_grid} does not hold {site_class.queries} queries"
    in_segments = sum(segment.count for segment in site_class.key_segments)
    if in_segments != site_class.keys:
        yield f"key segments hold {in_segments} keys, expected {site_class.keys}"
    if site_class.tokens is not None and len(site_class.tokens) != site_class.keys:
        yield f"{len(site_class.tokens)} token texts for {site_class.keys} keys"
    if site_class.has_bias and site_class.encoding == "scores":
        yield "a bias is stored with factors only, but the encoding is scores"
    if len({site.path for site in site_class.sites}) != len(site_class.sites):
        yield "two sites share one module path"
    if _chunk_bytes(site_class) > MAX_CHUNK_BYTES:
        yield f"one step of one layer takes {_chunk_bytes(site_class)} bytes, the limit is {MAX_CHUNK_BYTES}"


def _chunk_bytes(site_class: SiteClass) -> int:
    """Size of the largest chunk: one step of one layer, or its output projection, all heads."""
    queries, keys, features = site_class.queries, site_class.keys, site_class.features
    values = queries * keys if site_class.encoding == "scores" else max(queries, keys) * features
    if site_class.channels is not None:
        values = max(values, keys * features, features * site_class.channels)
    return site_class.heads * values * _BYTES[site_class.dtype]


class ModelIdentity(_Model):
    """A denoiser, pipeline or scheduler."""

    class_name: str
    """Its Python class."""
    model_id: str | None = None
    """Path or hub id that it was loaded from, as the user gave it."""
    revision: str | None = None
    """Revision of that."""
    config: JsonObject | None = None
    """Its configuration."""
    config_hash: str | None = None
    """SHA-256 of the configuration as JSON with sorted keys and no spaces, in hexadecimal."""


class Guidance(_Model):
    """Classifier-free guidance: the order of the branches in a batch, and which were recorded."""

    branches: tuple[BranchName, ...] = ("conditional",)
    """Blocks of the batch, in order."""
    kept: tuple[BranchName, ...] = ("conditional",)
    """Those in the trace."""
    scale: float | None = None
    """Guidance scale, where the call told it."""


class Omitted(_Model):
    """What a copy lacks of the trace that it was made from."""

    source: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """The `id` of that trace."""
    parts: tuple[Label, ...] = ()
    """Parts left out: `images`, `prompts` (and token texts), `arguments`, `scores` (then only `derived` is there)."""
    layers: Index = 0
    """Sites left out."""
    steps: Index = 0
    """Finished steps left out."""


class Manifest(_Model):
    """Everything about a trace that is not an array."""

    format: Literal["attrace-trace"] = FORMAT
    """Name of the format."""
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}\.(0|[1-9][0-9]{0,3})$")] = VERSION
    """Version of the format: major.minor."""
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Identifier of this trace: 32 hexadecimal digits."""
    status: Status
    """Whether the recording is under way, complete, or interrupted."""
    created: Timestamp
    """Start of the recording."""
    finished: Timestamp | None = None
    """Its end."""
    steps: Index = 0
    """Finished steps when the manifest was last written; `step_done` is the authority."""
    sample: Index = 0
    """Which sample of the batch this is, counted from 0."""
    samples: Count = 1
    """Samples in the batch."""
    denoiser: ModelIdentity
    """The model whose attention was recorded."""
    pipeline: ModelIdentity | None = None
    """The pipeline that called it."""
    scheduler: ModelIdentity | None = None
    """The scheduler that chose the timesteps."""
    guidance: Guidance = Guidance()
    """Classifier-free guidance."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """Seed of the noise."""
    model_dtype: str = "float32"
    """Data type the denoiser computed in."""
    device: str = "cpu"
    """Device type the denoiser ran on."""
    image_size: Grid | None = None
    """Rows and columns of the generated picture, in pixels."""
    call_arguments: JsonObject = Field(default_factory=dict)
    """Arguments of the pipeline's call that are plain JSON."""
    software: dict[str, str] = Field(default_factory=dict)
    """Versions of the software that ran."""
    capture: JsonObject = Field(default_factory=dict)
    """How attention was captured: method, profile, warnings about labels that are guesses."""
    licence: Label | None = None
    """Terms under which the trace may be used: an SPDX expression such as `CC-BY-4.0`, or a line of text."""
    citation: Text | None = None
    """How to cite the trace: text, or a BibTeX or CFF block."""
    omitted: Omitted | None = None
    """What was left out, in a copy that is not whole."""
    classes: tuple[SiteClass, ...] = ()
    """The site classes; empty until the first step."""

    @model_validator(mode="after")
    def _members_agree(self) -> Self:
        groups = [site_class.group for site_class in self.classes]
        if len(set(groups)) != len(groups):
            raise ValueError("two site classes share one group")
        if self.sample >= self.samples:
            raise ValueError(f"sample {self.sample} of a batch of {self.samples}, counted from 0")
        return self

    @property
    def major(self) -> int:
        """Major version of the format that the trace is written in."""
        return int(self.version.partition(".")[0])

    @property
    def has_scores(self) -> bool:
        """Whether the arrays that give the scores are in the store, and not only the marginals made of them."""
        return self.omitted is None or "scores" not in self.omitted.parts

    def replace(self, **members: Any) -> Self:
        """A manifest like this one with other values of some members, checked as a new one is."""
        return type(self).model_validate(dict(self) | members)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON, members in the order of the schema."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain
