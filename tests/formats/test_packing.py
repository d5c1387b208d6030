"""Compressed clusters: round trips, QEMU's limits, and streams that lie."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.packing import packer, unpack
from storaged.formats.qcow2 import CompressionType

SIZE = 65536
KINDS = pytest.mark.parametrize("kind", list(CompressionType), ids=lambda kind: kind.name)
DEFLATE, ZSTD = CompressionType


@KINDS
@pytest.mark.parametrize("level", [None, 1, 9])
@pytest.mark.parametrize("size", [512, 65536, 2 << 20])
def test_round_trip(kind: CompressionType, level: int | None, size: int) -> None:
    data = ((os.urandom(100) + bytes(156)) * (size // 256))[:size]
    packed = packer(kind, level)(data)
    assert packed is not None
    assert len(packed) < size
    # Behind the stream, in its last sector, lies the next one.
    assert unpack(kind, packed + os.urandom(300), size) == data


@KINDS
def test_what_does_not_shrink(kind: CompressionType) -> None:
    assert packer(kind)(os.urandom(SIZE)) is None


@KINDS
def test_too_few_bytes(kind: CompressionType) -> None:
    packed = packer(kind)(bytes(SIZE))
    assert packed is not None
    with pytest.raises(CorruptImage, match=f"end after {SIZE} of {2 * SIZE} bytes"):
        unpack(kind, packed, 2 * SIZE)
    with pytest.raises(CorruptImage):
        unpack(kind, packed[: len(packed) // 2], SIZE)
    with pytest.raises(CorruptImage):
        unpack(kind, b"", SIZE)


@KINDS
def test_too_many_bytes_are_left_alone(kind: CompressionType) -> None:
    packed = packer(kind)(b"x" * (2 * SIZE))
    assert packed is not None
    assert unpack(kind, packed, SIZE) == b"x" * SIZE


def test_any_window_is_read() -> None:
    """A distance of 32 KiB, which a small window does not reach."""
    block = os.urandom(30000)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = stream.compress(block + block) + stream.flush()
    assert len(packed) < 40000
    assert unpack(DEFLATE, packed, 60000) == block + block


def test_written_window_is_qemus() -> None:
    """No distance of more than 4 KiB is written."""
    block = os.urandom(5000)
    packed = packer(DEFLATE)(block + block + bytes(5000))
    assert packed is not None
    assert len(packed) > 10000


def test_deflate_bomb_is_bounded() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(stream.compress(bytes(1 << 20)) for _ in range(64)) + stream.flush()
    tracemalloc.start()
    try:
        assert unpack(DEFLATE, packed, SIZE) == bytes(SIZE)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def zstd_frame(window: int, content_size: int, blocks: int) -> bytes:
    """A frame of blocks that repeat one byte 65 536 times each."""
    descriptor = bytes((0xC0, (window - 10) << 3))
    block = ((65536 << 3) | 1 << 1).to_bytes(3, "little") + b"z"
    head = b"\x28\xb5\x2f\xfd" + descriptor + struct.pack("<Q", content_size)
    return head + block * blocks + b"\x01\x00\x00"


@pytest.mark.parametrize("content_size", [1 << 40, 2**64 - 3])
def test_zstd_content_size_is_not_believed(content_size: int) -> None:
    assert unpack(ZSTD, zstd_frame(16, content_size, 20000), SIZE) == b"z" * SIZE


def test_zstd_content_size_is_a_bound() -> None:
    assert unpack(ZSTD, zstd_frame(16, SIZE, 1), SIZE) == b"z" * SIZE
    with pytest.raises(CorruptImage, match="not a zstd frame"):
        unpack(ZSTD, zstd_frame(16, SIZE, 2), SIZE)


def test_zstd_window_is_bounded() -> None:
    assert unpack(ZSTD, zstd_frame(23, SIZE, 1), SIZE) == b"z" * SIZE
    with pytest.raises(CorruptImage, match="not a zstd frame"):
        unpack(ZSTD, zstd_frame(31, 1 << 40, 4), SIZE)


def test_zstd_frame_is_what_others_read() -> None:
    packed = packer(ZSTD)(b"abc" * 20000)
    assert packed is not None
    assert zstandard.decompress(packed) == b"abc" * 20000


@KINDS
@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_garbage(kind: CompressionType, data: bytes) -> None:
    for stream in (data, b"\x28\xb5\x2f\xfd" + data):
        with suppress(CorruptImage):
            assert len(unpack(kind, stream, 4096)) == 4096


@KINDS
def test_one_packer_for_several_threads(kind: CompressionType) -> None:
    pack, failed = packer(kind), []

    def work(seed: int) -> None:
        for step in range(60):
            data = bytes((seed, step)) * 20000
            packed = pack(data)
            if packed is None or unpack(kind, packed, len(data)) != data:
                failed.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_without_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for call in (lambda: packer(ZSTD), lambda: unpack(ZSTD, b"", 1)):
        with pytest.raises(UnsupportedFormat, match="python3-zstandard") as info:
            call()
        assert isinstance(info.value, FormatError)
    assert packer(DEFLATE)(bytes(SIZE))


def test_zstandard_is_loaded_when_needed() -> None:
    code = "import sys, storaged.formats.packing as p; print('zstandard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
