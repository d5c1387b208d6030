"""VMDK hosted sparse extents: the header, the embedded descriptor, and what a probe says of them.

Source: VMware's Virtual Disk Format 1.1. All integers are little-endian, offsets are in sectors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntFlag
from typing import Annotated, ClassVar

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo
from storaged.formats.record import U16, U32, U64, Bytes4, Record
from storaged.formats.window import HEAD_LIMIT, Window

MAGIC = b"KDMV"
SECTOR = 512
#: ``gdOffset`` of a stream-optimized extent: the grain directory's place stands in the footer.
GD_AT_END = 2**64 - 1
#: Sector numbers in grain tables are 32 bits wide and the last grain must still have one.
MAX_CAPACITY = (2 << 40) - (64 << 10)
MIN_GRAIN, MAX_GRAIN = 8, 65536
GTES_PER_GT = 512
DESCRIPTOR_OFFSET = 1
#: What a hosted sparse extent can call itself.
CREATE_TYPES = (b"monolithicSparse", b"streamOptimized", b"twoGbMaxExtentSparse")
NO_PARENT = b"ffffffff"

_MAX_SECTORS = 2**63 // SECTOR - 1
_EXTENT = re.compile(rb'^(RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)[ \t]*(?:"([^"\n]*)")?', re.M)


class Flags(IntFlag):
    """``flags`` of the header."""

    NEWLINE_TEST = 1 << 0
    REDUNDANT_GD = 1 << 1
    ZEROED_GRAINS = 1 << 2
    COMPRESSED = 1 << 16
    MARKERS = 1 << 17


@dataclass(frozen=True)
class SparseExtentHeader(Record):
    """The first sector of a sparse extent, without its padding."""

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


NEWLINES = b"\n \r\n"


def inspect(window: Window) -> ImageInfo:
    """Say what a file with the sparse extent's magic is. Bounded and total."""
    findings = Findings()
    try:
        header = SparseExtentHeader.unpack(window.head(SparseExtentHeader.length()))
    except FormatError:
        findings.corrupt("truncated header")
        return findings.info("vmdk", window.size)
    if not 1 <= header.version <= 3:
        findings.unsupported(f"VMDK version {header.version}")
        return findings.info("vmdk", window.size)
    capacity = _capacity(header, window.size, findings)
    _check_geometry(header, window, findings)
    backing = _check_descriptor(header, window, findings)
    return ImageInfo(
        "vmdk",
        capacity,
        cluster_size=header.grain_size * SECTOR if _good_grain(header.grain_size) else 0,
        backing=backing,
        state=findings.state,
        reasons=tuple(findings.reasons),
    )


def _capacity(header: SparseExtentHeader, size: int, findings: Findings) -> int:
    if 0 < header.capacity <= _MAX_SECTORS:
        return header.capacity * SECTOR
    findings.corrupt(f"capacity is {header.capacity} sectors")
    return size


def _good_grain(sectors: int) -> bool:
    return MIN_GRAIN <= sectors <= MAX_GRAIN and not sectors & sectors - 1


def _check_geometry(header: SparseExtentHeader, window: Window, findings: Findings) -> None:
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
    if header.over_head * SECTOR > window.size:
        findings.corrupt(f"metadata end at sector {header.over_head}, beyond the end of the file")
    if header.gd_offset == GD_AT_END:
        _check_footer(header, window, findings)
        return
    directories = [("grain directory", header.gd_offset)]
    if header.flags & Flags.REDUNDANT_GD:
        directories.append(("redundant grain directory", header.rgd_offset))
    for name, offset in directories:
        if not 0 < offset * SECTOR < window.size:
            findings.corrupt(f"{name} at sector {offset} is outside the file")


def _check_footer(header: SparseExtentHeader, window: Window, findings: Findings) -> None:
    """Check the last but one sector: the header again, with the grain directory's place."""
    try:
        footer = SparseExtentHeader.unpack(window.tail(2 * SECTOR))
    except FormatError:
        findings.corrupt("no footer")
        return
    same = ("magic_number", "version", "capacity", "grain_size", "num_gtes_per_gt")
    if any(getattr(footer, name) != getattr(header, name) for name in same):
        findings.corrupt("no footer that agrees with the header")
    elif not 0 < footer.gd_offset * SECTOR < window.size:
        findings.corrupt(f"grain directory at sector {footer.gd_offset} is outside the file")


def _check_descriptor(
    header: SparseExtentHeader, window: Window, findings: Findings
) -> BackingRef | None:
    if not header.descriptor_offset and not header.descriptor_size:
        return None  # an extent of a split image has none
    if header.descriptor_offset != DESCRIPTOR_OFFSET:
        findings.corrupt(f"descriptor at sector {header.descriptor_offset}, not at sector 1")
        return None
    length = header.descriptor_size * SECTOR
    if not 0 < length <= window.size - SECTOR:
        findings.corrupt(f"descriptor of {header.descriptor_size} sectors")
        return None
    if SECTOR + length > HEAD_LIMIT:
        findings.suspicious(f"descriptor of {header.descriptor_size} sectors is not read")
        return None
    text = window.head(SECTOR + length)[SECTOR:].split(b"\0", 1)[0]
    if not text:
        return None  # QEMU leaves the place of it empty in the extents of a split image
    _check_text(text, findings)
    hint = re.search(rb'parentFileNameHint="([^"\n]*)"', text)
    return BackingRef(hint[1], "vmdk") if hint and hint[1] else None  # no parent is anything else


def _check_text(text: bytes, findings: Findings) -> None:
    """Look for what makes other programs open other files, or refuse the image."""
    kind = re.search(rb'^createType="([^"\n]*)"', text, re.M)
    if kind is None or kind[1] not in CREATE_TYPES:
        findings.suspicious("createType is not one of a sparse extent")
    for key in (rb"^CID=", rb"^parentCID="):
        if not re.search(key + rb"[0-9a-fA-F]{1,8}[ \t\r]*$", text, re.M):
            findings.suspicious(f"no valid {key[1:-1].decode()}")
    extents = _EXTENT.findall(text)
    if len(extents) != 1:
        findings.suspicious(f"the descriptor names {len(extents)} extents, not one")
    for access, extent, name in extents[:1]:
        # VMware's own tools write RDONLY into what they export.
        if extent != b"SPARSE" or access == b"NOACCESS":
            findings.suspicious("the extent is not a sparse one that can be read")
        if not name or name in (b".", b"..") or b"/" in name or b"\\" in name or b":" in name:
            findings.suspicious("the extent's name is no plain file name")
