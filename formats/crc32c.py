"""CRC-32C, the checksum of VHDX's headers; the standard library has only CRC-32.

Source: RFC 3720, appendix B.4 (the polynomial of Castagnoli, reflected).
"""

from __future__ import annotations

import functools
import struct

_POLYNOMIAL = 0x82F63B78


def crc32c(data: bytes) -> int:
    """Return the checksum of *data*.

    Zeros at the end, which is most of a VHDX's tables, cost next to nothing.
    """
    used = data.rstrip(b"\0")
    words, tables = len(used) & ~3, _tables()
    t0, t1, t2, t3 = tables
    crc = 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", used[:words]):
        crc ^= word
        crc = t3[crc & 255] ^ t2[crc >> 8 & 255] ^ t1[crc >> 16 & 255] ^ t0[crc >> 24]
    for byte in used[words:]:
        crc = t0[(crc ^ byte) & 255] ^ crc >> 8
    return _skip_zeros(crc, len(data) - len(used)) ^ 0xFFFFFFFF


@functools.cache
def _tables() -> tuple[tuple[int, ...], ...]:
    """Return what each byte does to the checksum when 0, 1, 2 and 3 bytes follow it."""
    first = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        first.append(value)
    tables = [tuple(first)]
    for _ in range(3):
        tables.append(tuple(first[value & 255] ^ value >> 8 for value in tables[-1]))
    return tuple(tables)


@functools.cache
def _powers() -> tuple[tuple[int, ...], ...]:
    """Return what 1, 2, 4 ... 2^31 zero bits do to each bit of a checksum."""
    matrix = (_POLYNOMIAL, *(1 << bit for bit in range(31)))
    powers = []
    for _ in range(32):
        powers.append(matrix)
        matrix = tuple(_times(matrix, column) for column in matrix)
    return tuple(powers)


def _times(matrix: tuple[int, ...], vector: int) -> int:
    result = 0
    for column in matrix:
        if not vector:
            break
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def _skip_zeros(crc: int, count: int) -> int:
    bits = 8 * count
    for matrix in _powers():
        if bits & 1:
            crc = _times(matrix, crc)
        bits >>= 1
    return crc
