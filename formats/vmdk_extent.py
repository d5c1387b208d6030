"""The extents of a VMDK: where each holds which part of its own stretch of the disk.

An extent tells of itself in places of the disk. A sparse one reads its grain directory once and its
grain tables when they are needed, many at a time where they lie side by side. Every entry is
checked against the file.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

import threading
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from itertools import pairwise

from storaged.formats.disk import Kind, Stretch
from storaged.formats.errors import CorruptImage, UnsupportedFormat
from storaged.formats.handle import Handle
from storaged.formats.vmdk import Marker
from storaged.formats.vmdk_descriptor import SECTOR
from storaged.formats.vmdk_tables import geometry_of, read_directory, read_marker, unpack_entries

#: Tables are read in pieces of this many bytes.
_PIECE = 1 << 20
#: Entries of a directory that are looked at together.
_STRIDE = 4096
_CACHED_TABLES = 64


class Extent(ABC):
    """A stretch of a disk.

    :param file: what holds it.
    :param start: where on the disk it begins.
    :param length: its length in bytes.
    """

    def __init__(self, file: Handle, start: int, length: int) -> None:
        self.file = file
        self.start = start
        self.length = length

    @abstractmethod
    def stretches(self, offset: int, length: int) -> Iterator[Stretch]:
        """Yield how a part of the extent is kept, in order and without gaps.

        :param offset: on the disk.
        :raise FormatError: the extent contradicts itself there.
        """

    def unpack(self, offset: int, length: int) -> bytes:
        """Return bytes of compressed grains.

        :param offset: on the disk.
        """
        raise UnsupportedFormat("an extent without compressed grains")

    def read(self, host: int, length: int) -> bytes:
        """Return bytes of the file.

        :raise CorruptImage: the file ends before.
        """
        data = self.file.pread(length, host)
        if len(data) != length:
            raise CorruptImage(f"the file ends before byte {host + length}, which is data")
        return data


class FlatExtent(Extent):
    """An extent whose file holds the bytes as they are.

    :param offset: where in the file they begin.
    :raise CorruptImage: if the file is too short.
    """

    def __init__(self, file: Handle, start: int, length: int, offset: int = 0) -> None:
        super().__init__(file, start, length)
        self._offset = offset
        if file.size() < offset + length:
            raise CorruptImage(f"a flat extent of {length} bytes ends beyond its file")

    def stretches(self, offset: int, length: int) -> Iterator[Stretch]:
        """Yield data and the holes of the file."""
        end = offset + length
        for extent in self.file.map(self._offset + offset - self.start, length):
            if extent.data:
                yield Stretch(offset, extent.length, Kind.DATA, 0, self.file, extent.offset)
            else:
                yield Stretch(offset, extent.length, Kind.ZERO)
            offset += extent.length
        if offset < end:
            raise CorruptImage("a flat extent's file has become shorter")


class SparseExtent(Extent):
    """An extent of grains that are allocated one by one. Several threads may read it at a time.

    :param length: how much of it counts; None for all.
    :raise FormatError: as `geometry_of` does, or if it is shorter than *length*.
    """

    def __init__(self, file: Handle, start: int = 0, length: int | None = None) -> None:
        self.geometry = geometry_of(file)
        super().__init__(file, start, self.geometry.capacity if length is None else length)
        if self.length > self.geometry.capacity:
            raise CorruptImage(f"an extent has {self.geometry.capacity} bytes, not {self.length}")
        self._size = file.size()
        self._directory: array[int] | None = None
        self._tables: dict[int, array[int]] = {}
        self._lock = threading.Lock()
        self._unpacked: tuple[int, bytes] = (-1, b"")

    def stretches(self, offset: int, length: int) -> Iterator[Stretch]:
        """Yield runs of grains; what follows each other in disk and file is one, within a table."""
        span = self.geometry.span
        begin = offset - self.start
        end = begin + length
        for table, count, entries in self._walk(begin // span, -(-end // span)):
            base = table * span
            if entries is None:
                first, last = max(begin, base), min(end, base + count * span)
                yield Stretch(self.start + first, last - first, Kind.ABSENT)
            else:
                yield from self._told(base, entries, max(begin - base, 0), min(end - base, span))

    def _told(self, base: int, entries: array[int], begin: int, end: int) -> Iterator[Stretch]:
        """Yield what a table says of the bytes *begin* to before *end* of what it maps.

        :param base: where in the extent that begins.
        """
        grain, places = self.geometry.grain, self.geometry.first_place
        packed, file, size = self.geometry.compressed, self.file, self._size
        start = self.start + base
        for index, count in self._runs(entries, begin // grain, -(-end // grain)):
            entry = entries[index]
            offset = index * grain
            skip = begin - offset if offset < begin else 0
            length = min(offset + count * grain, end) - offset - skip
            if entry < places:
                yield Stretch(start + offset + skip, length, Kind.ZERO if entry else Kind.ABSENT)
            elif packed:
                yield Stretch(start + offset + skip, length, Kind.COMPRESSED)
            else:
                host = entry * SECTOR + skip
                if entry == 1 or host + length > size:
                    where = start + offset
                    raise CorruptImage(f"the grain of byte {where} is at sector {entry}: no data")
                yield Stretch(start + offset + skip, length, Kind.DATA, 0, file, host)

    def _runs(self, table: array[int], first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield index and count of entries that belong together."""
        entries = table[first:last]
        places = self.geometry.first_place
        if self.geometry.compressed:
            breaks = [
                index
                for index, (one, two) in enumerate(pairwise(entries), 1)
                if one != two and (one < places or two < places)
            ]
        elif self._in_order(entries):
            breaks = []
        else:
            step = self.geometry.grain // SECTOR
            breaks = [
                index
                for index, (one, two) in enumerate(pairwise(entries), 1)
                if (two - one != step or one < places) and (one != two or one >= places)
            ]
        begin = 0
        for index in (*breaks, len(entries)):
            yield first + begin, index - begin
            begin = index

    def _in_order(self, entries: array[int]) -> bool:
        """Whether all the grains lie one behind the other: most tables are like this."""
        step = self.geometry.grain // SECTOR
        begin = entries[0]
        end = begin + step * (len(entries) - 1)
        if begin < self.geometry.first_place or end != entries[-1]:
            return False
        return entries == array("I", range(begin, end + 1, step))

    def _walk(self, first: int, last: int) -> Iterator[tuple[int, int, array[int] | None]]:
        """Yield number, count and entries of the tables *first* to before *last*.

        The count is that of tables without a grain, which have no entries, or 1.
        """
        directory = self.directory()
        size = 4 * self.geometry.entries
        few = last - first <= 2
        while first < last:
            if not directory[first]:
                count = _leading_zeros(directory, first, last)
                yield first, count, None
            elif few:
                count = 1
                yield first, 1, self._cached(first)
            else:
                count = _side_by_side(directory, first, min(last, first + _PIECE // size), size)
                raw = self._read_tables(directory[first], count)
                yield from _split(raw, first, size)
            first += count

    def _cached(self, index: int) -> array[int]:
        table = self._tables.get(index)
        if table is None:
            table = unpack_entries(self._read_tables(self.directory()[index], 1))
            with self._lock:
                if len(self._tables) >= _CACHED_TABLES:
                    del self._tables[next(iter(self._tables))]
                self._tables[index] = table
        return table

    def _read_tables(self, sector: int, count: int) -> bytes:
        length = 4 * self.geometry.entries * count
        raw = self.file.pread(length, sector * SECTOR)
        if len(raw) != length:
            raise CorruptImage(f"a grain table at sector {sector} is not within the file")
        return raw

    def directory(self) -> array[int]:
        """Return the sectors of the grain tables, 0 for those that are not there.

        :raise CorruptImage: there are more of them than the file has room for.
        """
        if self._directory is None:
            self._directory = read_directory(self.file, self.geometry, self.geometry.directory)
        return self._directory

    def unpack(self, offset: int, length: int) -> bytes:
        """Return bytes of compressed grains. The last grain is kept.

        :raise CorruptImage: a grain is not what its table and its marker say.
        """
        grain = self.geometry.grain
        parts = []
        offset -= self.start
        end = offset + length
        while offset < end:
            index, begin = divmod(offset, grain)
            # Taken and set as a pair: another thread may be at another grain.
            known, content = self._unpacked
            if known != index:
                content = self._unpack(index)
                self._unpacked = index, content
            piece = content[begin : begin + end - offset]
            parts.append(piece)
            offset += len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _unpack(self, index: int) -> bytes:
        geometry = self.geometry
        table = self._cached(index // geometry.entries)
        place = table[index % geometry.entries] * SECTOR
        marker = read_marker(self.file, geometry, place, index)
        data = self.read(place + Marker.length(), marker.size)
        needed = min(geometry.grain, geometry.capacity - index * geometry.grain)
        try:
            unpacker = zlib.decompressobj()
            # room for a byte more: a stream that ends in time has its checksum compared as well
            grain = unpacker.decompress(data, geometry.grain + 1)
        except zlib.error as err:
            raise CorruptImage(f"the grain at byte {place} cannot be unpacked: {err}") from err
        if not unpacker.eof or not needed <= len(grain) <= geometry.grain:
            raise CorruptImage(f"the grain at byte {place} has {len(grain)} bytes, or no end")
        return grain[:needed]


def _leading_zeros(directory: array[int], first: int, last: int) -> int:
    """Return how many entries from *first* on are 0, as far as *last*."""
    index = first
    while index < last and not directory[index]:
        end = min(index + _STRIDE, last)
        there = directory[index:end]
        if there.count(0) < len(there):
            return index - first + next(i for i, entry in enumerate(there) if entry)
        index = end
    return index - first


def _side_by_side(directory: array[int], first: int, last: int, size: int) -> int:
    """Return how many tables from *first* on lie one behind the other in the file."""
    entry = directory[first]
    step = size // SECTOR
    for index in range(first + 1, last):
        entry += step
        if directory[index] != entry:
            return index - first
    return last - first


def _split(raw: bytes, first: int, size: int) -> Iterator[tuple[int, int, array[int] | None]]:
    """Yield the tables in *raw*; several without a grain are one."""
    count = len(raw) // size
    if raw == bytes(len(raw)):
        yield first, count, None
        return
    empty = bytes(size)
    for index in range(count):
        piece = raw[index * size : (index + 1) * size]
        yield first + index, 1, None if piece == empty else unpack_entries(piece)
