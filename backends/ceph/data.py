"""The bytes of images: they cross in memory that both processes have, in pieces of one size."""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress
from typing import Any

from storaged.backends.ceph.changes import Changes
from storaged.backends.ceph.connection import Connection

#: Write zeros also where there is nothing, and keep what is there.
_THICK = 1


class Opened:
    """One open image, and the memory that its bytes cross in.

    :param fd: of that memory; it stays the request's, which closes it.
    """

    def __init__(self, image: Any, fd: int | None) -> None:
        self.image = image
        self._lock = threading.Lock()
        #: those who work with it, and its owner, as long as that one has not closed it
        self._users = 1
        self._memory: mmap.mmap | None = None
        if fd is not None:
            self._memory = mmap.mmap(fd, os.fstat(fd).st_size)

    @property
    def bytes(self) -> mmap.mmap:
        """The memory.

        :raise ValueError: there is none.
        """
        if self._memory is None:
            raise ValueError("the image was opened without memory")
        return self._memory

    def __enter__(self) -> Any:
        with self._lock:
            if not self._users:
                raise ValueError("the image was closed")
            self._users += 1
        return self.image

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of both, when nobody works with them any more."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self.image.close()
        if self._memory is not None:
            self._memory.close()


class Data:
    """The open images of one connection, by number."""

    def __init__(self, connection: Connection, changes: Changes) -> None:
        self._rbd = connection.rbd
        self._ioctx = connection.ioctx
        self._changes = changes
        self._lock = threading.Lock()
        self._numbers = 0
        self._opened: dict[int, Opened] = {}

    def open(
        self, name: str, number: str, fd: int | None, *, writable: bool, alone: bool
    ) -> list[int]:
        """Open an image; return a number for it, its size and the size of its objects in bytes.

        :param number: the id that it must have still; "": any.
        :param alone: not if another client has it open for writing.
        :raise ImageInUse: one has.
        """
        if alone:
            self._changes.require_unused(name)
        image = self._rbd.Image(self._ioctx, name, read_only=not writable)
        try:
            if number and image.id() != number:
                raise self._rbd.ImageNotFound(f"{name} is another image", errno=2)
            facts = image.stat()
            opened = Opened(image, fd)
        except BaseException:
            image.close()
            raise
        with self._lock:
            self._numbers += 1
            handle = self._numbers
            self._opened[handle] = opened
        return [handle, facts["size"], facts["obj_size"]]

    def close(self, handle: int) -> None:
        """Close an image."""
        with self._lock:
            opened = self._opened.pop(handle, None)
        if opened is not None:
            opened.close()

    def close_all(self) -> None:
        """Close all of them, whatever their errors."""
        for handle in list(self._opened):
            with suppress(Exception):
                self.close(handle)

    def read(self, handle: int, offset: int, length: int, place: int) -> int:
        """Read bytes into the memory at *place*; return how many."""
        opened = self._opened[handle]
        with opened as image:
            try:
                data = image.read(offset, length)
            except self._rbd.InvalidArgument:
                if offset < image.size():
                    raise
                return 0  # another client has made it smaller
            opened.bytes[place : place + len(data)] = data
        return len(data)

    def write(self, handle: int, offset: int, length: int, place: int) -> None:
        """Write bytes from the memory at *place*."""
        opened = self._opened[handle]
        with opened as image:
            image.write(opened.bytes[place : place + length], offset)

    def zero(self, handle: int, offset: int, length: int, *, thick: bool) -> None:
        """Make a stretch read as zeros; librbd's discard leaves what is no multiple of 64 KiB.

        :param thick: by writing them.
        """
        with self._opened[handle] as image:
            if thick:
                image.write_zeroes(offset, length, zero_flags=_THICK)
            else:
                image.write_zeroes(offset, length)

    def extents(self, handle: int, offset: int, length: int) -> list[list[int]]:
        """Return where data are in a stretch, as offsets and lengths; all else reads as zeros."""
        found: list[tuple[int, int]] = []

        def take(start: int, size: int, exists: bool) -> None:
            if exists:
                found.append((start, size))

        with self._opened[handle] as image:
            end = min(offset + length, image.size())
            if end > offset:  # librbd aborts where there is nothing to look through
                image.diff_iterate(offset, end - offset, None, take, include_parent=True)
        found.sort()  # nobody promises an order, least of all where an image is striped
        joined: list[list[int]] = []
        for start, size in found:
            if joined and sum(joined[-1]) == start:
                joined[-1][1] += size
            else:
                joined.append([start, size])
        return joined

    def resize(self, handle: int, size: int) -> None:
        """Set the size."""
        with self._opened[handle] as image:
            image.resize(size)

    def size(self, handle: int) -> int:
        """Return the size of this moment."""
        with self._opened[handle] as image:
            return int(image.size())

    def flush(self, handle: int) -> None:
        """Return when all that was written is safe."""
        with self._opened[handle] as image:
            image.flush()
