"""Refcounts of an existing qcow2 image: looked up, and changed for a few clusters.

Source: the qcow2 specification, "Host cluster management".
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import compress
from operator import gt, sub

from storaged.formats.errors import CorruptImage
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import Header
from storaged.formats.tables import refcount, set_refcount


class Refcounts:
    """The refcounts of an image whose header was found to be sound.

    Changes stay in memory until `write`.
    """

    def __init__(self, handle: Handle, header: Header) -> None:
        self._handle = handle
        self._table = header.fixed.refcount_table_offset
        self._order = header.refcount_order
        self._cluster_size = header.cluster_size
        self._blocks: dict[int, bytearray] = {}
        self._offsets: dict[int, int] = {}
        #: places of the blocks that this object added
        self._added: dict[int, int] = {}
        self._changed: set[int] = set()
        self.table_clusters = header.fixed.refcount_table_clusters
        #: how many clusters one block counts
        self.per_block = header.cluster_size * 8 >> header.refcount_order

    @property
    def table_entries(self) -> int:
        """How many blocks the table can name."""
        return self.table_clusters * self._cluster_size // 8

    def block_offset(self, index: int) -> int:
        """Return where block *index* lies, 0 if there is none.

        :raise CorruptImage: if the table's entry is no place for a block.
        """
        offset = self._offsets.get(index)
        if offset is None:
            offset = self._offsets[index] = self._read_entry(index)
        return offset

    def get(self, cluster: int) -> int:
        """Return how often *cluster* is used.

        :raise CorruptImage: if the table's entry is no place for a block.
        """
        index, place = divmod(cluster, self.per_block)
        if not self.block_offset(index):
            return 0
        return refcount(self._block(index), place, self._order)

    def set(self, clusters: Iterable[int], value: int) -> None:
        """Change the refcount of *clusters*, whose blocks must exist, in memory."""
        for cluster in clusters:
            index, place = divmod(cluster, self.per_block)
            set_refcount(self._block(index), place, self._order, value)
            self._changed.add(index)

    def lower(self, index: int, amounts: bytes) -> bytes:
        """Lower the counts of block *index*, in memory; return a byte each, 1 where none is left.

        :param amounts: how much for each cluster from the block's first on; never more than is
            counted.
        """
        block = self._block(index)
        self._changed.add(index)
        width = 1 << self._order >> 3
        if width:
            planes = [block[place : width * len(amounts) : width] for place in range(width)]
            with suppress(ValueError):  # one of them borrows from the next byte
                planes[-1] = bytearray(map(sub, planes[-1], amounts))
                block[width - 1 : width * len(amounts) : width] = planes[-1]
                left = map(any, zip(*planes, strict=True))
                return bytes(map(gt, map(bool, amounts), left))
        first = index * self.per_block
        freed = bytearray(len(amounts))
        for place in compress(range(len(amounts)), amounts):
            left_over = self.get(first + place) - amounts[place]
            set_refcount(block, place, self._order, left_over)
            freed[place] = not left_over
        return bytes(freed)

    def add_block(self, index: int, offset: int) -> None:
        """Add an empty block that shall lie at *offset*."""
        self._added[index] = self._offsets[index] = offset
        self._blocks[index] = bytearray(self._cluster_size)
        self._changed.add(index)

    def write(self, *, added: bool) -> None:
        """Write the changed blocks that were added, or those that were there before."""
        for index in sorted(self._changed):
            if (index in self._added) is added:
                self._handle.pwrite(self._blocks[index], self.block_offset(index))
                self._changed.discard(index)

    def forget(self) -> None:
        """Give up the blocks that were read and not changed since."""
        for index in [index for index in self._blocks if index not in self._changed]:
            del self._blocks[index]

    def write_entries(self) -> None:
        """Enter the added blocks into the table, so that a crash leaves none that is not counted.

        Each entry is one atomic write. A block is entered when the block that counts it is on the
        disk, or together with it if it counts itself.
        """
        pending = dict(self._added)
        while pending:
            waiting = set(pending)
            for index in sorted(waiting):
                counted_by = pending[index] // self._cluster_size // self.per_block
                if counted_by == index or counted_by not in waiting:
                    offset = pending.pop(index)
                    self._handle.pwrite(offset.to_bytes(8, "big"), self._table + 8 * index)
            self._handle.flush()

    def table(self, clusters: int) -> bytes:
        """Return a table of *clusters* clusters that names all blocks, the added ones too."""
        length = self.table_clusters * self._cluster_size
        data = bytearray(self._handle.pread(length, self._table))
        data += bytes(clusters * self._cluster_size - len(data))
        for index, offset in self._added.items():
            data[8 * index : 8 * index + 8] = offset.to_bytes(8, "big")
        return bytes(data)

    def require_single(self, name: str, offset: int, length: int) -> range:
        """Return the clusters of a table that is to be changed or given up.

        :raise CorruptImage: if one of them is not used exactly once: something else lies there.
        """
        size = self._cluster_size
        clusters = range(offset // size, -(-(offset + length) // size))
        for cluster in clusters:
            count = self.get(cluster)
            if count != 1:
                raise CorruptImage(f"cluster {cluster} of the {name} has refcount {count}, not 1")
        return clusters

    def _read_entry(self, index: int) -> int:
        if index >= self.table_entries:
            return 0
        data = self._handle.pread(8, self._table + 8 * index)
        offset = int.from_bytes(data, "big") if len(data) == 8 else 0
        if offset % self._cluster_size or offset >= self._handle.size():
            raise CorruptImage(f"refcount block {index} at {offset} is unaligned or not there")
        return offset

    def _block(self, index: int) -> bytearray:
        block = self._blocks.get(index)
        if block is None:
            data = self._handle.pread(self._cluster_size, self.block_offset(index))
            block = bytearray(data) + bytes(self._cluster_size - len(data))
            self._blocks[index] = block
        return block
