"""Room for compressed clusters in a new qcow2 image, one behind the other without gaps.

Source: the qcow2 specification, "Standard Cluster Descriptor" and "Compressed Clusters Descriptor".
"""

from __future__ import annotations

from collections.abc import Callable

from storaged.formats import qcow2
from storaged.formats.handle import Handle

#: Packed bytes that are collected before they are written.
_PIECE = 1 << 18
#: Bit 62 of an entry of an L2 table: the cluster is compressed.
_COMPRESSED = 1 << 62


class PackedRoom:
    """Host clusters that compressed clusters share, at the end of the file.

    A host cluster's refcount is the number of compressed ones that touch it.

    :param extend: takes one cluster at the end of the file without counting it; returns its offset.
    :param count: counts the next cluster of the file so many times.
    :param most: the highest refcount.
    """

    def __init__(
        self, handle: Handle, cluster_size: int, most: int, *,
        extend: Callable[[], int], count: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._handle = handle
        self._cluster_size = cluster_size
        self._most = most
        self._extend = extend
        self._count = count
        self._shift = 62 - (cluster_size.bit_length() - 1 - 8)
        #: where the next byte goes, the end of the open host cluster, and what touches that
        self._next = self._end = self._touching = 0
        self._parts: list[bytes] = []
        self._held = 0

    def add(self, data: bytes) -> int:
        """Store the bytes of a compressed cluster, fewer than a cluster; return its L2 entry."""
        size = self._cluster_size
        if self._next == self._end or self._touching >= self._most:
            self.close()
            self._open()
        offset = self._next
        self._touching += 1
        self._next += len(data)
        if self._next > self._end:
            self._count(self._touching)
            self._extend()  # the file's next cluster, as nothing was taken since
            self._end += size
            self._touching = 1
        self._parts.append(data)
        self._held += len(data)
        if self._held >= _PIECE:
            self._flush()
        sectors = (self._next - 1) // qcow2.SECTOR - offset // qcow2.SECTOR
        return _COMPRESSED | sectors << self._shift | offset

    def close(self) -> None:
        """Share the open host cluster with nothing more: something else is put behind it."""
        if self._touching:
            self._count(self._touching)
            self._flush()
        self._next = self._end = self._touching = 0

    def _open(self) -> None:
        self._next = self._extend()
        self._end = self._next + self._cluster_size

    def _flush(self) -> None:
        if self._held:
            self._handle.pwrite(b"".join(self._parts), self._next - self._held)
            self._parts.clear()
            self._held = 0
