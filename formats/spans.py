"""How a disk's content is cut into spans of whole units for a new image.

A unit is what the new image's tables count in. One that holds any data is written as a whole, so
the stretches of a disk, whose borders lie anywhere, have to be put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from storaged.formats.disk import Kind, Stretch

#: Pieces of a span: it ends where it has more, so that memory stays bounded.
_MAX_PIECES = 1024


class Span(NamedTuple):
    """Whole units, or up to where the disk ends.

    :param pieces: what has to be looked at: data; and where units are shared, parts that read as
        zeros (ZERO) or as the backing image's data (ABSENT). What lies between reads as zeros.
        Empty: all of it reads as zeros.
    :param moves: whether at least one piece is to be moved from file to file; otherwise all are to
        be read.
    """

    offset: int
    end: int
    pieces: list[Stretch]
    moves: bool


class Cutter:
    """Puts stretches together to spans.

    :param unit: in bytes, a power of two.
    :param size: where the new disk ends.
    :param zeros: whether what reads as zeros matters; otherwise it is left out.
    :param absent: whether ABSENT is left to a backing image; otherwise it reads as zeros.
    :param movable: tells whether a stretch of data is to be moved and not read.
    """

    def __init__(
        self, unit: int, size: int, *,
        zeros: bool, absent: bool, movable: Callable[[Stretch], bool],
    ) -> None:  # fmt: skip
        self._unit = unit
        self._size = size
        self._zeros = zeros
        self._absent = absent
        self._movable = movable
        self._pieces: list[Stretch] = []
        self._moves = False
        #: where the units of the pieces begin and end
        self._start = self._end = 0

    def cut(self, stretches: Iterable[Stretch]) -> Iterator[Span]:
        """Yield the spans of stretches that come in order and without gaps."""
        for stretch in stretches:
            if stretch.kind.data:
                yield from self._add(stretch, moves=self._movable(stretch))
            elif self._zeros:
                yield from self._add_empty(stretch)
        yield from self._flush()

    def _add_empty(self, stretch: Stretch) -> Iterator[Span]:
        """Add the ends that share their unit with something else; the rest is a span or nothing."""
        absent = stretch.kind is Kind.ABSENT and self._absent
        if not absent and stretch.kind is not Kind.ZERO:
            stretch = stretch._replace(kind=Kind.ZERO)
        start, end = stretch.offset, stretch.offset + stretch.length
        first = -(-start // self._unit) * self._unit
        last = end if end == self._size else end // self._unit * self._unit
        if first >= last:
            yield from self._add(stretch, moves=False)
            return
        if start < first:
            yield from self._add(part(stretch, start, first), moves=False)
        yield from self._flush()
        if not absent:
            yield Span(first, last, [], moves=False)
        if last < end:
            yield from self._add(part(stretch, last, end), moves=False)

    def _add(self, piece: Stretch, *, moves: bool) -> Iterator[Span]:
        first = piece.offset - piece.offset % self._unit
        if self._pieces and first > self._start:
            gap = first > self._end
            other = moves is not self._moves and piece.kind.data
            if gap or other or len(self._pieces) >= _MAX_PIECES:
                yield from self._flush(first)
        if not self._pieces:
            self._start = first
        self._pieces.append(piece)
        self._moves = self._moves or moves
        self._end = self._rounded(piece.offset + piece.length)

    def _flush(self, limit: int | None = None) -> Iterator[Span]:
        """Yield the span that is open as far as *limit*, the start of a unit; keep the rest."""
        if not self._pieces:
            return
        pieces, moves, start, end = self._pieces, self._moves, self._start, self._end
        self._pieces, self._moves = [], False
        if limit is not None and limit < end:
            self._pieces = within(pieces, limit, end)
            self._moves = any(self._movable(piece) for piece in self._pieces if piece.kind.data)
            self._start = limit
            pieces, end = within(pieces, start, limit), limit
        yield Span(start, end, pieces, moves)

    def _rounded(self, end: int) -> int:
        return min(-(-end // self._unit) * self._unit, self._size)


def part(stretch: Stretch, start: int, end: int) -> Stretch:
    """Return what lies of a stretch from *start* to *end*, which it holds at least a part of."""
    first = max(start, stretch.offset)
    last = min(end, stretch.offset + stretch.length)
    if first == stretch.offset and last == first + stretch.length:
        return stretch
    host = stretch.host + first - stretch.offset if stretch.kind is Kind.DATA else stretch.host
    return stretch._replace(offset=first, length=last - first, host=host)


def within(pieces: Iterable[Stretch], start: int, end: int) -> list[Stretch]:
    """Return the parts of *pieces* that lie from *start* to *end*."""
    return [
        part(piece, start, end)
        for piece in pieces
        if piece.offset < end and piece.offset + piece.length > start
    ]
