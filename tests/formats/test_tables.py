"""Bulk tables against the same, slowly."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.tables import (
    pack_offsets,
    pack_refcounts,
    refcount,
    set_refcount,
)


@pytest.mark.parametrize("stride", [1, 2])
def test_offsets(stride: int) -> None:
    data = pack_offsets(1 << 63 | 65536, 512, 5, stride=stride)
    words = struct.unpack(f">{5 * stride}Q", data)
    assert words[::stride] == tuple((1 << 63 | 65536) + 512 * n for n in range(5))
    assert stride == 1 or not any(words[1::stride])


def test_no_offsets() -> None:
    assert pack_offsets(0, 512, 0) == b""


@pytest.mark.parametrize(
    ("order", "count", "expected"),
    [
        (0, 4, b"\x0f"),
        (1, 4, b"\x55"),
        (2, 4, b"\x11\x11"),
        (2, 3, b"\x11\x01"),
        (3, 2, b"\1\1"),
        (4, 2, b"\0\1\0\1"),
        (6, 1, b"\0\0\0\0\0\0\0\1"),
        (0, 0, b""),
    ],
)
def test_refcounts_as_the_specification_packs_them(order: int, count: int, expected: bytes) -> None:
    assert pack_refcounts(count, order) == expected


@settings(max_examples=60, deadline=None)
@given(
    order=st.integers(0, 6),
    places=st.lists(st.integers(0, 63), max_size=20),
    count=st.integers(0, 64),
)
def test_single_refcounts(order: int, places: list[int], count: int) -> None:
    block = bytearray(pack_refcounts(count, order).ljust(8 << order, b"\0"))
    expected = [1] * count + [0] * (64 - count)
    for place in places:
        value = (1 << (1 << order)) - 1 if place % 2 else 0
        set_refcount(block, place, order, value)
        expected[place] = value
    assert [refcount(block, place, order) for place in range(64)] == expected
