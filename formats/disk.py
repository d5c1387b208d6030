"""A virtual disk as its image describes it: what a guest would read, and where each byte lies.

A `Disk` is the read side of a `Handle`. It is decoded from handles that are passed in: the image's
own, its backing disk's, its data file's. Nothing is opened here.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from storaged.formats.handle import Bytes, Extent, Handle


class Kind(Enum):
    """How a stretch of a disk is kept."""

    #: its bytes lie one behind the other in a file
    DATA = "data"
    #: its bytes have to be unpacked
    COMPRESSED = "compressed"
    #: a table, or a hole of a raw file, says that it reads as zeros
    ZERO = "zero"
    #: no layer says anything of it: it reads as zeros
    ABSENT = "absent"

    #: whether it may hold anything but zeros
    data: bool

    def __init__(self, name: str) -> None:
        # Not a property: this is asked for each stretch several times.
        self.data = name in ("data", "compressed")


class Stretch(NamedTuple):
    """A part of a disk that is kept in one way.

    :param offset: where it begins on the disk.
    :param depth: 0 for the image itself, 1 for its backing image and so on; of an ABSENT stretch
        that of the last image asked.
    :param file: of DATA: what holds the bytes ...
    :param host: ... and where in it they begin.
    """

    offset: int
    length: int
    kind: Kind
    depth: int = 0
    file: Handle | None = None
    host: int = 0


class Disk(ABC):
    """A disk decoded from an image. It cannot be written to, and owns the handles it was given."""

    #: What the tables count in, in bytes: a cluster or a grain.
    unit: int

    @abstractmethod
    def size(self) -> int:
        """Return the virtual size in bytes."""

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the disk ends.

        :raise FormatError: the image contradicts itself there.
        """

    @abstractmethod
    def stretches(self, offset: int, length: int, *, chain: bool = True) -> Iterator[Stretch]:
        """Yield how a part of the disk is kept: in order, without gaps, adjoining ones joined.

        :param chain: False tells of this image alone: what it leaves to its backing image is
            ABSENT then.
        :raise FormatError: the image contradicts itself there.
        """

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what may hold data and what reads as zeros."""
        begin, end, data = offset, offset, False
        for stretch in self.stretches(offset, length):
            if stretch.kind.data is not data:
                if end > begin:
                    yield Extent(begin, end - begin, data)
                begin, data = stretch.offset, stretch.kind.data
            end = stretch.offset + stretch.length
        if end > begin:
            yield Extent(begin, end - begin, data)

    def pwrite(self, data: Bytes, offset: int) -> None:
        """Refuse.

        :raise OSError: EROFS.
        """
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Refuse.

        :raise OSError: EROFS.
        """
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def truncate(self, size: int) -> None:
        """Refuse.

        :raise OSError: EROFS.
        """
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def fileno(self) -> int | None:
        """Return None: no file has exactly these bytes."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the handles it was given. Calling it again does nothing."""


def stretches_of(
    source: Handle, offset: int, length: int, *, chain: bool = True
) -> Iterator[Stretch]:
    """Yield how a part of any handle is kept: as a `Disk` says, else as the file system does."""
    if isinstance(source, Disk):
        yield from source.stretches(offset, length, chain=chain)
        return
    data, zero = Kind.DATA, Kind.ZERO
    for start, size, holds in source.map(offset, length):
        if holds:
            yield Stretch(start, size, data, 0, source, start)
        else:
            yield Stretch(start, size, zero)
