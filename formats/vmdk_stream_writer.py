"""Writer of VMDK disks of type streamOptimized: compressed, and readable from start to end.

Grains follow each other, each behind a marker that says which it is; behind the grains of a table
comes that table, at the end the grain directory and the footer, which says where that is. This is
the specification's form. QEMU reads it, and writes another one that few others read.

Source: VMware's Virtual Disk Format 1.1, "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from storaged.formats.errors import FormatError
from storaged.formats.handle import Bytes, Handle
from storaged.formats.parallel import Ordered
from storaged.formats.vmdk import (
    DESCRIPTOR_OFFSET,
    GD_AT_END,
    GTES_PER_GT,
    Flags,
    Marker,
    SparseExtentHeader,
)
from storaged.formats.vmdk_create import (
    DEFAULT_HARDWARE,
    DEFAULT_NAME,
    GRAIN_SIZE,
    GT_SIZE,
    Identity,
    directory_size,
    layout,
    pack_entries,
    sectors_of,
    tables_of,
)
from storaged.formats.vmdk_descriptor import SECTOR, Adapter, CreateType
from storaged.formats.vmdk_stream import MarkerType
from storaged.formats.writer import Writer

#: Version and compression algorithm (deflate) of such an extent.
VERSION = 3
DEFLATE = 1

_UNIT = GRAIN_SIZE * SECTOR
_ZEROS = bytes(_UNIT)
#: Bytes that are gathered before they are written.
_PIECE = 1 << 20
#: Grains that a thread packs at a time.
_BATCH = 4
#: Sector numbers have 32 bits.
_MAX_SECTORS = 1 << 32


class _Grain(NamedTuple):
    """A grain and its content, first plain, then packed."""

    number: int
    data: bytes


class VmdkStreamWriter(Writer):
    """Makes a compressed disk in one file. It has no parent.

    :param handle: what is in it is lost.
    :param capacity: virtual size in bytes, rounded up to 512.
    :param adapter: see `Identity`, as for *name*, *cid* and *hardware_version*.
    :param threads: that compress.
    :param level: of the compression, 1 to 9; None is zlib's default.
    :raise FormatError: as `vmdk_create.create` does; nothing was written.
    """

    unit = _UNIT

    def __init__(
        self,
        handle: Handle,
        capacity: int,
        *,
        adapter: str = Adapter.IDE,
        name: str = DEFAULT_NAME,
        cid: int | None = None,
        hardware_version: str = DEFAULT_HARDWARE,
        threads: int = 2,
        level: int | None = None,
    ) -> None:
        identity = Identity(adapter, name, cid, hardware_version)
        self._text = identity.text(capacity, CreateType.STREAM_OPTIMIZED)
        self._sectors = sectors_of(capacity)
        self._output = _Output(handle, GRAIN_SIZE)
        self._directory = array("I", bytes(4 * tables_of(self._sectors)))
        self._table = array("I", bytes(4 * GTES_PER_GT))
        #: the number of the table under way; -1 before the first grain
        self._number = -1
        self._batch: list[_Grain] = []
        self._packing = Ordered([_packer(level)] * max(threads, 1), self._store)
        handle.truncate(0)
        if handle.size():
            raise FormatError("a stream ends where its file does, which a device cannot")

    def place(self, offset: int, length: int) -> None:
        """Return None: all data have to be compressed."""
        return

    def write(self, offset: int, data: Bytes) -> None:
        """Take one whole grain, or the last part of one where the disk ends.

        :raise FormatError: the image would need sector numbers of more than 32 bits.
        """
        if not 0 <= offset <= self._sectors * SECTOR - len(data):
            raise FormatError(f"bytes {offset} to {offset + len(data)} are not on the disk")
        content = bytes(data).ljust(_UNIT, b"\0")
        if content == _ZEROS:
            return
        self._batch.append(_Grain(offset // _UNIT, content))
        if len(self._batch) >= _BATCH:
            self._put()

    def zero(self, offset: int, length: int) -> None:
        """Do nothing: what is never given reads as zeros."""

    def finish(self) -> None:
        """Write what is left, the directory, the footer, the descriptor; the header last."""
        try:
            self._put()
            self._packing.drain()
        finally:
            self._packing.close()
        self._end_table()
        header = self._header()
        output = self._output
        size = directory_size(len(self._directory))
        output.mark(size, MarkerType.GRAIN_DIRECTORY)
        directory = output.append(pack_entries(self._directory))
        output.mark(1, MarkerType.FOOTER)
        output.append(replace(header, gd_offset=directory).pack())
        output.mark(0, MarkerType.END_OF_STREAM)
        output.finish()
        output.handle.pwrite(self._text, DESCRIPTOR_OFFSET * SECTOR)
        output.handle.pwrite(header.pack(), 0)

    def abort(self) -> None:
        """End the threads of an image that is given up. Calling it again does nothing."""
        self._packing.close()

    def _header(self) -> SparseExtentHeader:
        return replace(
            layout(self._sectors),
            version=VERSION,
            flags=Flags.NEWLINE_TEST | Flags.COMPRESSED | Flags.MARKERS,
            rgd_offset=0,
            gd_offset=GD_AT_END,
            over_head=GRAIN_SIZE,
            compress_algorithm=DEFLATE,
        )

    def _put(self) -> None:
        if self._batch:
            self._packing.put(self._batch)
            self._batch = []

    def _store(self, batch: list[_Grain]) -> None:
        for grain in batch:
            number, index = divmod(grain.number, GTES_PER_GT)
            if number != self._number:
                self._end_table()
                self._number = number
            marker = Marker(grain.number * GRAIN_SIZE, len(grain.data)).pack()
            self._table[index] = self._output.append(marker + grain.data)

    def _end_table(self) -> None:
        """Write the table of the grains so far."""
        if self._number < 0:
            return
        if self._directory[self._number]:
            raise FormatError("the parts of the disk were not given in order")
        self._output.mark(GT_SIZE, MarkerType.GRAIN_TABLE)
        self._directory[self._number] = self._output.append(pack_entries(self._table))
        self._table = array("I", bytes(4 * GTES_PER_GT))


def _packer(level: int | None) -> Callable[[list[_Grain]], list[_Grain]]:
    setting = zlib.Z_DEFAULT_COMPRESSION if level is None else level

    def pack(batch: list[_Grain]) -> list[_Grain]:
        return [_Grain(number, zlib.compress(data, setting)) for number, data in batch]

    return pack


class _Output:
    """A file that is written from front to end, in sectors.

    :param sector: where it begins.
    """

    def __init__(self, handle: Handle, sector: int) -> None:
        self.handle = handle
        self._written = sector
        self._buffer = bytearray()

    def append(self, data: bytes) -> int:
        """Add *data*, filled up to whole sectors; return the sector where they begin."""
        sector = self._written + len(self._buffer) // SECTOR
        if sector + len(data) // SECTOR >= _MAX_SECTORS:
            raise FormatError(f"the image would go beyond sector {_MAX_SECTORS}")
        self._buffer += data
        self._buffer += bytes(-len(data) % SECTOR)
        if len(self._buffer) >= _PIECE:
            self._flush()
        return sector

    def mark(self, sectors: int, type: MarkerType) -> None:
        """Add the marker of *sectors* of metadata."""
        self.append(Marker(sectors, 0).pack() + type.to_bytes(4, "little"))

    def finish(self) -> None:
        """Write what is left and end the file there."""
        self._flush()
        self.handle.truncate(self._written * SECTOR)

    def _flush(self) -> None:
        self.handle.pwrite(self._buffer, self._written * SECTOR)
        self._written += len(self._buffer) // SECTOR
        self._buffer = bytearray()
