"""Writer of empty VMDK images of type monolithicSparse.

The layout is qemu-img's: header, descriptor, redundant grain directory and its tables, grain
directory and its tables, the rest up to a whole grain. All tables are there and empty.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from enum import StrEnum

from storaged.formats.errors import FormatError
from storaged.formats.handle import Handle
from storaged.formats.vmdk import (
    DESCRIPTOR_OFFSET,
    GTES_PER_GT,
    MAGIC,
    MAX_CAPACITY,
    NEWLINES,
    SECTOR,
    Flags,
    SparseExtentHeader,
)

GRAIN_SIZE = 128
DESCRIPTOR_SIZE = 20
_GT_SIZE = GTES_PER_GT * 4 // SECTOR
_GDES_PER_SECTOR = SECTOR // 4
_SECTORS_PER_TRACK = 63
_TOOLS_VERSION = 2147483647

_DESCRIPTOR = """\
# Disk DescriptorFile
version=1
CID={cid:x}
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW {sectors} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{heads}"
ddb.geometry.sectors = "{track}"
ddb.adapterType = "{adapter}"
ddb.toolsVersion = "{tools}"
"""


class Adapter(StrEnum):
    """The virtual controller that a guest of VMware gets for the disk."""

    IDE = "ide"
    LSILOGIC = "lsilogic"
    BUSLOGIC = "buslogic"
    LEGACY_ESX = "legacyESX"


def create(
    handle: Handle,
    capacity: int,
    *,
    adapter: str = "ide",
    name: str = "disk.vmdk",
    cid: int | None = None,
) -> None:
    """Write an empty image. Nothing is flushed; the header comes last.

    :param capacity: virtual size in bytes, rounded up to 512.
    :param name: the file's own name, which VMware wants in the descriptor. A name that the
        descriptor cannot carry is replaced by ``disk.vmdk``; QEMU never looks at it.
    :param cid: content id, 32 bits; random if None.
    :raise FormatError: if *capacity* is 0 or above 2 TiB - 64 KiB, or *adapter* is not known;
        nothing was written.
    """
    if not 0 < capacity <= MAX_CAPACITY:
        raise FormatError(f"capacity must be from 1 to {MAX_CAPACITY} bytes, not {capacity}")
    if adapter not in tuple(Adapter):
        raise FormatError(f"adapter must be one of {', '.join(Adapter)}, not {adapter!r}")
    header = _layout(-(-capacity // SECTOR))
    text = _descriptor(header.capacity, adapter, name, cid)
    size = header.over_head * SECTOR
    if handle.size():
        handle.write_zeroes(0, size)
    handle.truncate(size)
    tables = _tables(header.capacity)
    for directory in (header.rgd_offset, header.gd_offset):
        first_table = directory + -(-tables // _GDES_PER_SECTOR)
        handle.pwrite(_directory(first_table, tables), directory * SECTOR)
    handle.pwrite(text, DESCRIPTOR_OFFSET * SECTOR)
    handle.pwrite(header.pack(), 0)


def _tables(sectors: int) -> int:
    """Return how many grain tables map a disk of *sectors*."""
    return -(-sectors // (GRAIN_SIZE * GTES_PER_GT))


def _layout(sectors: int) -> SparseExtentHeader:
    """Return the header of a disk of *sectors*, which says where everything lies."""
    tables = _tables(sectors)
    half = -(-tables // _GDES_PER_SECTOR) + tables * _GT_SIZE
    rgd = DESCRIPTOR_OFFSET + DESCRIPTOR_SIZE
    return SparseExtentHeader(
        magic_number=MAGIC,
        version=1,
        flags=Flags.NEWLINE_TEST | Flags.REDUNDANT_GD,
        capacity=sectors,
        grain_size=GRAIN_SIZE,
        descriptor_offset=DESCRIPTOR_OFFSET,
        descriptor_size=DESCRIPTOR_SIZE,
        num_gtes_per_gt=GTES_PER_GT,
        rgd_offset=rgd,
        gd_offset=rgd + half,
        over_head=-(-(rgd + 2 * half) // GRAIN_SIZE) * GRAIN_SIZE,
        unclean_shutdown=0,
        end_line_test=NEWLINES,
        compress_algorithm=0,
    )


def _directory(first_table: int, tables: int) -> bytes:
    """Return a grain directory: the sectors of its tables, which follow it."""
    entries = array("I", range(first_table, first_table + tables * _GT_SIZE, _GT_SIZE))
    if sys.byteorder == "big":
        entries.byteswap()
    return entries.tobytes()


def _descriptor(sectors: int, adapter: str, name: str, cid: int | None) -> bytes:
    if cid is None:
        (cid,) = struct.unpack("=I", os.urandom(4))
    encoded = os.fsencode(name)
    if not 0 < len(encoded) <= 255 or any(byte < 32 or byte in b'"/:\\' for byte in encoded):
        name = "disk.vmdk"
    heads = 16 if adapter == Adapter.IDE else 255
    text = _DESCRIPTOR.format(
        cid=cid & 0xFFFFFFFF,
        sectors=sectors,
        name=name,
        cylinders=sectors // (_SECTORS_PER_TRACK * heads),
        heads=heads,
        track=_SECTORS_PER_TRACK,
        adapter=adapter,
        tools=_TOOLS_VERSION,
    )
    return os.fsencode(text)
