"""Bounded reads anywhere in an untrusted image, for what looks further than a prober may."""

from __future__ import annotations

from typing import TypeVar

from storaged.formats.errors import CorruptImage
from storaged.formats.handle import Handle
from storaged.formats.record import Record

R = TypeVar("R", bound=Record)

#: What is read of one image at most, in bytes.
BUDGET = 960 << 10


class Reader:
    """Reads of an image that are whole or fail, and that come to an end."""

    __slots__ = ("_budget", "_handle", "size")

    def __init__(self, handle: Handle, budget: int = BUDGET) -> None:
        self._handle = handle
        self._budget = budget
        self.size = handle.size()

    def at(self, offset: int, length: int, what: str) -> bytes:
        """Return exactly *length* bytes from *offset*.

        :param what: their name, for the error.
        :raise CorruptImage: the file ends before, or too much was read already.
        """
        if offset < 0 or offset + length > self.size:
            raise CorruptImage(f"{what} at {offset} is not within the file")
        self._spend(length, what)
        data = self._handle.pread(length, offset)
        if len(data) < length:
            raise CorruptImage(f"{what} at {offset} is not within the file")
        return data

    def pread(self, length: int, offset: int) -> bytes:
        """Return what is there of *length* bytes from *offset*: what a `Window` asks for.

        :raise CorruptImage: too much was read already.
        """
        length = min(length, self.size - offset)
        if offset < 0 or length <= 0:
            return b""
        self._spend(length, "what is looked at")
        return self._handle.pread(length, offset)

    def record(self, kind: type[R], offset: int, what: str) -> R:
        """Return the record at *offset*.

        :raise CorruptImage: see `at`.
        """
        return kind.unpack(self.at(offset, kind.length(), what))

    def _spend(self, length: int, what: str) -> None:
        if length > self._budget:
            raise CorruptImage(f"{what} of {length} bytes is too long")
        self._budget -= length
