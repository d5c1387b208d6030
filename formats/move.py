"""Moving bytes from one file to another by the cheapest way that the two of them allow.

Sharing (a reflink) takes no time and no space; copy_file_range stays in the kernel, or on the
server; reading and writing works everywhere. What reads as zeros is left out where it is read.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from storaged.formats import syscalls
from storaged.formats.file import FileHandle
from storaged.formats.handle import Checkpoint, Handle

#: Bytes between two signs of life, in the kernel and by hand.
_KERNEL_PIECE = 4 << 20
PIECE = 1 << 20
#: Where the speed is not known beforehand: the first piece, the shortest and the longest one.
_PACE = (16 << 20, 1 << 20, 1 << 62)
#: Seconds that such a piece shall take.
_BRIEF, _LONG = 0.01, 0.03
#: What is all zeros in units of this many bytes is left out: a block of most file systems.
UNIT = 4096
_ZEROS = bytes(UNIT)
#: What ``st_blocks`` counts, in bytes.
_SECTOR = 512
#: A block larger than this is a network file system's transfer size, nothing to align to.
_MAX_BLOCK = 1 << 16
#: How the kernel says that these two files do not go together.
_REFUSALS = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)  # fmt: skip
#: ... and that it does not know the request at all.
_NO_SHARING = _REFUSALS | {errno.ENOTTY, errno.EBADF, errno.EISDIR}


class Sharing(StrEnum):
    """Whether data may lie in the source and in the target at once (a reflink)."""

    #: where that is possible
    AUTO = "auto"
    #: nothing is made that does not share its data
    REQUIRED = "required"
    #: the bytes are read and written, so that the target has its own
    NEVER = "never"


class Means(IntEnum):
    """How bytes get from one file to another; the cheapest is the highest."""

    HAND = 0
    KERNEL = 1
    SHARE = 2


class Pace:
    """Cuts work of unknown speed into pieces that take some 20 ms each."""

    def __init__(self, first: int = _PACE[0], least: int = _PACE[1], most: int = _PACE[2]) -> None:
        self._length, self._least, self._most = first, least, most

    def pieces(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length); the work on a piece is done before the next is asked for."""
        while offset < end:
            length = min(self._length, end - offset)
            began = time.monotonic()
            yield offset, length
            took = time.monotonic() - began
            offset += length
            if took < _BRIEF:
                self._length = min(self._length * 2, self._most)
            elif took > _LONG:
                self._length = max(self._length // 2, self._least)


class Mover:
    """Moves stretches between files, and counts which way they took.

    :param moved: called with the bytes of each piece that was moved; stops the work by raising.
    """

    def __init__(self, sharing: Sharing, moved: Callable[[int], object]) -> None:
        self.sharing = sharing
        self.moved = moved
        self.pace = Pace()
        #: bytes that were shared, copied by the kernel or a server, and written
        self.shared = self.copied = self.written = 0
        self._routes: dict[tuple[int, int], Route] = {}
        self._last: Route | None = None

    def route(self, source: Handle, target: Handle) -> Route:
        """Return the way from one file to another, which knows what was refused there."""
        route = self._last  # nearly always it is the same as before
        if route is None or route.source is not source or route.target is not target:
            key = id(source), id(target)
            route = self._routes.get(key)
            if route is None:
                route = self._routes[key] = Route(self, source, target)
            self._last = route
        return route

    def write(self, target: Handle, to: int, data: bytes | bytearray, *, blank: bool) -> None:
        """Write *data*, without their zeros if *blank*."""
        runs = data_runs(data) if blank else [(0, len(data))]
        with memoryview(data) as view:
            for start, stop in runs:
                target.pwrite(view[start:stop], to + start)
                self.written += stop - start


class Route:
    """The way from one file to another, which must stay open; made by `Mover.route`."""

    def __init__(self, mover: Mover, source: Handle, target: Handle) -> None:
        reader, writer = source.fileno(), target.fileno()
        self._mover = mover
        self.source, self.target = source, target
        self._reader = -1 if reader is None else reader
        self._writer = -1 if writer is None else writer
        #: of the target's file system, in bytes; 0 as long as nobody has asked
        self._block = 0
        self._sparse: bool | None = None
        #: the cheapest means that was not refused yet
        self.means = Means.HAND
        if reader is not None and writer is not None and mover.sharing is not Sharing.NEVER:
            self.means = Means.SHARE
        #: whether `means` is more than a hope
        self.tried = self.means is Means.HAND

    def move(self, start: int, to: int, length: int, *, blank: bool = True) -> None:
        """Move *length* bytes from *start* of the source to *to* of the target.

        :param blank: the target reads as zeros there, so that zeros need not be written.
        :raise OSError: EIO if the source ends before; where all has to be shared, what the kernel
            said to that, or EOPNOTSUPP.
        """
        done = 0
        if self.means is Means.SHARE:
            done = self._share(start, to, length)
        elif self._mover.sharing is Sharing.REQUIRED:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if done < length and self.means is not Means.HAND:
            done = self._copy_parts(start, to, done, length, blank=blank)
        while done < length:
            piece = min(PIECE, length - done)
            data = read(self.source, piece, start + done, start + length)
            self._mover.write(self.target, to + done, data, blank=blank)
            done += piece
            self._mover.moved(piece)
        self.tried = True

    def _share(self, start: int, to: int, length: int) -> int:
        """Return how many bytes are shared; a rest that is shorter than a block is not."""
        if (start | to | length) % _MAX_BLOCK:
            block = self._block or self._ask_block()
            if (start | to) % block:
                if self._mover.sharing is Sharing.REQUIRED:
                    raise OSError(errno.EINVAL, f"data at {start} are not aligned to {block}")
                return 0
            if length % block and not self._ends(start + length, to + length):
                length -= length % block
        for offset, piece in self._mover.pace.pieces(0, length):
            try:
                syscalls.ficlonerange(
                    self._writer, to + offset, self._reader, start + offset, piece
                )
            except OSError as err:
                if err.errno not in _NO_SHARING or self._mover.sharing is Sharing.REQUIRED:
                    raise
                self.means = Means.KERNEL
                return offset
            self._mover.shared += piece
            self._mover.moved(piece)
        return length

    def _ask_block(self) -> int:
        """Return what has to be aligned to. The answer of XFS may take it milliseconds."""
        block = os.fstatvfs(self._writer).f_bsize
        self._block = block if 0 < block <= _MAX_BLOCK else UNIT
        return self._block

    def _ends(self, end: int, to: int) -> bool:
        """Tell whether a stretch can be shared up to where its file ends, in the midst of a block.

        The target must not reach further: the rest of the block would be lost.
        """
        return os.fstat(self._reader).st_size == end and os.fstat(self._writer).st_size <= to

    def _copy_parts(self, start: int, to: int, done: int, length: int, *, blank: bool) -> int:
        """Return how far it came: *length*, or where the rest is to be copied by hand.

        The kernel would fill the source's holes with zeros: an image with preallocated metadata
        would take its whole size. They are left out where the target reads as zeros.
        """
        if not (blank and self._has_holes()):
            return self._copy(start, to, done, length)
        for part in self.source.map(start + done, length - done):
            end = part.offset + part.length - start
            if part.data:
                done = self._copy(start, to, done, end)
                if done < end:
                    break
            else:
                done = end
                self._mover.moved(part.length)
        return done

    def _has_holes(self) -> bool:
        """Tell whether the source takes less space than its length, as it was found first."""
        if self._sparse is None:
            status = os.fstat(self._reader)
            self._sparse = status.st_blocks * _SECTOR < status.st_size
        return self._sparse

    def _copy(self, start: int, to: int, done: int, end: int) -> int:
        """Return how far it came: *end*, or where the rest is to be copied by hand."""
        while done < end:
            piece = min(_KERNEL_PIECE, end - done)
            try:
                piece = os.copy_file_range(
                    self._reader, self._writer, piece, start + done, to + done
                )
            except OSError as err:
                if err.errno not in _REFUSALS:
                    raise
                self.means = Means.HAND
                return done
            if not piece:
                return done
            done += piece
            self._mover.copied += piece
            self._mover.moved(piece)
        return done


@dataclass(slots=True)
class _Progress:
    """Bytes of data moved, held below the total that the source's record promised."""

    total: int
    checkpoint: Checkpoint
    done: int = 0

    def add(self, length: int) -> None:
        self.done += length
        self.checkpoint(min(self.done, self.total), self.total)


def share(target: int, source: Handle, *, follow: bool) -> None:
    """Make an empty file share all data of *source*.

    :param follow: take over whether the source is copied on write: btrfs shares nothing between
        two files that differ in it.
    :raise OSError: that is not possible here; the file is still empty.
    """
    fd = source.fileno()
    if fd is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if follow:
        with suppress(OSError):
            syscalls.set_nocow(target, nocow=syscalls.is_nocow(fd))
    syscalls.ficlone(target, fd)


def copy(target: FileHandle, source: Handle, total: int, checkpoint: Checkpoint) -> None:
    """Copy *source* into a file that reads as zeros, and give it the same length.

    :param total: bytes of data there are about, for the progress.
    :raise OSError: reading or writing failed; EIO if the source became shorter meanwhile.
    """
    size = source.size()
    target.truncate(max(size, target.size()))
    progress = _Progress(total, checkpoint)
    route = Mover(Sharing.AUTO, progress.add).route(source, target)
    checkpoint(0, total)
    for extent in source.map(0, size):
        if extent.data:
            route.move(extent.offset, extent.offset, extent.length)
        else:
            progress.add(0)


def read(source: Handle, length: int, offset: int, end: int) -> bytes:
    """Return *length* bytes from *offset* of a source that has *end* bytes at least.

    :raise OSError: EIO if it ends before.
    """
    data = source.pread(length, offset)
    if len(data) < length:
        raise OSError(errno.EIO, f"the source ends at {offset + len(data)} instead of {end}")
    return data


def data_runs(data: bytes | bytearray, unit: int = UNIT) -> list[tuple[int, int]]:
    """Return the stretches of *data* that are not zeros, in whole units, joined."""
    zeros = _ZEROS if unit == UNIT else bytes(unit)
    length = len(data)
    whole = length - length % unit
    runs: list[tuple[int, int]] = []
    begin = -1
    for start in range(0, whole, unit):
        if data.startswith(zeros, start):
            if begin >= 0:
                runs.append((begin, start))
                begin = -1
        elif begin < 0:
            begin = start
    if whole < length and not data.startswith(zeros[: length - whole], whole):
        runs.append((begin if begin >= 0 else whole, length))
    elif begin >= 0:
        runs.append((begin, whole))
    return runs
