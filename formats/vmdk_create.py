"""Writer of empty VMDK images of type monolithicSparse.

The layout is qemu-img's: header, descriptor, redundant grain directory and its tables, grain
directory and its tables, the rest up to a whole grain. All tables are there and empty.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from storaged.formats.errors import FormatError
from storaged.formats.handle import Handle
from storaged.formats.vmdk import (
    DESCRIPTOR_OFFSET,
    GTES_PER_GT,
    MAGIC,
    MAX_CAPACITY,
    NEWLINES,
    Flags,
    SparseExtentHeader,
)
from storaged.formats.vmdk_descriptor import (
    MAX_NAME,
    NO_PARENT,
    SECTOR,
    Access,
    Adapter,
    CreateType,
    Descriptor,
    ExtentLine,
    ExtentType,
    format_descriptor,
)

#: In sectors.
GRAIN_SIZE = 128
DESCRIPTOR_SIZE = 20
GT_SIZE = GTES_PER_GT * 4 // SECTOR
DEFAULT_NAME = "disk.vmdk"
DEFAULT_HARDWARE = "4"

_HARDWARE = re.compile(r"[1-9]\d?")


class Parent(NamedTuple):
    """The disk below a new one.

    :param name: as it shall stand in the descriptor.
    :param cid: its content id now: the new disk is of no use once it changes.
    """

    name: bytes
    cid: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What a new image says of itself besides its size.

    :param adapter: the controller; one of `Adapter`.
    :param name: the file's own name, which VMware wants in the descriptor. A name that the
        descriptor cannot carry is replaced by ``disk.vmdk``; QEMU never looks at it.
    :param cid: content id, 32 bits; random if None.
    :param hardware_version: from ``1`` to ``99``; ``6`` is what QEMU calls compat6.
    """

    adapter: str = Adapter.IDE
    name: str = DEFAULT_NAME
    cid: int | None = None
    hardware_version: str = DEFAULT_HARDWARE
    parent: Parent | None = None

    def text(self, capacity: int, kind: CreateType) -> bytes:
        """Return the descriptor of an image of *capacity* bytes.

        :raise FormatError: if the capacity or what the image shall say is not possible.
        """
        if not 0 < capacity <= MAX_CAPACITY:
            raise FormatError(f"capacity must be from 1 to {MAX_CAPACITY} bytes, not {capacity}")
        if self.adapter not in tuple(Adapter):
            raise FormatError(f"adapter must be one of {', '.join(Adapter)}, not {self.adapter!r}")
        if not _HARDWARE.fullmatch(self.hardware_version):
            raise FormatError(f"hardware version must be 1 to 99, not {self.hardware_version!r}")
        line = ExtentLine(Access.RW, sectors_of(capacity), ExtentType.SPARSE, self._own_name())
        descriptor = Descriptor(
            cid=_random_id() if self.cid is None else self.cid & 0xFFFFFFFF,
            parent_cid=self.parent.cid & 0xFFFFFFFF if self.parent else NO_PARENT,
            create_type=kind,
            extents=(line,),
            parent_hint=self.parent.name if self.parent else None,
            adapter=self.adapter,
            hardware_version=self.hardware_version,
        )
        return format_descriptor(descriptor)

    def _own_name(self) -> bytes:
        name = os.fsencode(self.name)
        if 0 < len(name) <= MAX_NAME and not any(byte < 32 or byte in b'"/:\\' for byte in name):
            return name
        return DEFAULT_NAME.encode()


def create(
    handle: Handle,
    capacity: int,
    *,
    adapter: str = Adapter.IDE,
    name: str = DEFAULT_NAME,
    cid: int | None = None,
    hardware_version: str = DEFAULT_HARDWARE,
    parent: Parent | None = None,
) -> None:
    """Write an empty image. Nothing is flushed; the header comes last.

    :param capacity: virtual size in bytes, rounded up to 512.
    :param adapter: see `Identity`, as for all that follows.
    :raise FormatError: if *capacity* is 0 or above 2 TiB - 64 KiB, *adapter* is not known, or the
        descriptor cannot carry what it shall; nothing was written.
    """
    identity = Identity(adapter, name, cid, hardware_version, parent)
    text = identity.text(capacity, CreateType.MONOLITHIC_SPARSE)
    header = layout(sectors_of(capacity))
    size = header.over_head * SECTOR
    if handle.size():
        handle.write_zeroes(0, size)
    handle.truncate(size)
    write_directories(handle, header)
    handle.pwrite(text, DESCRIPTOR_OFFSET * SECTOR)
    handle.pwrite(header.pack(), 0)


def sectors_of(capacity: int) -> int:
    """Return how many sectors hold *capacity* bytes."""
    return -(-capacity // SECTOR)


def tables_of(sectors: int) -> int:
    """Return how many grain tables map a disk of *sectors*."""
    return -(-sectors // (GRAIN_SIZE * GTES_PER_GT))


def layout(sectors: int) -> SparseExtentHeader:
    """Return the header of a disk of *sectors*, which says where everything lies."""
    tables = tables_of(sectors)
    half = directory_size(tables) + tables * GT_SIZE
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


def directory_size(tables: int) -> int:
    """Return the length of a grain directory in sectors."""
    return -(-4 * tables // SECTOR)


def first_tables(header: SparseExtentHeader) -> tuple[int, int]:
    """Return the sectors of the first grain table of either copy: each follows its directory."""
    size = directory_size(tables_of(header.capacity))
    return header.rgd_offset + size, header.gd_offset + size


def write_directories(handle: Handle, header: SparseExtentHeader) -> None:
    """Write both grain directories of an image of `layout`."""
    tables = tables_of(header.capacity)
    places = (header.rgd_offset, header.gd_offset)
    for directory, first in zip(places, first_tables(header), strict=True):
        entries = array("I", range(first, first + tables * GT_SIZE, GT_SIZE))
        handle.pwrite(pack_entries(entries), directory * SECTOR)


def pack_entries(entries: array[int]) -> bytes:
    """Return the bytes of a table."""
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def _random_id() -> int:
    """Return a content id. It is never the one that means that there is no parent."""
    (cid,) = struct.unpack("=I", os.urandom(4))
    return int(cid) % NO_PARENT
