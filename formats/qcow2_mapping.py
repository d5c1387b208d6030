"""The mapping tables of a new qcow2 image, filled in the order of the disk.

Source: the qcow2 specification, "Cluster mapping".
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable

from storaged.formats import qcow2
from storaged.formats.handle import Handle
from storaged.formats.tables import pack_offsets

#: Bytes of tables made at a time: short enough for other threads to get their turn.
_PIECE = 1 << 18
_ENTRY = struct.Struct(">Q")
#: An entry that reads as zeros, and the second word of an extended one.
_ZERO = 1
_ALL_ALLOCATED = 0xFFFFFFFF
_ALL_ZERO = 0xFFFFFFFF << 32
#: Entries of the L1 table made at a time.
_L1_BATCH = 1 << 15


class Mapping:
    """An L1 table in memory and one L2 table; an L2 table that was passed is written at once.

    Clusters are mapped in ascending order, each at most once.

    :param extended: entries have a second word, of subclusters.
    :param allocate: takes so many clusters at the end of the file and returns their offset.
    """

    def __init__(
        self, handle: Handle, cluster_size: int, *, extended: bool, allocate: Callable[[int], int]
    ) -> None:
        self._handle = handle
        self._cluster_size = cluster_size
        self._allocate = allocate
        self._stride = 2 if extended else 1
        self._entries = qcow2.l2_entries(cluster_size, extended)
        self._batch = max(_PIECE // cluster_size, 1)
        #: up to the last entry that is in use
        self._l1 = array("Q")
        self._table = bytearray()
        self._index = -1

    def data(self, cluster: int, count: int, host: int) -> None:
        """Map clusters to plain data from *host* on, one behind the other."""
        self._fill(cluster, count, qcow2.COPIED | host, self._cluster_size, _ALL_ALLOCATED)

    def zeros(self, cluster: int, count: int) -> None:
        """Say of clusters that they read as zeros. Only version 3 can."""
        self._fill(cluster, count, _ZERO if self._stride == 1 else 0, 0, _ALL_ZERO)

    def packed(self, cluster: int, entry: int) -> None:
        """Give a compressed cluster its entry."""
        self._fill(cluster, 1, entry, 0, 0)

    def finish(self, offset: int, *, whole: int = 0) -> None:
        """Write what is left of the L2 tables, and the L1 table to *offset*.

        :param whole: how many entries to write, where those that are not in use may not be zeros.
        """
        self._close()
        self._extend(whole)
        for start in range(0, len(self._l1), _L1_BATCH):
            part = self._l1[start : start + _L1_BATCH]
            if any(part) or whole:
                if sys.byteorder == "little":
                    part.byteswap()
                self._handle.pwrite(part.tobytes(), offset + 8 * start)

    def _fill(self, cluster: int, count: int, first: int, step: int, second: int) -> None:
        while count:
            index, place = divmod(cluster, self._entries)
            if place == 0 and count >= self._entries:
                done = self._fill_tables(index, count // self._entries, first, step, second)
            else:
                done = min(count, self._entries - place)
                self._open(index)
                width = 8 * self._stride
                data = self._pack(first, step, done, second)
                self._table[place * width : (place + done) * width] = data
            cluster += done
            count -= done
            first += done * step

    def _fill_tables(self, index: int, tables: int, first: int, step: int, second: int) -> int:
        """Write whole tables from *index* on; return how many clusters they map."""
        self._close()
        tables = min(tables, self._batch)
        done = tables * self._entries
        self._add(index, tables, self._pack(first, step, done, second))
        return done

    def _pack(self, first: int, step: int, count: int, second: int) -> bytes:
        if step:
            return pack_offsets(first, step, count, stride=self._stride, second=second)
        entry = _ENTRY.pack(first)
        return (entry if self._stride == 1 else entry + _ENTRY.pack(second)) * count

    def _open(self, index: int) -> None:
        if index != self._index:
            self._close()
            self._table = bytearray(self._cluster_size)
            self._index = index

    def _close(self) -> None:
        if self._index >= 0:
            self._add(self._index, 1, self._table)
            self._index = -1

    def _add(self, index: int, tables: int, data: bytes | bytearray) -> None:
        offset = self._allocate(tables)
        self._handle.pwrite(data, offset)
        self._extend(index)
        first, step = qcow2.COPIED | offset, self._cluster_size
        self._l1.extend(range(first, first + tables * step, step))

    def _extend(self, entries: int) -> None:
        self._l1.frombytes(bytes(8 * max(entries - len(self._l1), 0)))
