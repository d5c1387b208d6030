"""An rbd image as a `Handle`: its bytes cross from the process with librbd in shared memory.

Data go in pieces of the size of most images' objects. Reads that follow each other are begun ahead,
writes go on behind: an error of one is raised by a later call, at the latest by `flush`.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from storaged.backends._rbdlink import Link
from storaged.errors import StorageError, Timeout
from storaged.formats.handle import Bytes, Extent, Handle
from storaged.isolate import Reply, ServiceError, Session

#: Bytes of a piece, and how many of them are under way at once.
PIECE: Final = 4 << 20
PIECES: Final = 16
#: What is given up or looked through in one call, and what is written in one, in bytes.
_WINDOW: Final = 1 << 30
_WRITTEN: Final = 64 << 20


class RbdHandle(Handle):
    """An image; it is opened when its bytes are first asked for.

    :param volume: its name.
    :param id: what it must still be; "": any.
    :param alone: not if another client has it open for writing.
    """

    def __init__(
        self, link: Link, volume: str, id: str, *, writable: bool = False, alone: bool = False
    ) -> None:
        self.link = link
        self.volume = volume
        self.id = id
        self._writable = writable
        self._alone = alone
        self._session: Session | None = None
        self._number = 0
        self._size = 0
        self._memory: mmap.mmap | None = None
        self._free = list(range(PIECES))
        #: writes under way, the oldest first: place of their bytes, where they begin and end
        self._writes: deque[tuple[Reply, int, int, int]] = deque()
        #: a piece that is being gathered: its place, where it begins and where it ends so far
        self._gathered: tuple[int, int, int] | None = None
        #: pieces that were read, or are: their reply, place and length, by their offset
        self._reads: dict[int, tuple[Reply, int, int]] = {}
        self._next = 0
        #: how many pieces are read ahead; it grows as long as reads follow each other
        self._ahead = 1

    def open(self) -> None:
        """Open the image now.

        :raise NoSuchVolume: it has gone, or is another one by now.
        :raise VolumeBusy: another client writes to it, and that was asked not to be.
        :raise StorageError: it cannot be opened.
        """
        if self._session is not None:
            return
        link = self.link
        session = link.session()
        words = {
            "name": self.volume,
            "id": self.id,
            "writable": self._writable,
            "alone": self._alone,
        }
        fd = os.memfd_create("rbd", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, PIECE * PIECES)
            memory = mmap.mmap(fd, PIECE * PIECES)
            try:
                doing = f"failed to open the RBD image '{self.volume}'"
                with link.translated(doing, self.volume):
                    found = session.begin("open", words, fd).take(link.timeout)
            except BaseException:
                memory.close()
                raise
        finally:
            os.close(fd)
        self._memory = memory
        self._number, self._size, _ = found
        self._session = session

    def size(self) -> int:
        self.open()
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        self._settle()
        length = max(min(length, self._size - offset), 0)
        follows = offset == self._next
        self._next = offset + length
        if length <= 0:
            return b""
        if not follows:
            self._ahead = 1
        if not follows and length < PIECE:
            return self._take(self._begin_read(offset, length))
        parts = []
        at, end = offset, offset + length
        while at < end:
            start = at - at % PIECE
            self._read_ahead(start)
            reply, place, size = self._reads[start]
            upto = min(end, start + self._wait(reply))
            if upto <= at:
                break  # another client has made it smaller
            parts.append(self._bytes(place, at - start, upto - at))
            at = upto
            if at == start + size:
                del self._reads[start]
                self._free.append(place)
                self._ahead = min(2 * self._ahead, PIECES // 2)
        return b"".join(parts)

    def pwrite(self, data: Bytes, offset: int) -> None:
        self.open()
        self._forget_reads()
        view = memoryview(data).cast("B")
        if offset + len(view) > self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert self._memory is not None  # noqa: S101 -- it is open
        while view:
            if self._gathered is not None and self._gathered[2] != offset:
                self._write_gathered()
            if self._gathered is None:
                self._gathered = (self._room(), offset, offset)
            place, start, end = self._gathered
            taken = min(len(view), PIECE - end % PIECE)
            where = place * PIECE + end - start
            self._memory[where : where + taken] = view[:taken]
            self._gathered = (place, start, end + taken)
            view, offset = view[taken:], offset + taken
            if offset % PIECE == 0:
                self._write_gathered()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        if unmap:
            self._in_windows("zero", offset, length, _WINDOW, thick=False)
        else:
            self._in_windows("zero", offset, length, _WRITTEN, thick=True)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        self._settle()
        end = min(offset + length, self._size)
        while offset < end:
            upto = min(end, offset - offset % _WINDOW + _WINDOW)
            for start, size in self._ask("extents", offset=offset, length=upto - offset):
                if start > offset:
                    yield Extent(offset, start - offset, False)
                yield Extent(start, size, True)
                offset = start + size
            if offset < upto:
                yield Extent(offset, upto - offset, False)
            offset = upto

    def truncate(self, size: int) -> None:
        self._settle()
        self._forget_reads()
        self._ask("truncate", size=size)
        self._size = size

    def flush(self) -> None:
        self._settle()
        self._ask("flush")

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        """Let go of the image; what was written without a `flush` may be lost then."""
        session = self._session
        if session is None:
            return
        with suppress(OSError, StorageError):  # whoever cares has called flush
            self._write_gathered()
            for reply, *_ in self._writes:
                self._wait(reply)
        self._session = None
        with suppress(OSError, StorageError):
            closing = session.begin("close", {"handle": self._number})
            if self._writable:  # as long as it is open nobody can remove it
                self._wait(closing)
        assert self._memory is not None  # noqa: S101 -- it was open
        self._memory.close()

    def _settle(self) -> None:
        """Open the image, and wait for all writes."""
        self.open()
        self._write_gathered()
        while self._writes:
            self._end_write()

    def _in_windows(self, verb: str, offset: int, length: int, window: int, **words: Any) -> None:
        self._settle()
        self._forget_reads()
        end = offset + length
        if end > self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while offset < end:
            size = min(end - offset, window)
            self._ask(verb, offset=offset, length=size, **words)
            offset += size

    def _ask(self, verb: str, **words: Any) -> Any:
        return self._wait(self._begin(verb, **words))

    def _begin(self, verb: str, **words: Any) -> Reply:
        assert self._session is not None  # noqa: S101 -- it is open
        return self._session.begin(verb, {"handle": self._number, **words})

    def _wait(self, reply: Reply) -> Any:
        with _as_os_errors():
            return reply.take(self.link.timeout)

    # Writing behind

    def _write_gathered(self) -> None:
        if self._gathered is None:
            return
        (place, start, end), self._gathered = self._gathered, None
        try:
            # what is under way at once comes to its end in any order
            while any(start < upto and at < end for _, _, at, upto in self._writes):
                self._end_write()
            words = {"offset": start, "length": end - start, "place": place * PIECE}
            self._writes.append((self._begin("write", **words), place, start, end))
        except BaseException:
            self._free.append(place)
            raise

    def _end_write(self) -> None:
        reply, place, _, _ = self._writes.popleft()
        try:
            self._wait(reply)
        finally:
            self._give_back(place, reply)

    def _give_back(self, place: int, reply: Reply) -> None:
        """Let a place be used again, unless the other process may still use it."""
        if reply.ended:
            self._free.append(place)

    def _room(self) -> int:
        """Return a free place in the memory, waiting for the oldest write if need be."""
        while not self._free:
            self._end_write()
        return self._free.pop()

    # Reading ahead

    def _read_ahead(self, start: int) -> None:
        """See to it that a piece is being read, and some of those behind it."""
        end = start + self._ahead * PIECE
        for other in [at for at in self._reads if not start <= at < end]:
            self._forget_read(other)
        for at in range(start, min(end, self._size), PIECE):
            if at in self._reads:
                continue
            if not self._free:
                break
            self._reads[at] = self._begin_read(at, min(PIECE, self._size - at))

    def _begin_read(self, offset: int, length: int) -> tuple[Reply, int, int]:
        if not self._free:
            self._forget_reads()
        place = self._free.pop()
        reply = self._begin("read", offset=offset, length=length, place=place * PIECE)
        return reply, place, length

    def _take(self, read: tuple[Reply, int, int]) -> bytes:
        reply, place, _ = read
        try:
            return self._bytes(place, 0, self._wait(reply))
        finally:
            self._give_back(place, reply)

    def _bytes(self, place: int, start: int, length: int) -> bytes:
        assert self._memory is not None  # noqa: S101 -- it is open
        at = place * PIECE + start
        return self._memory[at : at + length]

    def _forget_read(self, start: int) -> None:
        reply, place, _ = self._reads.pop(start)
        with suppress(OSError):
            self._wait(reply)  # until then its place is not free
        self._give_back(place, reply)

    def _forget_reads(self) -> None:
        for start in list(self._reads):
            self._forget_read(start)


class _as_os_errors:  # noqa: N801 -- used like a function
    """Translate what the other process says of an image into the system's errors."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, ServiceError):
            number = err.errno or errno.EIO
            raise OSError(number, os.strerror(number)) from err
        if isinstance(err, Timeout):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from err
