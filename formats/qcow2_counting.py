"""Refcounts of a new qcow2 image, made in bulk while it grows.

Source: the qcow2 specification, "Host cluster management".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from storaged.formats import qcow2
from storaged.formats.errors import FormatError
from storaged.formats.handle import Handle
from storaged.formats.tables import pack_offsets, pack_refcounts

#: Bytes of refcounts made at a time.
_PIECE = 1 << 20
#: Runs of equal refcounts that are kept before the blocks that they fill are written.
_MAX_RUNS = 1 << 14


class Counting:
    """The refcounts of all clusters from the first on, in the order in which they were taken.

    :param allocate: takes so many clusters at the end of the file, counts them once by `add`, and
        returns their offset.
    """

    def __init__(
        self, handle: Handle, cluster_size: int, order: int, allocate: Callable[[int], int]
    ) -> None:
        self._handle = handle
        self._cluster_size = cluster_size
        self._order = order
        self._allocate = allocate
        self._per_block = cluster_size * 8 >> order
        #: [clusters, refcount of each]; what blocks were written for is gone
        self._runs: deque[list[int]] = deque()
        self._waiting = 0
        self._blocks: list[tuple[int, int]] = []
        #: the highest refcount
        self.most = (1 << (1 << order)) - 1
        #: how many clusters a refcount table of 8 MiB counts
        self.limit = qcow2.MAX_REFCOUNT_TABLE_BYTES // 8 * self._per_block

    def add(self, clusters: int, count: int = 1) -> None:
        """Count the next clusters."""
        self._waiting += clusters
        if self._runs and self._runs[-1][1] == count:
            self._runs[-1][0] += clusters
        else:
            self._runs.append([clusters, count])

    def spill(self) -> None:
        """Write the blocks that are full, if much is kept: so memory stays bounded."""
        if len(self._runs) > _MAX_RUNS and self._waiting >= self._per_block:
            # The new blocks count as well, but they lie behind what fills them.
            self._write(self._waiting // self._per_block)

    def finish(self) -> tuple[int, int]:
        """Write all blocks and the table that lists them; return its offset and its clusters.

        :raise FormatError: it would be longer than 8 MiB.
        """
        written = sum(blocks for _, blocks in self._blocks)
        size, blocks, table = self._cluster_size, 0, 1
        while True:
            needed = -(-(self._waiting + blocks + table) // self._per_block)
            needed_table = max(-(-8 * (written + needed) // size), 1)
            if (needed, needed_table) == (blocks, table):
                break
            blocks, table = needed, needed_table
        if table * size > qcow2.MAX_REFCOUNT_TABLE_BYTES:
            raise FormatError(f"the refcount table would be {table * size} bytes, more than 8 MiB")
        offset = self._allocate(table)
        self._write(blocks)
        data = b"".join(pack_offsets(first, size, count) for first, count in self._blocks)
        self._handle.pwrite(data.ljust(table * size, b"\0"), offset)
        return offset, table

    def _write(self, blocks: int) -> None:
        offset = self._allocate(blocks)
        self._blocks.append((offset, blocks))
        batch = _PIECE * 8 >> self._order
        left = blocks * self._per_block
        while left:
            clusters = min(batch, left)
            data = self._pack(min(clusters, self._waiting))
            self._handle.pwrite(data.ljust(clusters << self._order >> 3, b"\0"), offset)
            offset += clusters << self._order >> 3
            left -= clusters

    def _pack(self, clusters: int) -> bytes:
        """Return the refcounts of the first clusters that have none yet."""
        self._waiting -= clusters
        parts: list[tuple[int, int]] = []
        while clusters:
            run = self._runs[0]
            taken = min(run[0], clusters)
            parts.append((taken, run[1]))
            clusters -= taken
            run[0] -= taken
            if not run[0]:
                self._runs.popleft()
        if len(parts) == 1 and parts[0][1] == 1:
            return pack_refcounts(parts[0][0], self._order)
        if self._order >= 3:
            width = 1 << self._order - 3
            return b"".join(value.to_bytes(width, "big") * taken for taken, value in parts)
        return _squeeze(b"".join(bytes((value,)) * taken for taken, value in parts), self._order)


def _squeeze(counts: bytes, order: int) -> bytes:
    """Pack refcounts of a byte each to less than a byte, from the least significant bit on."""
    per_byte = 8 >> order
    length = -(-len(counts) // per_byte)
    counts = counts.ljust(length * per_byte, b"\0")
    total = 0
    for place in range(per_byte):
        total |= int.from_bytes(counts[place::per_byte], "little") << (place << order)
    return total.to_bytes(length, "little")
