"""An array against its specification: the one check, for opening a trace and for `verify`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
import zarr.codecs

from attrace.analysis.storage.chunk_codecs import foreign_codecs
from attrace.analysis.storage.limits import Limits, variable
from attrace.schemas import ArraySpec


def array_problems(array: zarr.Array[Any], spec: ArraySpec, limits: Limits, *, exactly: bool = False) -> Iterator[str]:
    """What makes an array another than its specification, or too large to be read, in words.

    Parameters
    ----------
    array
        The array.
    spec
        What it is to be; unless `exactly`, it may have more steps.
    limits
        What reading it may cost.
    exactly
        Check also what does not change what is read: chunks, fill value, checksums, and spare steps.
    """
    dims = tuple(getattr(array.metadata, "dimension_names", None) or ())
    if dims != spec.dims:
        yield f"expected dims {_text(spec.dims)}, found {_text(dims)}"
    timed = spec.dims[:1] == ("time",)
    if timed and array.shape and array.shape[0] > limits.steps:
        yield f"{array.shape[0]} steps, the limit is {limits.steps}: if you trust it, raise {variable('steps')}"
    fits = array.shape[timed:] == spec.shape[timed:] and array.shape[:1] >= spec.shape[:1]
    if array.shape != spec.shape if exactly else not fits:
        yield f"expected shape {_text(spec.shape)}, found {_text(array.shape)}"
    if array.dtype.name != spec.dtype:
        yield f"expected data type {spec.dtype}, found {array.dtype.name}"
    if foreign := foreign_codecs(array):
        yield f"expected core codecs, found {', '.join(foreign)}"
    size = max(0 if timed else math.prod(array.shape), math.prod(array.chunks)) * array.dtype.itemsize
    if size > limits.chunk_bytes:
        most = f"the limit is {limits.chunk_bytes}: if you trust it, raise {variable('chunk_bytes')}"
        yield f"{size} bytes in one piece, {most}"
    if exactly:
        yield from _problems_of_storage(array, spec)


def _problems_of_storage(array: zarr.Array[Any], spec: ArraySpec) -> Iterator[str]:
    if array.chunks != spec.chunks and not _is_read_layout(array, spec):
        yield f"expected chunks {_text(spec.chunks)}, found {_text(array.chunks)}"
    if not np.array_equal(array.fill_value, spec.fill, equal_nan=spec.dtype.startswith("float")):
        yield f"expected fill value {spec.fill}, found {array.fill_value}"
    if not any(isinstance(codec, zarr.codecs.Crc32cCodec) for codec in array.metadata.codecs):  # type: ignore[union-attr]
        yield "expected a crc32c checksum on every chunk, found none"


def _is_read_layout(array: zarr.Array[Any], spec: ArraySpec) -> bool:
    """Whether a chunk of data holds all steps of one layer, for some queries or keys."""
    token = next((dim for dim in spec.dims if dim in ("query", "key")), None)
    if spec.chunks[:2] != (1, 1) or spec.dims[:2] != ("time", "layer") or token is None:
        return False
    whole = (spec.shape[0], 1, *spec.shape[2:])
    lengths = zip(spec.dims, array.chunks, whole, strict=True)
    return all(chunk == length for dim, chunk, length in lengths if dim != token)


def _text(values: tuple[Any, ...]) -> str:
    return "(" + ", ".join(map(str, values)) + ")"
