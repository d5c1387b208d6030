"""Tables of big-endian 64-bit entries and of refcounts, made in bulk.

Everything here is one call into C for many entries, because a Python loop over the tables of a
large image would take seconds and keep other threads from running.
"""

from __future__ import annotations

import sys
from array import array


def pack_offsets(first: int, step: int, count: int, *, stride: int = 1) -> bytes:
    """Return *count* big-endian 64-bit entries: first, first + step, first + 2 * step ...

    :param stride: 2 puts a zero word after each entry (extended L2).
    """
    entries = array("Q", range(first, first + step * count, step))
    if stride > 1:
        spaced = array("Q", bytes(8 * stride * count))
        spaced[::stride] = entries
        entries = spaced
    if sys.byteorder == "little":
        entries.byteswap()
    return entries.tobytes()


def pack_refcounts(count: int, order: int) -> bytes:
    """Return *count* refcounts of one, each 1 << *order* bits wide.

    Refcounts narrower than a byte are packed from the least significant bit on.
    """
    if order >= 3:
        return (bytes((1 << order - 3) - 1) + b"\x01") * count
    per_byte = 8 >> order
    full, rest = divmod(count, per_byte)
    pattern = (0xFF, 0x55, 0x11)[order]
    data = bytes((pattern,)) * full
    if rest:
        data += bytes((pattern & (1 << (rest << order)) - 1,))
    return data


def refcount(block: bytes | bytearray, index: int, order: int) -> int:
    """Return refcount number *index* of a block."""
    if order >= 3:
        width = 1 << order - 3
        return int.from_bytes(block[index * width : (index + 1) * width], "big")
    bit = index << order
    return block[bit >> 3] >> (bit & 7) & (1 << (1 << order)) - 1


def set_refcount(block: bytearray, index: int, order: int, value: int) -> None:
    """Set refcount number *index* of a block."""
    if order >= 3:
        width = 1 << order - 3
        block[index * width : (index + 1) * width] = value.to_bytes(width, "big")
        return
    bit = index << order
    mask = (1 << (1 << order)) - 1 << (bit & 7)
    block[bit >> 3] = block[bit >> 3] & ~mask | value << (bit & 7)
