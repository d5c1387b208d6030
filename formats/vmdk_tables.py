"""The tables of a VMDK sparse extent: where they are and what they hold.

A grain directory has the sectors of grain tables, a grain table those of grains, all 32 bits wide.
Nothing is read that the file is too short for.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from dataclasses import dataclass

from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.findings import Findings
from storaged.formats.handle import Handle
from storaged.formats.image import ImageState
from storaged.formats.vmdk import COWD_MAGIC, MAGIC, CowdHeader, Flags, Marker, read_header
from storaged.formats.vmdk_descriptor import SECTOR, show
from storaged.formats.window import Window

#: More grain tables than this no disk of up to 64 TiB needs: a directory of 8 MiB.
MAX_TABLES = 1 << 21
COWD_GTES_PER_GT = 4096
#: The largest grain that is unpacked: it is in memory as a whole. Everybody makes 64 KiB.
MAX_PACKED_GRAIN = 2 << 20

_PIECE = 1 << 20
#: Sectors (2 to the power of this) whose tables are compared with each other at a time.
_PART_BITS = 17
#: A compressed grain that is longer than this many times its content is none.
_MAX_GROWTH = 2


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a sparse extent is laid out: in bytes, unless it is said otherwise."""

    capacity: int
    grain: int
    #: entries of a grain table
    entries: int
    directory: int
    #: the other copy's; 0 if there is none
    redundant: int
    #: where data can begin, in sectors
    over_head: int
    #: entries below this are no places: 0 is not allocated, 1 a grain of zeros
    first_place: int = 1
    compressed: bool = False
    #: its directory stands at the end: a stream as the specification has it
    stream: bool = False
    #: False for an extent of ESX
    hosted: bool = True

    @property
    def tables(self) -> int:
        """The number of grain tables."""
        return -(-self.capacity // (self.grain * self.entries))

    @property
    def span(self) -> int:
        """Bytes of the disk that one grain table maps."""
        return self.grain * self.entries


def geometry_of(file: Handle) -> Geometry:
    """Read the header of a sparse extent of either kind.

    :raise CorruptImage: if it contradicts itself or its file.
    :raise UnsupportedFormat: if it is of a version or has a feature that is not known.
    """
    magic = file.pread(len(MAGIC), 0)
    if magic not in (MAGIC, COWD_MAGIC):
        raise CorruptImage(f"no sparse extent begins with {show(magic)}")
    geometry = _cowd(file) if magic == COWD_MAGIC else _hosted(file)
    if geometry.tables > MAX_TABLES:
        raise UnsupportedFormat(f"{geometry.tables} grain tables, more than {MAX_TABLES}")
    end = file.size()
    for offset in (geometry.directory, geometry.redundant):
        if offset + 4 * geometry.tables > end:
            raise CorruptImage(f"the grain directory at byte {offset} ends beyond the file")
    return geometry


def _hosted(file: Handle) -> Geometry:
    findings = Findings()
    window = Window(file.pread, file.size())
    header = read_header(window, findings)
    if findings.state is ImageState.UNSUPPORTED:
        raise UnsupportedFormat("; ".join(findings.reasons))
    if header is None or findings.state is ImageState.CORRUPT:
        raise CorruptImage("; ".join(findings.reasons))
    flags = Flags(header.flags)
    compressed = Flags.COMPRESSED in flags
    if compressed and (Flags.MARKERS not in flags or not header.compress_algorithm):
        raise UnsupportedFormat("compressed grains without markers")
    if compressed and header.grain_size * SECTOR > MAX_PACKED_GRAIN:
        raise UnsupportedFormat(f"compressed grains of {header.grain_size} sectors")
    return Geometry(
        capacity=header.capacity * SECTOR,
        grain=header.grain_size * SECTOR,
        entries=header.num_gtes_per_gt,
        directory=header.gd_offset * SECTOR,
        redundant=header.rgd_offset * SECTOR if Flags.REDUNDANT_GD in flags else 0,
        over_head=header.over_head,
        first_place=2 if Flags.ZEROED_GRAINS in flags else 1,
        compressed=compressed,
        stream=compressed and header.gd_offset >= header.over_head,
    )


def _cowd(file: Handle) -> Geometry:
    try:
        header = CowdHeader.unpack(file.pread(CowdHeader.length(), 0))
    except FormatError as err:
        raise CorruptImage("truncated header") from err
    if header.version != 1:
        raise UnsupportedFormat(f"COWD version {header.version}")
    geometry = Geometry(
        capacity=header.num_sectors * SECTOR,
        grain=header.grain_size * SECTOR,
        entries=COWD_GTES_PER_GT,
        directory=header.gd_offset * SECTOR,
        redundant=0,
        over_head=header.gd_offset,
        hosted=False,
    )
    if not geometry.capacity or not geometry.grain or not geometry.directory:
        raise CorruptImage("a COWD header without capacity, grain size or grain directory")
    if geometry.tables > header.num_gd_entries:
        raise CorruptImage(f"a grain directory of {header.num_gd_entries} entries is too short")
    return geometry


def read_marker(file: Handle, geometry: Geometry, place: int, index: int) -> Marker:
    """Return the marker of compressed grain number *index*, which is at byte *place*.

    :raise CorruptImage: if it is another grain's, or the grain's length cannot be right.
    """
    raw = file.pread(Marker.length(), place)
    if len(raw) != Marker.length():
        raise CorruptImage(f"the grain at byte {place} is outside the file")
    marker = Marker.unpack(raw)
    if marker.val * SECTOR != index * geometry.grain:
        raise CorruptImage(f"the grain at byte {place} is that of sector {marker.val}")
    if not 0 < marker.size <= _MAX_GROWTH * geometry.grain:
        raise CorruptImage(f"the grain at byte {place} has {marker.size} compressed bytes")
    return marker


def read_directory(file: Handle, geometry: Geometry, offset: int) -> array[int]:
    """Read a grain directory.

    :raise CorruptImage: it ends beyond the file, or has more tables than the file has room for.
    """
    directory = array("I")
    length = 4 * geometry.tables
    for begin in range(0, length, _PIECE):
        piece = file.pread(min(_PIECE, length - begin), offset + begin)
        directory += unpack_entries(piece[: len(piece) & -4])
    if len(directory) != geometry.tables:
        raise CorruptImage(f"the grain directory at byte {offset} ends beyond the file")
    there = len(directory) - directory.count(0)
    if there * 4 * geometry.entries > file.size():
        raise CorruptImage(f"{there} grain tables do not fit into the file")
    return directory


def repeated(directory: array[int]) -> bytearray:
    """Return a flag for each entry of a directory, set if an entry before has the same table.

    What is needed of memory is a few times the directory, whatever is in it.
    """
    flags = bytearray(len(directory))
    if len(directory) - directory.count(0) < 2:
        return flags
    parts: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
    for index, sector in enumerate(directory):
        if sector:
            parts[sector >> _PART_BITS].append(index)
    while parts:
        seen: set[int] = set()
        for index in parts.popitem()[1]:
            sector = directory[index]
            if sector in seen:
                flags[index] = 1
            else:
                seen.add(sector)
    return flags


def unpack_entries(raw: bytes) -> array[int]:
    """Return the entries of a table, whose length is a multiple of four."""
    entries = array("I", raw)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries
