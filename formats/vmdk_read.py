"""Reader of VMDK disks: one file or several, sparse, flat, compressed, over a parent or not.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from storaged.formats.disk import Disk, Kind, Stretch
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.image import ImageState
from storaged.formats.layers import joined, over, read_padded
from storaged.formats.vmdk_describe import describe, is_descriptor
from storaged.formats.vmdk_extent import Extent, FlatExtent, SparseExtent

#: What is told of flat extents, which have no grains.
_FLAT_UNIT = 65536


class VmdkDisk(Disk):
    """A VMDK disk of any kind that `vmdk_describe` knows, but SESPARSE.

    Several threads may read it at a time.

    :param handle: the image, or the descriptor whose data lie in other files.
    :param extents: those files, in the descriptor's order (`VmdkDescription.extents`).
    :param parent: the disk below. The caller has compared the content ids. Without it, what the
        image leaves to its parent reads as zeros.
    :raise CorruptImage: if a header contradicts itself or its file; nothing is closed.
    :raise UnsupportedFormat: if it is of a kind or has a feature that is not known.
    """

    def __init__(
        self, handle: Handle, *, extents: Sequence[Handle] = (), parent: Handle | None = None
    ) -> None:
        self._handles = (handle, *extents)
        self._parent = parent
        self._extents = open_extents(handle, extents)
        self._starts = [extent.start for extent in self._extents]
        self._size = self._starts[-1] + self._extents[-1].length
        grains = [e.geometry.grain for e in self._extents if isinstance(e, SparseExtent)]
        self.unit = min(grains, default=_FLAT_UNIT)

    def size(self) -> int:
        """Return the virtual size in bytes."""
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        """Return *length* bytes from *offset*; fewer only where the disk ends.

        :raise FormatError: the image contradicts itself there.
        """
        pieces = [
            self._read(extent, stretch)
            for extent, begin, end in self._split(offset, length)
            for stretch in extent.stretches(begin, end - begin)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stretches(self, offset: int, length: int, *, chain: bool = True) -> Iterator[Stretch]:
        """Yield how a part of the disk is kept: in order, without gaps, adjoining ones joined.

        :param chain: False tells of this image alone: what it leaves to its parent is ABSENT then.
        :raise FormatError: the image contradicts itself there.
        """
        own = self._own(offset, length)
        if chain and self._parent is not None:
            own = over(own, self._parent)
        return joined(own)

    def close(self) -> None:
        """Close the image, its extents and its parent. Calling it again does nothing."""
        for handle in self._handles:
            handle.close()
        if self._parent is not None:
            self._parent.close()
        self._handles, self._parent = (), None

    def _split(self, offset: int, length: int) -> Iterator[tuple[Extent, int, int]]:
        """Yield the extents of a part of the disk, and from where to where it lies in each."""
        end = min(offset + length, self._size)
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            extent = self._extents[index]
            stop = min(end, extent.start + extent.length)
            yield extent, offset, stop
            offset = stop
            index += 1

    def _own(self, offset: int, length: int) -> Iterator[Stretch]:
        for extent, begin, end in self._split(offset, length):
            yield from extent.stretches(begin, end - begin)

    def _read(self, extent: Extent, stretch: Stretch) -> bytes:
        if stretch.kind is Kind.DATA:
            return extent.read(stretch.host, stretch.length)
        if stretch.kind is Kind.COMPRESSED:
            return extent.unpack(stretch.offset, stretch.length)
        if stretch.kind is Kind.ZERO or self._parent is None:
            return bytes(stretch.length)
        return read_padded(self._parent, stretch.length, stretch.offset)


def open_extents(handle: Handle, files: Sequence[Handle]) -> tuple[Extent, ...]:
    """Return the extents of a disk.

    :raise FormatError: as `VmdkDisk` does, or if *files* are not as many as the descriptor names.
    """
    if not is_descriptor(handle):
        if files:
            raise FormatError("the image has no other files, but some were given")
        return (SparseExtent(handle),)
    description = describe(handle)
    if description.state is not ImageState.OK:
        kind = UnsupportedFormat if description.state is ImageState.UNSUPPORTED else CorruptImage
        raise kind("; ".join(description.reasons))
    if len(files) != len(description.extents):
        count = len(description.extents)
        raise FormatError(f"the descriptor names {count} extents, {len(files)} were given")
    opened: list[Extent] = []
    start = 0
    for file, extent in zip(files, description.extents, strict=True):
        if extent.flat:
            opened.append(FlatExtent(file, start, extent.length, extent.offset))
        else:
            opened.append(SparseExtent(file, start, extent.length))
        start += extent.length
    return tuple(opened)
