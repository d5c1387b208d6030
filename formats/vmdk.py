"""VMDK sparse extents: their headers, and what a probe says of a file that begins with one.

Hosted sparse extents (``KDMV``) carry a disk of one file, a stream-optimized export or a part of a
split disk; those of ESX (``COWD``) are redo logs. All integers are little-endian, offsets are in
sectors.

Source: VMware's Virtual Disk Format 1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Annotated, ClassVar

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo
from storaged.formats.record import U16, U32, U64, Bytes4, Record
from storaged.formats.vmdk_descriptor import (
    MAX_SECTORS,
    SECTOR,
    Access,
    CreateType,
    Descriptor,
    ExtentType,
    is_plain,
    parse,
    show,
)
from storaged.formats.window import HEAD_LIMIT, Window

MAGIC = b"KDMV"
COWD_MAGIC = b"COWD"
#: ``gdOffset`` of a stream-optimized extent: the grain directory's place stands in the footer.
GD_AT_END = 2**64 - 1
#: Sector numbers in grain tables are 32 bits wide and the last grain must still have one.
MAX_CAPACITY = (2 << 40) - (64 << 10)
MIN_GRAIN, MAX_GRAIN = 8, 65536
GTES_PER_GT = 512
DESCRIPTOR_OFFSET = 1
NEWLINES = b"\n \r\n"
#: What a hosted sparse extent can call itself.
SPARSE_TYPES = (
    CreateType.MONOLITHIC_SPARSE,
    CreateType.STREAM_OPTIMIZED,
    CreateType.TWO_GB_MAX_EXTENT_SPARSE,
)

#: Most descriptors end before this byte of the file, whatever room there is for them.
_SHORT = 4096
#: Fields in which a footer has to agree with its header.
_IN_BOTH = (
    *("magic_number", "version", "flags", "capacity", "grain_size"),
    *("num_gtes_per_gt", "compress_algorithm"),
)
#: libvirt looks for the parent's name like this, wherever it stands.
_HINT = re.compile(rb'parentFileNameHint="([^"\n]*)"')


class Flags(IntFlag):
    """``flags`` of the header."""

    NEWLINE_TEST = 1 << 0
    REDUNDANT_GD = 1 << 1
    ZEROED_GRAINS = 1 << 2
    COMPRESSED = 1 << 16
    MARKERS = 1 << 17


#: Not the member: the operators of an IntFlag are slow.
_REDUNDANT_GD = int(Flags.REDUNDANT_GD)


@dataclass(frozen=True)
class SparseExtentHeader(Record):
    """The first sector of a hosted sparse extent, without its padding."""

    ORDER: ClassVar[str] = "<"

    magic_number: Bytes4
    version: U32
    flags: U32
    capacity: U64
    grain_size: U64
    descriptor_offset: U64
    descriptor_size: U64
    num_gtes_per_gt: U32
    rgd_offset: U64
    gd_offset: U64
    over_head: U64
    unclean_shutdown: Annotated[int, "B"]
    end_line_test: Bytes4
    compress_algorithm: U16


@dataclass(frozen=True)
class CowdHeader(Record):
    """What of the first four sectors of an ESX sparse extent matters for reading it."""

    ORDER: ClassVar[str] = "<"

    magic_number: Bytes4
    version: U32
    flags: U32
    num_sectors: U32
    grain_size: U32
    gd_offset: U32
    num_gd_entries: U32
    free_sector: U32


@dataclass(frozen=True)
class Marker(Record):
    """What stands before a compressed grain, and alone in a sector before a table.

    *val* is the grain's first sector on the disk, or how many sectors of metadata follow. *size* is
    the length of the compressed data in bytes, 0 for metadata.
    """

    ORDER: ClassVar[str] = "<"

    val: U64
    size: U32


def inspect(window: Window) -> ImageInfo:
    """Say what a file with the hosted sparse extent's magic is. Bounded and total."""
    return examine(window)[0]


def examine(window: Window) -> tuple[ImageInfo, Descriptor | None]:
    """Say what `inspect` says, and what the descriptor in the extent holds if it is understood."""
    findings = Findings()
    header = read_header(window, findings)
    if header is None:
        return findings.info("vmdk", window.size), None
    text = _embedded(header, window, findings)
    descriptor = _check_embedded(text, header, findings) if text else None
    hint = _HINT.search(text)
    sound = 0 < header.capacity <= MAX_SECTORS
    info = ImageInfo(
        "vmdk",
        header.capacity * SECTOR if sound else window.size,
        cluster_size=header.grain_size * SECTOR if _good_grain(header.grain_size) else 0,
        backing=BackingRef(hint[1], "vmdk") if hint and hint[1] else None,  # never anything else
        subformat=descriptor.create_type if descriptor else None,
        state=findings.state,
        reasons=tuple(findings.reasons),
    )
    return info, descriptor


def read_header(window: Window, findings: Findings) -> SparseExtentHeader | None:
    """Return the header; in a stream's, its directory's place is the one that the footer says.

    None if it cannot be read at all; whatever else is wrong is in *findings*.
    """
    try:
        header = SparseExtentHeader.unpack(window.head(SparseExtentHeader.length()))
    except FormatError:
        findings.corrupt("truncated header")
        return None
    if not 1 <= header.version <= 3:
        findings.unsupported(f"VMDK version {header.version}")
        return None
    _check_geometry(header, window.size, findings)
    if header.gd_offset == GD_AT_END:
        header = _from_footer(header, window, findings)
    directories = [("grain directory", header.gd_offset)]
    if header.flags & _REDUNDANT_GD:
        directories.append(("redundant grain directory", header.rgd_offset))
    for name, offset in directories:
        if offset != GD_AT_END and not 0 < offset * SECTOR < window.size:
            findings.corrupt(f"{name} at sector {offset} is outside the file")
    return header


def _good_grain(sectors: int) -> bool:
    return MIN_GRAIN <= sectors <= MAX_GRAIN and not sectors & sectors - 1


def _check_geometry(header: SparseExtentHeader, size: int, findings: Findings) -> None:
    if not 0 < header.capacity <= MAX_SECTORS:
        findings.corrupt(f"capacity is {header.capacity} sectors")
    if not _good_grain(header.grain_size):
        findings.corrupt(f"grain size is {header.grain_size} sectors")
    if header.num_gtes_per_gt != GTES_PER_GT:
        findings.corrupt(f"grain tables have {header.num_gtes_per_gt} entries, not 512")
    if header.end_line_test != NEWLINES:
        findings.corrupt("the newline test failed: the file was transferred as text")
    if header.compress_algorithm > 1:
        findings.unsupported(f"compression algorithm {header.compress_algorithm}")
    if header.unclean_shutdown:
        findings.suspicious("the image was not closed cleanly")
    if header.over_head * SECTOR > size:
        findings.corrupt(f"metadata end at sector {header.over_head}, beyond the end of the file")


def _from_footer(
    header: SparseExtentHeader, window: Window, findings: Findings
) -> SparseExtentHeader:
    """Look in the last but one sector: the header again, with the grain directory's place."""
    try:
        footer = SparseExtentHeader.unpack(window.tail(2 * SECTOR))
    except FormatError:
        findings.corrupt("no footer")
        return header
    if any(getattr(footer, name) != getattr(header, name) for name in _IN_BOTH):
        findings.corrupt("no footer that agrees with the header")
        return header
    if footer.gd_offset == GD_AT_END:
        findings.corrupt("the footer does not say where the grain directory is")
    return replace(header, gd_offset=footer.gd_offset, rgd_offset=footer.rgd_offset)


def _embedded(header: SparseExtentHeader, window: Window, findings: Findings) -> bytes:
    """Return the text of the descriptor in the extent; nothing if there is none to be read."""
    if not header.descriptor_offset and not header.descriptor_size:
        return b""  # an extent of a split image has none
    if header.descriptor_offset != DESCRIPTOR_OFFSET:
        findings.corrupt(f"descriptor at sector {header.descriptor_offset}, not at sector 1")
        return b""
    length = header.descriptor_size * SECTOR
    if not 0 < length <= window.size - SECTOR:
        findings.corrupt(f"descriptor of {header.descriptor_size} sectors")
        return b""
    if SECTOR + length > HEAD_LIMIT:
        findings.suspicious(f"descriptor of {header.descriptor_size} sectors is not read")
        return b""
    # QEMU leaves the place of it empty in the extents of a split image
    text, end, _ = window.head(min(SECTOR + length, _SHORT))[SECTOR:].partition(b"\0")
    return text if end else window.head(SECTOR + length)[SECTOR:].partition(b"\0")[0]


def _check_embedded(
    text: bytes, header: SparseExtentHeader, findings: Findings
) -> Descriptor | None:
    """Look in a sparse extent's own descriptor for what makes other programs open other files.

    None if it is not understood. It is told as suspicious: the data do not depend on it.
    """
    try:
        descriptor = parse(text)
    except FormatError as err:
        findings.suspicious(str(err))
        return None
    if descriptor.create_type not in SPARSE_TYPES:
        findings.suspicious(f"createType is {descriptor.create_type}, not one of a sparse extent")
    if len(descriptor.extents) != 1:
        findings.suspicious(f"the descriptor names {len(descriptor.extents)} extents, not one")
        return descriptor
    (extent,) = descriptor.extents
    # VMware's own tools write RDONLY into what they export.
    if extent.type is not ExtentType.SPARSE or extent.access is Access.NOACCESS:
        findings.suspicious("the extent is not a sparse one that can be read")
    if not is_plain(extent.name):
        findings.suspicious(f"the extent's name is no plain file name: {show(extent.name)}")
    if extent.sectors > header.capacity:
        findings.suspicious(f"the extent has {extent.sectors} sectors, more than the disk")
    hint = _HINT.search(text)
    if (hint[1] if hint and hint[1] else None) != descriptor.parent_hint:
        findings.suspicious("programs differ in what they read as the parent's name")
    return descriptor
