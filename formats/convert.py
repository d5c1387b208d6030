"""One engine that fills a new image of any format with the content of a disk of any format.

It walks over the source's stretches once, in order, claims room in the new image for the units that
hold data, and moves these in the cheapest way: shared where both lie on one file system that can
do so, else copied by the kernel, else read and written, without what turns out to be zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from storaged.formats.disk import Disk, Kind, Stretch, stretches_of
from storaged.formats.filling import Filler
from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.move import Pace, Sharing
from storaged.formats.spans import Cutter
from storaged.formats.writer import Writer

__all__ = ["Moved", "Sharing", "convert"]

#: The source is asked for its stretches in windows: the first, and the shortest.
_WINDOW = (1 << 30, 1 << 28)
#: Stretches between two signs of life where there is nothing to move.
_MANY = 256


@dataclass(frozen=True, slots=True)
class Moved:
    """How many bytes took which way.

    :param shared: lie in the source and in the new image at once.
    :param copied: were copied by the kernel, or by a file server.
    :param written: were read and written.
    """

    shared: int
    copied: int
    written: int


def convert(
    source: Handle,
    writer: Writer,
    *,
    size: int | None = None,
    chain: bool = True,
    sharing: Sharing = Sharing.AUTO,
    detect_zeros: bool = True,
    total: int = 0,
    checkpoint: Checkpoint | None = None,
) -> Moved:
    """Fill a new image with the content of *source*.

    Nothing is flushed. After an error the new image is of no use, and no thread is left behind.

    :param size: the new disk's size in bytes, if it is not the source's: what is cut off is not
        looked at, what is added reads as zeros.
    :param chain: False takes the source's top layer alone. What it leaves to its backing image is
        left to the new image's.
    :param sharing: with REQUIRED, only the rest of a stretch that is shorter than a block of the
        file system is copied.
    :param detect_zeros: leave out what turns out to be zeros where data are read. What is shared or
        copied by the kernel is not looked at.
    :param total: bytes of data there are about, for the progress; 0: the progress is the place on
        the disk.
    :param checkpoint: called with bytes done and their total, also where nothing is moved.
    :raise OSError: reading or writing failed; EIO if the source becomes shorter meanwhile; with
        REQUIRED what the kernel says where it cannot share, EOPNOTSUPP where there is nothing to
        share with.
    :raise FormatError: the source contradicts itself, or the new image would exceed a limit.
    """
    size = source.size() if size is None else size
    progress = _Progress(checkpoint, size, total)
    zeros = writer.needs_zeros or not chain
    filler = Filler(source, writer, progress, sharing=sharing, zeros=zeros, detect=detect_zeros)
    cutter = Cutter(writer.unit, size, zeros=zeros, absent=not chain, movable=filler.movable)
    try:
        for span in cutter.cut(_stretches(source, size, progress, chain=chain)):
            filler.fill(span)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    progress.finish()
    mover = filler.mover
    return Moved(mover.shared, mover.copied, mover.written + filler.written)


class _Progress:
    """Calls a checkpoint with figures that never go back.

    They count bytes of data where their total is known, else they are the place on the disk.
    """

    def __init__(self, checkpoint: Checkpoint | None, size: int, total: int) -> None:
        self._checkpoint = checkpoint
        self._by_place = total <= 0
        self._total = size if self._by_place else total
        self._done = 0
        self._moved = 0

    def moved(self, length: int) -> None:
        """Count data."""
        self._moved += length
        self._advance(self._moved)

    def reach(self, offset: int) -> None:
        """Tell that all before *offset* is done."""
        if self._by_place:
            self._moved = max(self._moved, offset)
        self._advance(self._moved)

    def finish(self) -> None:
        """Tell that all is done."""
        self._advance(self._total)

    def _advance(self, done: int) -> None:
        if self._checkpoint is not None:
            self._done = max(self._done, min(done, self._total))
            self._checkpoint(self._done, self._total)


def _stretches(source: Handle, size: int, progress: _Progress, *, chain: bool) -> Iterator[Stretch]:
    """Yield what a new disk of *size* bytes consists of: the source's stretches, then zeros."""
    length = source.size()
    lengths: dict[int, int] = {}
    decoded = isinstance(source, Disk)
    progress.reach(0)
    for offset, window in Pace(*_WINDOW).pieces(0, min(length, size)):
        found = stretches_of(source, offset, window, chain=chain)
        for number, stretch in enumerate(found):
            if number % _MANY == 0:
                progress.reach(0)
            if decoded and stretch.file is not None:
                yield from _present(stretch, stretch.file, lengths)
            else:
                yield stretch
        progress.reach(0)
    if length < size:
        yield Stretch(length, size - length, Kind.ZERO)


def _present(stretch: Stretch, file: Handle, lengths: dict[int, int]) -> Iterator[Stretch]:
    """Yield data as far as their file goes: a disk reads as zeros from there on.

    :param lengths: of the files as they were found first, by identity.
    """
    length = lengths.get(id(file))
    if length is None:
        length = lengths[id(file)] = file.size()
    there = length - stretch.host
    if there >= stretch.length:
        yield stretch
        return
    there = max(there, 0)
    if there:
        yield stretch._replace(length=there)
    yield Stretch(stretch.offset + there, stretch.length - there, Kind.ZERO, stretch.depth)
