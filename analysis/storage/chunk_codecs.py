"""Codecs that decode no more than a chunk can hold: some kilobytes of zstd may say that they are many gigabytes."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import zarr
import zarr.codecs
from zarr.abc.codec import Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

CORE_CODECS: Final = frozenset(
    {
        zarr.codecs.BytesCodec,
        zarr.codecs.TransposeCodec,
        zarr.codecs.ShardingCodec,
        zarr.codecs.BloscCodec,
        zarr.codecs.GzipCodec,
        zarr.codecs.ZstdCodec,
        zarr.codecs.Crc32cCodec,
    }
)
"""What a chunk may be encoded with: the codecs of the Zarr specification, none of which runs code."""

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER_BYTES: Final = 18
_BLOSC_HEADER_BYTES: Final = 16


def foreign_codecs(array: zarr.Array[Any]) -> list[str]:
    """Names of the codecs of an array that are none of the Zarr specification, those inside shards included."""
    codecs: Iterable[Codec] = array.metadata.codecs  # type: ignore[union-attr]
    return sorted({type(codec).__name__ for codec in _with_inner(codecs) if not isinstance(codec, tuple(CORE_CODECS))})


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, which decodes no chunk to more than twice what it can hold; of core codecs only."""
    asynchronous = array.async_array
    metadata = replace(asynchronous.metadata, codecs=_bounded_codecs(asynchronous.metadata.codecs))
    return zarr.Array(zarr.AsyncArray(metadata, asynchronous.store_path, asynchronous.config))


class BoundedZstd(zarr.codecs.ZstdCodec):
    """zstd whose frames say how long they are, and are no longer than the chunk."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check(_zstd_length(_first(chunk_bytes, _ZSTD_HEADER_BYTES)), chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check(_zstd_length(_first(chunk_bytes, _ZSTD_HEADER_BYTES)), chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


class BoundedBlosc(zarr.codecs.BloscCodec):
    """blosc whose header says no more than the chunk can hold, and no more than there is to decode."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check(_blosc_length(chunk_bytes), chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check(_blosc_length(chunk_bytes), chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


class BoundedGzip(zarr.codecs.GzipCodec):
    """gzip that stops where the chunk is full."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        content = zlib.decompressobj(wbits=31).decompress(chunk_bytes.to_bytes(), _most(chunk_spec) + 1)
        _check(len(content), chunk_spec)
        return chunk_spec.prototype.buffer.from_bytes(content)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)


def _with_inner(codecs: Iterable[Codec]) -> Iterable[Codec]:
    for codec in codecs:
        yield codec
        if isinstance(codec, zarr.codecs.ShardingCodec):
            yield from _with_inner((*codec.codecs, *codec.index_codecs))


def _bounded_codecs(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    return tuple(_bounded_codec(codec) for codec in codecs)


def _bounded_codec(codec: Codec) -> Codec:
    match codec:
        case zarr.codecs.ZstdCodec():
            return BoundedZstd(level=codec.level, checksum=codec.checksum)
        case zarr.codecs.GzipCodec():
            return BoundedGzip(level=codec.level)
        case zarr.codecs.BloscCodec():
            return BoundedBlosc.from_dict(codec.to_dict())
        case zarr.codecs.ShardingCodec():
            return zarr.codecs.ShardingCodec(
                chunk_shape=codec.chunk_shape,
                codecs=_bounded_codecs(codec.codecs),
                index_codecs=_bounded_codecs(codec.index_codecs),
                index_location=codec.index_location,
            )
    return codec


def _first(content: Buffer, count: int) -> bytes:
    return content.as_numpy_array()[:count].tobytes()


def _zstd_length(header: bytes) -> int:
    """Length that the header of a zstd frame says its content has: RFC 8878, 3.1.1.1."""
    if len(header) < 6 or header[:4] != _ZSTD_MAGIC:
        raise ValueError("expected a zstd frame")
    descriptor = header[4]
    kind, is_single_segment = descriptor >> 6, descriptor >> 5 & 1
    at = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = (1 if is_single_segment else 0, 2, 4, 8)[kind]
    if size == 0:
        raise ValueError("expected a zstd frame that says how long its content is")
    return int.from_bytes(header[at : at + size], "little") + (256 if kind == 1 else 0)


def _blosc_length(chunk_bytes: Buffer) -> int:
    """Length that the header of blosc says its content has; blosc itself would read on where the header says so."""
    header = _first(chunk_bytes, _BLOSC_HEADER_BYTES)
    stored = int.from_bytes(header[12:16], "little")
    if len(header) < _BLOSC_HEADER_BYTES or stored != len(chunk_bytes):
        raise ValueError(f"expected {stored} bytes of blosc, as its header says, found {len(chunk_bytes)}")
    return int.from_bytes(header[4:8], "little")


def _most(chunk_spec: ArraySpec) -> int:
    """Most bytes that a chunk may decode to: room for the index of a shard, and for checksums."""
    return 2 * math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize + 2**16


def _check(length: int, chunk_spec: ArraySpec) -> None:
    if length > _most(chunk_spec):
        raise ValueError(f"a chunk of shape {chunk_spec.shape} would decode to {length} bytes")
