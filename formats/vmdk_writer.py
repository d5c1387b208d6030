"""Writer of VMDK disks of type monolithicSparse: what it is given lies grain behind grain.

Both copies of the grain tables are written, some at a time: the memory taken does not depend on the
disk's size.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

from array import array
from dataclasses import replace

from storaged.formats.errors import FormatError
from storaged.formats.handle import Bytes, Handle
from storaged.formats.vmdk import DESCRIPTOR_OFFSET, GTES_PER_GT, Flags
from storaged.formats.vmdk_create import (
    DEFAULT_HARDWARE,
    DEFAULT_NAME,
    GRAIN_SIZE,
    GT_SIZE,
    Identity,
    Parent,
    first_tables,
    layout,
    pack_entries,
    sectors_of,
    tables_of,
    write_directories,
)
from storaged.formats.vmdk_descriptor import SECTOR, Adapter, CreateType
from storaged.formats.vmdk_tables import unpack_entries
from storaged.formats.writer import Place, Writer

#: A grain table entry that says: zeros, whatever the parent holds.
ZEROED = 1
#: Version of an image that has such entries.
_ZEROED_VERSION = 2
#: Tables in memory: those of 8 GiB of the disk.
_TABLES = 256
_ENTRIES = _TABLES * GTES_PER_GT
#: Sector numbers have 32 bits.
_MAX_SECTORS = 1 << 32


class VmdkWriter(Writer):
    """Makes a disk in one file.

    :param handle: what is in it is lost.
    :param capacity: virtual size in bytes, rounded up to 512.
    :param adapter: see `Identity`, as for all that follows.
    :param parent: what is never given reads as this disk.
    :raise FormatError: as `vmdk_create.create` does; nothing was written.
    """

    unit = GRAIN_SIZE * SECTOR

    def __init__(
        self,
        handle: Handle,
        capacity: int,
        *,
        adapter: str = Adapter.IDE,
        name: str = DEFAULT_NAME,
        cid: int | None = None,
        hardware_version: str = DEFAULT_HARDWARE,
        parent: Parent | None = None,
    ) -> None:
        identity = Identity(adapter, name, cid, hardware_version, parent)
        self._text = identity.text(capacity, CreateType.MONOLITHIC_SPARSE)
        self._header = layout(sectors_of(capacity))
        self._handle = handle
        self.needs_zeros = parent is not None
        self._next = self._header.over_head
        self._tables = _Tables(handle, first_tables(self._header), self._header.capacity)
        self._zeroed = False
        handle.truncate(0)
        # a device keeps its length, and what was in it before
        self.blank = not handle.size()
        size = self._header.over_head * SECTOR
        if not self.blank:
            handle.write_zeroes(0, size)
        handle.truncate(size)

    def place(self, offset: int, length: int) -> Place:
        """Claim room for all of it, in one piece.

        :raise FormatError: the image would need sector numbers of more than 32 bits.
        """
        host = self._claim(offset, length)
        if length % self.unit and not self.blank:
            self._handle.write_zeroes(host + length, self.unit - length % self.unit)
        return Place(self._handle, host, length)

    def write(self, offset: int, data: Bytes) -> None:
        """Take one whole grain, or the last part of one where the disk ends.

        :raise FormatError: the image would need sector numbers of more than 32 bits.
        """
        host = self._claim(offset, len(data))
        if len(data) < self.unit:
            data = bytes(data).ljust(self.unit, b"\0")
        self._handle.pwrite(data, host)

    def zero(self, offset: int, length: int) -> None:
        """Make a part read as zeros; only over a parent that takes more than to leave it out."""
        if self.needs_zeros and length:
            self._zeroed = True
            self._tables.fill(offset // self.unit, ZEROED, 0, -(-length // self.unit))

    def finish(self) -> None:
        """Write the tables, the descriptor, and the header last. Nothing is flushed."""
        self._tables.flush()
        self._handle.truncate(self._next * SECTOR)
        write_directories(self._handle, self._header)
        self._handle.pwrite(self._text, DESCRIPTOR_OFFSET * SECTOR)
        header = self._header
        if self._zeroed:
            flags = header.flags | Flags.ZEROED_GRAINS
            header = replace(header, version=_ZEROED_VERSION, flags=flags)
        self._handle.pwrite(header.pack(), 0)

    def _claim(self, offset: int, length: int) -> int:
        """Take the next grains of the file for a part of the disk; return where they are."""
        count = -(-length // self.unit)
        host = self._next
        end = host + count * GRAIN_SIZE
        if end > _MAX_SECTORS:
            raise FormatError(f"the image would end at sector {end}, beyond {_MAX_SECTORS}")
        self._tables.fill(offset // self.unit, host, GRAIN_SIZE, count)
        self._next = end
        return host * SECTOR


class _Tables:
    """The grain tables of both copies, of which some are in memory at a time."""

    def __init__(self, handle: Handle, first: tuple[int, int], sectors: int) -> None:
        self._handle = handle
        self._first = first
        self._grains = -(-sectors // GRAIN_SIZE)
        self._count = tables_of(sectors)
        self._part = -1
        self._entries = array("I")
        #: the entries that were filled since they were read
        self._changed = (_ENTRIES, 0)

    def fill(self, grain: int, first: int, step: int, count: int) -> None:
        """Set *count* entries to *first*, *first* + *step* and so on."""
        if grain < 0 or grain + count > self._grains:
            raise FormatError(f"grains {grain} to {grain + count} are not on the disk")
        while count:
            self._turn_to(grain // _ENTRIES)
            begin = grain % _ENTRIES
            here = min(count, _ENTRIES - begin)
            values = range(first, first + step * here, step) if step else (first,) * here
            self._entries[begin : begin + here] = array("I", values)
            low, high = self._changed
            self._changed = min(low, begin), max(high, begin + here)
            grain += here
            first += step * here
            count -= here

    def flush(self) -> None:
        """Write what was filled to both copies."""
        low, high = self._changed
        if low >= high:
            return
        table, end = low // GTES_PER_GT, -(-high // GTES_PER_GT)
        data = pack_entries(self._entries[table * GTES_PER_GT : end * GTES_PER_GT])
        for first in self._first:
            sector = first + (self._part * _TABLES + table) * GT_SIZE
            self._handle.pwrite(data, sector * SECTOR)
        self._changed = (_ENTRIES, 0)

    def _turn_to(self, part: int) -> None:
        """Have the tables of another part of the disk in memory."""
        if part == self._part:
            return
        self.flush()
        self._part = part
        count = min(_TABLES, self._count - part * _TABLES)
        sector = self._first[0] + part * _TABLES * GT_SIZE
        self._entries = unpack_entries(
            self._handle.pread(count * GT_SIZE * SECTOR, sector * SECTOR)
        )
