"""Stretches joined, and an image's stretches over those of its backing disk."""

from __future__ import annotations

from storaged.formats.disk import Kind, Stretch
from storaged.formats.layers import joined, over, read_padded
from tests.formats.memory import MemoryHandle

DATA, COMPRESSED, ZERO, ABSENT = Kind


def test_joined() -> None:
    file, other = MemoryHandle(), MemoryHandle()
    stretches = [
        Stretch(0, 10, DATA, 0, file, 100),
        Stretch(10, 10, DATA, 0, file, 110),  # goes on
        Stretch(20, 10, DATA, 0, file, 130),  # lies elsewhere
        Stretch(30, 10, DATA, 0, other, 140),  # in another file
        Stretch(40, 10, DATA, 1, other, 150),  # in another layer
        Stretch(50, 10, ZERO),
        Stretch(60, 10, ZERO),
        Stretch(70, 10, ABSENT),
        Stretch(80, 10, COMPRESSED),
        Stretch(90, 10, COMPRESSED),
    ]
    assert list(joined(stretches)) == [
        Stretch(0, 20, DATA, 0, file, 100),
        *stretches[2:5],
        Stretch(50, 20, ZERO),
        Stretch(70, 10, ABSENT),
        Stretch(80, 20, COMPRESSED),
    ]
    assert list(joined([])) == []


def test_over_a_shorter_one() -> None:
    backing = MemoryHandle(bytes(100))
    own = [Stretch(0, 50, ZERO), Stretch(50, 30, ABSENT), Stretch(80, 100, ABSENT)]
    assert list(over(own, backing)) == [
        Stretch(0, 50, ZERO),
        Stretch(50, 30, DATA, 1, backing, 50),
        Stretch(80, 20, DATA, 1, backing, 80),
        Stretch(100, 80, ABSENT, 1),
    ]
    beyond = [Stretch(200, 50, ABSENT)]
    assert list(over(beyond, backing)) == [Stretch(200, 50, ABSENT, 1)]


def test_read_padded() -> None:
    handle = MemoryHandle(b"x" * 100)
    assert read_padded(handle, 10, 95) == b"x" * 5 + bytes(5)
    assert read_padded(handle, 10, 200) == bytes(10)
    assert read_padded(handle, 10, 0) == b"x" * 10
