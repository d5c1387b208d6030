"""Compressed clusters: one at a time, unpacked within bounds and packed as QEMU does.

zlib clusters are raw deflate streams without a header, written with a window of 4 KiB; zstd
clusters are one frame each. What follows the stream in its last sector belongs to other clusters.

Source: the qcow2 specification; the window and what is accepted are QEMU's.
"""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from storaged.formats.errors import CorruptImage, UnsupportedFormat
from storaged.formats.handle import Bytes
from storaged.formats.qcow2 import CompressionType

#: Raw deflate (negative) with a window of 4 KiB: QEMU's reader has no larger one.
_WINDOW_BITS = -12
_MEMORY_LEVEL = 9
#: The largest window a zstd frame may ask for: what its specification recommends to support.
_ZSTD_WINDOW = 8 << 20
_ZSTD_LEVEL = 3


def unpack(kind: CompressionType, data: Bytes, size: int) -> bytes:
    """Return the *size* bytes of a cluster.

    No more memory is taken than for *size* and a window, whatever *data* promise; what they hold
    beyond *size* is left alone.

    :raise CorruptImage: if they are no such stream, or one of fewer bytes.
    :raise UnsupportedFormat: for zstd where the package is not installed.
    """
    unpacked = _inflate(data, size) if kind is CompressionType.DEFLATE else _unzstd(data, size)
    if len(unpacked) != size:
        raise CorruptImage(f"packed data end after {len(unpacked)} of {size} bytes")
    return unpacked


def packer(kind: CompressionType, level: int | None = None) -> Callable[[bytes], bytes | None]:
    """Return a function that packs one cluster, or returns None if it does not shrink.

    Several threads may call it at a time.

    :param level: zlib's or zstd's; None is their usual one, as in QEMU.
    :raise UnsupportedFormat: for zstd where the package is not installed.
    """
    if kind is CompressionType.DEFLATE:
        return _Deflate(zlib.Z_DEFAULT_COMPRESSION if level is None else level)
    return _Zstd(_ZSTD_LEVEL if level is None else level)


def _inflate(data: Bytes, size: int) -> bytes:
    # A reader with the largest window takes every stream: with a smaller one, distances that reach
    # behind it fail although QEMU, who unpacks in one piece, accepts them.
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return stream.decompress(data, size)
    except zlib.error as err:
        raise CorruptImage(f"not a deflate stream: {err}") from err


def _unzstd(data: Bytes, size: int) -> bytes:
    zstandard = _zstandard()
    stream = zstandard.ZstdDecompressor(max_window_size=max(size, _ZSTD_WINDOW))
    try:
        with stream.stream_reader(io.BytesIO(data)) as reader:
            unpacked: bytes = reader.read(size)
    except zstandard.ZstdError as err:
        raise CorruptImage(f"not a zstd frame: {err}") from err
    return unpacked


class _Deflate:
    def __init__(self, level: int) -> None:
        self._level = level

    def __call__(self, data: bytes) -> bytes | None:
        stream = zlib.compressobj(self._level, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
        packed = stream.compress(data) + stream.flush()
        return packed if len(packed) < len(data) else None


class _Zstd:
    def __init__(self, level: int) -> None:
        self._level = level
        self._module = _zstandard()
        #: a compressor is costly to make and not for two threads
        self._own = threading.local()

    def __call__(self, data: bytes) -> bytes | None:
        compressor: Any = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = self._own.compressor = self._module.ZstdCompressor(level=self._level)
        packed: bytes = compressor.compress(data)
        return packed if len(packed) < len(data) else None


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as err:
        raise UnsupportedFormat(
            "zstd compression needs the Python package zstandard (Debian: python3-zstandard)"
        ) from err
    return zstandard
