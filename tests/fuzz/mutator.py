"""Damage to images: bits, fields, table entries, lengths. Reproducible by the seed of *random*.

It needs no description of a format: fields and table entries are the words of a sparse image that
are not zero, and what they may be set to are the words that stand elsewhere, places in the file,
and the numbers at which arithmetic breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Literal

#: No mutant is longer.
MAX_LENGTH = 2 << 20
#: Headers are at the start: as many of all changes go there.
_HEAD_SHARE = 0.4
_HEAD = 128
_WIDTHS = (1, 2, 4, 8)
_NOT_ZERO = re.compile(rb"[^\0]")


class Mutator:
    """Makes new images of old ones.

    :param images: what parts are taken from.
    """

    def __init__(self, random: Random, images: list[bytes]) -> None:
        self._random = random
        self._images = images
        self._ways: tuple[Callable[[bytearray], None], ...] = (
            self._flip, self._field, self._field, self._field, self._swap, self._copy,
            self._zero, self._length, self._splice,
        )  # fmt: skip

    def mutate(self, image: bytes) -> bytes:
        """Return *image* with one to five changes."""
        data = bytearray(image)
        for _ in range(self._random.choice((1, 1, 1, 2, 2, 3, 5))):
            if not data:
                data += bytes(512)
            self._random.choice(self._ways)(data)
        return bytes(data[:MAX_LENGTH])

    def _place(self, data: bytearray, width: int) -> int:
        """Return where a field may be: aligned, and near something that is not zero."""
        limit = max(len(data) - width, 0)
        if self._random.random() < _HEAD_SHARE:
            place = self._random.randrange(_HEAD)
        else:
            place = self._random.randint(0, limit)
            found = _NOT_ZERO.search(data, place)
            place = found.start() if found else place
        return min(place // width * width, limit)

    def _flip(self, data: bytearray) -> None:
        data[self._place(data, 1)] ^= 1 << self._random.randrange(8)

    def _field(self, data: bytearray) -> None:
        width = self._random.choice(_WIDTHS)
        place = self._place(data, width)
        order: Literal["big", "little"] = "big" if self._random.random() < 0.5 else "little"
        old = int.from_bytes(data[place : place + width], order)
        value = self._value(old, width, len(data)) % (1 << 8 * width)
        data[place : place + width] = value.to_bytes(width, order)

    def _value(self, old: int, width: int, length: int) -> int:
        pick, bits = self._random, 8 * width
        power = 1 << pick.randrange(bits)
        return pick.choice(
            (
                0, 1, -1, power, power - 1, power + 1, -power, 1 << bits - 1, (1 << bits - 1) - 1,
                old + 1, old - 1, old ^ power, old ^ power, old | 1 << bits - 1, -old, old * 2,
                old // 2, old + 512, old - 512, length, length - 1, length // 512, length // 65536,
                pick.randrange(length // 512 + 2) * 512,
                pick.randrange(length // 512 + 2) * 512 | 1 << bits - 1,
                pick.randrange(length // 512 + 2), pick.getrandbits(bits),
            )
        )  # fmt: skip

    def _swap(self, data: bytearray) -> None:
        width = self._random.choice(_WIDTHS[2:])
        one, other = self._place(data, width), self._place(data, width)
        first, second = bytes(data[one : one + width]), bytes(data[other : other + width])
        data[one : one + len(second)] = second
        data[other : other + len(first)] = first

    def _copy(self, data: bytearray) -> None:
        """Copy an entry, a table or a cluster over another one."""
        width = self._random.choice((8, 8, 8, 64, 512))
        source, target = self._place(data, width), self._place(data, width)
        part = bytes(data[source : source + width])
        for _ in range(self._random.choice((1, 1, 2, 16))):
            data[target : target + len(part)] = part
            target += len(part)

    def _zero(self, data: bytearray) -> None:
        width = self._random.choice((8, 64, 512))
        place = self._place(data, width)
        fill = self._random.choice((b"\0", b"\xff"))
        data[place : place + width] = fill * len(data[place : place + width])

    def _length(self, data: bytearray) -> None:
        if self._random.random() < 0.7:
            del data[self._random.randint(0, len(data)) :]
        else:
            data += bytes(self._random.choice((1, 511, 512, 65536)))

    def _splice(self, data: bytearray) -> None:
        """Put a part of another image in place of one's own."""
        other = self._random.choice(self._images)
        start = self._random.randint(0, len(other) // 512) * 512
        length = self._random.choice((64, 512, 4096))
        data[start : start + length] = other[start : start + length]
