"""How spans of a disk get into a new image: moved from file to file, or read and written."""

from __future__ import annotations

import errno
import os
from typing import Protocol

from storaged.formats.disk import Disk, Kind, Stretch
from storaged.formats.gather import gather
from storaged.formats.handle import Handle
from storaged.formats.move import PIECE, UNIT, Means, Mover, Pace, Sharing, data_runs, read
from storaged.formats.spans import Span, within
from storaged.formats.writer import Place, Writer

#: Shorter pieces are read together: that is cheaper than a copy by the kernel for each.
_WORTH_COPYING = 64 << 10
#: Units that are claimed at a time: longer tables would keep a cancel waiting.
_MAX_UNITS = 1 << 20


class Progress(Protocol):
    """What is told of how far the work is; each call may raise to stop it."""

    def moved(self, length: int) -> None:
        """Count bytes of data."""
        ...

    def reach(self, offset: int) -> None:
        """Tell that all of the disk before *offset* is done."""
        ...


class Filler:
    """Gives spans, in order, to a writer.

    :param zeros: whether spans that read as zeros have to be given.
    :param detect: whether to leave out zeros that are found where data are read.
    """

    def __init__(
        self, source: Handle, writer: Writer, progress: Progress, *,
        sharing: Sharing, zeros: bool, detect: bool,
    ) -> None:  # fmt: skip
        self._source = source
        self._writer = writer
        self._progress = progress
        self._required = sharing is Sharing.REQUIRED
        self._never = sharing is Sharing.NEVER
        self._zeros = zeros
        self._detect = detect
        #: whether zeros among data that are written can be left out
        self._skip = detect and writer.blank
        #: the least that is worth a call, of whole units
        self._window = max(PIECE, writer.unit)
        self._most = writer.unit * _MAX_UNITS
        #: whether leaving out units leaves out all zeros that are worth it
        self._fine = writer.unit <= UNIT
        #: whether the writer has room for plain data, as far as is known, and where
        self._plain = True
        self._target: Handle | None = None
        self.mover = Mover(sharing, progress.moved)
        #: bytes that the writer took by `Writer.write`
        self.written = 0

    def fill(self, span: Span) -> None:
        """Give a span to the writer.

        :raise OSError: as in `storaged.formats.convert.convert`.
        """
        if not span.pieces:
            self._zero(span)
        elif span.moves:
            self._move(span)
        else:
            self._read(span)
        self._progress.reach(span.end)

    def movable(self, piece: Stretch) -> bool:
        """Tell whether data are to be moved from file to file, as far as is known by now."""
        if self._required:
            return True  # whatever cannot be shared is an error, found when it is moved
        if piece.file is None or not self._plain:
            return False
        if self._target is None:
            return not self._never and piece.file.fileno() is not None
        means = self.mover.route(piece.file, self._target).means
        return means is Means.SHARE or (means is Means.KERNEL and piece.length >= _WORTH_COPYING)

    def _zero(self, span: Span) -> None:
        for start, length in Pace(least=self._window).pieces(span.offset, span.end):
            self._writer.zero(start, length)
            self._progress.reach(start + length)

    def _move(self, span: Span) -> None:
        offset, pieces = span.offset, span.pieces
        while offset < span.end:
            movable, tried = self._outlook(pieces)
            if not movable:
                self._read(Span(offset, span.end, pieces, moves=False))
                return
            # A first unit shows what the kernel does with files that nothing is known of.
            length = min(span.end - offset, self._most if tried else self._writer.unit)
            place = self._writer.place(offset, length)
            if place is None:
                self._plain = False
                self._refuse()
                continue
            self._target = place.file
            end = offset + place.length
            if end < span.end:
                self._fill(place, offset, within(pieces, offset, end))
                pieces = within(pieces, end, span.end)
            else:
                self._fill(place, offset, pieces)
            offset = end

    def _outlook(self, pieces: list[Stretch]) -> tuple[bool, bool]:
        """Tell whether any piece is to be moved, and whether it is known how for all of them."""
        return any(map(self.movable, pieces)), all(map(self._tried, pieces))

    def _tried(self, piece: Stretch) -> bool:
        if piece.file is None:
            return True
        return self._target is not None and self.mover.route(piece.file, self._target).tried

    def _fill(self, place: Place, offset: int, pieces: list[Stretch]) -> None:
        """Fill room for the disk's part from *offset* on."""
        delta, end = place.offset - offset, offset + place.length
        for piece in self._joined(pieces, place.file):
            if piece.kind is Kind.ZERO:
                continue
            self._blank(place.file, offset + delta, piece.offset + delta)
            offset = piece.offset + piece.length
            if piece.file is not None:
                route = self.mover.route(piece.file, place.file)
                route.move(piece.host, piece.offset + delta, piece.length, blank=self._skip)
            else:
                self._refuse()
                self._unpack(piece, place.file, delta)
        self._blank(place.file, offset + delta, end + delta)

    def _unpack(self, piece: Stretch, target: Handle, delta: int) -> None:
        """Write what cannot be moved, among pieces that are."""
        end = piece.offset + piece.length
        for offset in range(piece.offset, end, PIECE):
            length = min(PIECE, end - offset)
            data = read(self._source, length, offset, end)
            self.mover.write(target, offset + delta, data, blank=self._skip)
            self._progress.moved(length)

    def _joined(self, pieces: list[Stretch], target: Handle) -> list[Stretch]:
        """Join pieces of a plain file that are to be shared: its holes are shared as well."""
        if len(pieces) < 2 or isinstance(self._source, Disk) or not self._tried(pieces[0]):
            return pieces
        if self.mover.route(self._source, target).means is not Means.SHARE:
            return pieces
        data = [piece for piece in pieces if piece.kind is Kind.DATA]
        if len(data) < 2:
            return pieces
        end = data[-1].offset + data[-1].length
        return [data[0]._replace(length=end - data[0].offset)]

    def _blank(self, target: Handle, start: int, end: int) -> None:
        """Have a part of claimed room read as zeros."""
        if start < end and not self._writer.blank:
            target.write_zeroes(start, end - start)

    def _refuse(self) -> None:
        """Refuse what cannot be shared, where it has to be."""
        if self._required:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _read(self, span: Span) -> None:
        if any(piece.kind is not Kind.ZERO for piece in span.pieces):
            self._refuse()
        pieces = span.pieces
        for start in range(span.offset, span.end, self._window):
            end = min(start + self._window, span.end)
            pieces = within(pieces, start, span.end)
            data = gather(self._source, within(pieces, start, end), start, end)
            if data is not None:
                self._write(data, start)
            elif self._zeros:
                self._writer.zero(start, end - start)
            self._progress.moved(end - start)

    def _write(self, data: bytes | bytearray, start: int) -> None:
        """Give the units of *data* to the writer; leave out those that are zeros."""
        runs = data_runs(data, self._writer.unit) if self._detect else [(0, len(data))]
        reached = 0
        for begin, stop in [*runs, (len(data), len(data))]:
            if self._zeros and reached < begin:
                self._writer.zero(start + reached, begin - reached)
            self._write_run(data if stop - begin == len(data) else data[begin:stop], start + begin)
            reached = stop

    def _write_run(self, data: bytes | bytearray, offset: int) -> None:
        done = 0
        while self._plain and done < len(data):
            place = self._writer.place(offset + done, len(data) - done)
            if place is None:
                self._plain = False
                break
            self._target = place.file
            piece = data[done : done + place.length] if done or place.length < len(data) else data
            self.mover.write(place.file, place.offset, piece, blank=self._skip and not self._fine)
            done += place.length
        unit = self._writer.unit
        for start in range(done, len(data), unit):
            self._writer.write(offset + start, data[start : start + unit])
            self.written += min(unit, len(data) - start)
