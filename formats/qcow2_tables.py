"""The L1 and L2 tables of a qcow2 image, read in bulk and believed only after a check.

Source: the qcow2 specification, "Cluster mapping".
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from storaged.formats import qcow2
from storaged.formats.disk import Kind
from storaged.formats.errors import CorruptImage
from storaged.formats.handle import Handle
from storaged.formats.qcow2 import COPIED, OFFSET_MASK, Header, Incompatible
from storaged.formats.qcow2_pages import Entries, Pages

#: Bit 62 of an L2 entry: the cluster is compressed.
COMPRESSED = 1 << 62
#: Bit 0 of an L2 entry of version 3 without extended L2 entries: the cluster reads as zeros.
ZERO = 1
_RESERVED = ~(COPIED | COMPRESSED | OFFSET_MASK)

_SUBCLUSTERS = 32
_ALL = (1 << _SUBCLUSTERS) - 1


class Piece(NamedTuple):
    """A part of the disk that one entry or a run of them tells of.

    :param host: of DATA where it lies, of COMPRESSED, which is never more than one cluster, its
        L2 entry.
    """

    offset: int
    length: int
    kind: Kind
    host: int = 0


class Packed(NamedTuple):
    """Where a compressed cluster lies; its stream may end before *length*."""

    offset: int
    length: int


class Group(NamedTuple):
    """Neighbouring subclusters that are kept alike: where in their cluster, in bytes."""

    kind: Kind
    start: int
    length: int


class Mapping:
    """Where the clusters of a disk lie. Several threads may use it at a time.

    :param l1_table_offset: of a table that lies within the file ...
    :param l1_size: ... and its number of entries; what lies beyond is absent.
    :param file_size: the image file's length.
    :param data_size: length of the external data file, None if there is none.
    """

    def __init__(
        self,
        handle: Handle,
        header: Header,
        l1_table_offset: int,
        l1_size: int,
        *,
        file_size: int,
        data_size: int | None = None,
    ) -> None:
        extended = header.has(Incompatible.EXTENDED_L2)
        self._cluster_size = header.cluster_size
        self._cluster_bits = header.fixed.cluster_bits
        self._width = 16 if extended else 8
        may_be_zero = header.fixed.version == 3 and not extended
        #: what makes an entry anything but that of a plain cluster
        self._refused = COMPRESSED | (_RESERVED & ~ZERO if may_be_zero else _RESERVED)
        self._l1 = l1_table_offset
        self._l1_size = l1_size
        self._file_size = file_size
        self._external = data_size is not None
        self._data_size = file_size if data_size is None else data_size
        self._pages = Pages(handle)
        #: how much of the disk one L2 table maps
        self._span = self._cluster_size * qcow2.l2_entries(self._cluster_size, extended)

    def walk(self, offset: int, end: int) -> Iterator[Piece]:
        """Yield the pieces from *offset* to *end* in order, without gaps.

        :raise CorruptImage: at the first entry that cannot be right.
        """
        tables = self._file_size // self._cluster_size + 1
        while offset < end:
            index = offset // self._span
            table = self._l2_table(index)
            if table:
                until = min((index + 1) * self._span, end)
                tables -= 1
                if tables < 0:
                    raise CorruptImage("more L2 tables are used than fit in the file")
                yield from self._walk_table(table, offset, until)
            else:
                until = min(self._absent_until(index) * self._span, end)
                yield Piece(offset, until - offset, Kind.ABSENT)
            offset = until

    def packed(self, entry: int) -> Packed:
        """Return where the cluster of a compressed entry lies.

        :raise CorruptImage: if that is not within the file.
        """
        bits = 62 - (self._cluster_bits - 8)
        offset = entry & (1 << bits) - 1
        sectors = ((entry & COMPRESSED - 1) >> bits) + 1
        length = sectors * qcow2.SECTOR - offset % qcow2.SECTOR
        last_sector = -(-self._file_size // qcow2.SECTOR) * qcow2.SECTOR
        if offset + length > last_sector:
            raise CorruptImage(f"compressed cluster at {offset} reaches beyond the end of the file")
        return Packed(offset, length)

    def _l2_table(self, index: int) -> int:
        """Return where an L2 table lies, 0 if there is none."""
        if index >= self._l1_size:
            return 0
        entry = int.from_bytes(self._pages.read(self._l1 + 8 * index, 8), "big")
        offset = entry & OFFSET_MASK
        if entry & ~(COPIED | OFFSET_MASK):
            raise CorruptImage(f"L1 entry {index} has reserved bits set: {entry:#x}")
        if offset % self._cluster_size or offset >= self._file_size:
            raise CorruptImage(f"L1 entry {index}: L2 table at {offset} is unaligned or not there")
        return offset

    def _absent_until(self, index: int) -> int:
        """Return the first index behind *index* whose entry may be used."""
        if index >= self._l1_size:
            return qcow2.MAX_OFFSET
        return index + 1 + self._pages.zeros(self._l1 + 8 * (index + 1)) // 8

    def _walk_table(self, table: int, offset: int, end: int) -> Iterator[Piece]:
        start = offset - offset % self._span
        index = (offset - start) // self._cluster_size
        last = -(-(end - start) // self._cluster_size)
        wide = self._width == 16
        while index < last:
            data = self._pages.read(table + index * self._width, (last - index) * self._width)
            entries = Entries(data, self._width, self._cluster_size)
            base = start + index * self._cluster_size
            for piece in self._extended(entries, base) if wide else self._plain(entries, base):
                piece_end = piece.offset + piece.length
                if piece.offset >= offset and piece_end <= end:
                    yield piece
                elif piece.offset < end and piece_end > offset:
                    yield _cut(piece, offset, end)
            index += entries.count

    def _plain(self, entries: Entries, base: int) -> Iterator[Piece]:
        """Yield the pieces that entries tell of, the first of which is for the disk's *base*."""
        size, index, count, word = self._cluster_size, 0, entries.count, entries.word
        refused = self._refused
        while index < count:
            entry = word(index)
            offset = base + index * size
            host = entry & OFFSET_MASK
            if entry & refused or host & size - 1:
                yield self._compressed(entry, offset)
                index += 1
                continue
            allocated = host or (entry & COPIED and self._external)
            until = entries.rising_until(index) if allocated else entries.equal_until(index)
            length = (until - index) * size
            if entry & ZERO:
                yield Piece(offset, length, Kind.ZERO)
            elif not allocated:
                yield Piece(offset, length, Kind.ABSENT)
            elif host + length <= self._data_size:
                yield Piece(offset, length, Kind.DATA, host)
            else:
                yield from self._cut_short(offset, length, host)
            index = until

    def _extended(self, entries: Entries, base: int) -> Iterator[Piece]:
        """Do the same for extended L2 entries."""
        size, index = self._cluster_size, 0
        while index < entries.count:
            entry, bitmap = entries.word(index), entries.second_word(index)
            offset = base + index * size
            host = entry & OFFSET_MASK
            if entry & self._refused or host & size - 1:
                yield self._compressed(entry, offset, bitmap)
                index += 1
                continue
            allocated = bool(host or (entry & COPIED and self._external))
            until = entries.rising_until(index) if allocated else entries.equal_until(index)
            groups = self._groups(bitmap, allocated, offset)
            yield from self._mixed(groups, offset, (until - index) * size, host)
            index = until

    def _compressed(self, entry: int, offset: int, bitmap: int = 0) -> Piece:
        """Return the piece of a compressed cluster.

        :raise CorruptImage: if it must not be one, or the entry is none at all.
        """
        if not entry & COMPRESSED:
            wrong = "has reserved bits set" if entry & self._refused else "is not aligned"
            raise CorruptImage(f"L2 entry of offset {offset} {wrong}: {entry:#x}")
        if bitmap or self._external:
            beside = "subclusters" if bitmap else "a data file"
            raise CorruptImage(f"cluster of offset {offset} is compressed beside {beside}")
        self.packed(entry)
        return Piece(offset, self._cluster_size, Kind.COMPRESSED, entry)

    def _mixed(self, groups: list[Group], offset: int, length: int, host: int) -> Iterator[Piece]:
        """Yield the pieces of clusters, one behind the other, that have the same subclusters."""
        step = self._cluster_size
        if len(groups) == 1:
            step, groups = length, [Group(groups[0].kind, 0, length)]
        for skip in range(0, length, step):
            for kind, start, size in groups:
                place = skip + start
                if kind is not Kind.DATA:
                    yield Piece(offset + place, size, kind)
                elif host + place + size <= self._data_size:
                    yield Piece(offset + place, size, kind, host + place)
                else:
                    yield from self._cut_short(offset + place, size, host + place)

    def _cut_short(self, offset: int, length: int, host: int) -> Iterator[Piece]:
        """Yield the pieces of data behind whose start the file ends.

        It may end within its last cluster: the rest of that reads as zeros.
        """
        last = host + length - 1
        if last - last % self._cluster_size >= self._data_size:
            raise CorruptImage(f"data of offset {offset} reach beyond the end of the file: {last}")
        there = max(self._data_size - host, 0)
        if there:
            yield Piece(offset, there, Kind.DATA, host)
        yield Piece(offset + there, length - there, Kind.ZERO)

    def _groups(self, bitmap: int, allocated: bool, offset: int) -> list[Group]:
        """Return how the parts of a cluster are kept that has an extended entry."""
        data, zero = bitmap & _ALL, bitmap >> _SUBCLUSTERS
        if data & zero or (data and not allocated):
            raise CorruptImage(f"subclusters of offset {offset} are impossible: {bitmap:#x}")
        kinds = (
            Kind.DATA if data >> bit & 1 else Kind.ZERO if zero >> bit & 1 else Kind.ABSENT
            for bit in range(_SUBCLUSTERS)
        )
        part, start, groups = self._cluster_size // _SUBCLUSTERS, 0, []
        for kind, members in groupby(kinds):
            length = sum(part for _ in members)
            groups.append(Group(kind, start, length))
            start += length
        return groups


def _cut(piece: Piece, offset: int, end: int) -> Piece:
    """Return the part of a piece that lies between *offset* and *end*."""
    before = max(offset - piece.offset, 0)
    after = max(piece.offset + piece.length - end, 0)
    host = piece.host + before if piece.kind is Kind.DATA else piece.host
    return Piece(piece.offset + before, piece.length - before - after, piece.kind, host)
