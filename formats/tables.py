"""Tables of big-endian 64-bit entries and of refcounts, made in bulk.

Everything here is one call into C for many entries, because a Python loop over the tables of a
large image would take seconds and keep other threads from running.
"""

from __future__ import annotations

import sys
from array import array

#: From so many entries on it pays to make them byte by byte.
_MANY = 512


def pack_offsets(first: int, step: int, count: int, *, stride: int = 1, second: int = 0) -> bytes:
    """Return *count* big-endian 64-bit entries: first, first + step, first + 2 * step ...

    :param stride: 2 puts a second word after each entry (extended L2) ...
    :param second: ... which is this one.
    """
    if count >= _MANY and step & (step - 1) == 0 and first % step == 0:
        return _pack_planes(first, step, count, _words(first, stride, second))
    entries = array("Q", range(first, first + step * count, step))
    if stride > 1:
        spaced = array("Q", bytes(8 * stride * count))
        spaced[::stride] = entries
        if second:
            spaced[1::stride] = array("Q", (second,)) * count
        entries = spaced
    if sys.byteorder == "little":
        entries.byteswap()
    return entries.tobytes()


def _words(first: int, stride: int, second: int) -> bytes:
    entry = first.to_bytes(8, "big")
    return entry if stride == 1 else entry + second.to_bytes(8, "big")


def _pack_planes(first: int, step: int, count: int, words: bytes) -> bytes:
    """Return what `pack_offsets` does, for a step that is a power of two and divides *first*.

    No integer is made for each entry: what changes is put in byte by byte, for all entries at once.
    """
    table = bytearray(words * count)
    last = first + (count - 1) * step
    for place in range(8):
        shift = 8 * place
        if first >> shift == last >> shift:
            break  # neither this byte nor a higher one changes
        if 256 << shift > step:
            table[7 - place :: len(words)] = _plane(first, step, count, shift)
    return bytes(table)


def _plane(first: int, step: int, count: int, shift: int) -> bytes:
    """Return bits *shift* to *shift* + 7 of *count* entries, a byte for each."""
    # Each value stands for so many entries, and all come again after a while.
    run = max((1 << shift) // step, 1)
    again = (256 << shift) // step
    skipped = first // step % run
    start = first // step % again - skipped
    cycle = b"".join(
        bytes(((number * step >> shift) & 255,)) * run
        for number in range(start, start + min(skipped + count, again), run)
    )
    if len(cycle) < skipped + count:
        cycle *= (skipped + count) // again + 1
    return cycle[skipped : skipped + count]


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


def unpack_refcounts(block: bytes | bytearray, order: int) -> tuple[bytes, ...]:
    """Return the refcounts of a block, taken apart into planes of one byte each.

    Plane 0 holds the least significant byte of every refcount, plane 1 the next, and so on. What is
    narrower than a byte has one plane.
    """
    if order >= 3:
        width = 1 << order - 3
        return tuple(bytes(block[place::width]) for place in range(width - 1, -1, -1))
    per_byte, mask = 8 >> order, (1 << (1 << order)) - 1
    plane = bytearray(len(block) * per_byte)
    for place in range(per_byte):
        shift = place << order
        plane[place::per_byte] = block.translate(bytes(byte >> shift & mask for byte in range(256)))
    return (bytes(plane),)


def unpack_entries(data: bytes) -> array[int]:
    """Return the big-endian 64-bit entries of a table; bytes of an incomplete last one are lost."""
    entries = array("Q", data[: len(data) & ~7])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries
