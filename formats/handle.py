"""The one small protocol that files, devices, network images and decoders all implement.

Sizes and offsets are bytes. Every method may raise `OSError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

#: What can be written: anything whose bytes lie in one piece.
Bytes: TypeAlias = bytes | bytearray | memoryview

#: Called with (done, total) bytes between the steps of long work; stops it by raising.
Checkpoint: TypeAlias = Callable[[int, int], None]


class Extent(NamedTuple):
    """A stretch of an image: *data* is False where it is known to read as zeros."""

    offset: int
    length: int
    data: bool


class Handle(Protocol):
    """An image's bytes, wherever they lie."""

    def size(self) -> int:
        """Return the length in bytes."""
        ...

    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the end comes first."""
        ...

    def pwrite(self, data: Bytes, offset: int) -> None:
        """Write all of *data* at *offset*, growing the image where its kind can grow."""
        ...

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a stretch read as zeros.

        :param unmap: True gives the space back where that is possible; False keeps it, or takes it
            (a preallocation), so that a later write there cannot fail for lack of space.
        """
        ...

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield the extents of a stretch in order, without gaps; adjoining ones may be alike."""
        ...

    def truncate(self, size: int) -> None:
        """Set the length; what is new reads as zeros."""
        ...

    def flush(self) -> None:
        """Return when all that was written survives a loss of power."""
        ...

    def fileno(self) -> int | None:
        """Return a descriptor whose bytes are exactly this image's, or None if there is none."""
        ...

    def close(self) -> None:
        """Let go of what lies below. Calling it again does nothing."""
        ...
