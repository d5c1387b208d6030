"""Parallels expandable images; those with the extended magic are what libvirt calls ploop.

Source: the Parallels disk format specification. All integers are little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.reader import Reader
from storaged.formats.record import U32, U64, Bytes16, Record
from storaged.formats.window import Window

MAGIC, EXTENDED_MAGIC = b"WithoutFreeSpace", b"WithouFreSpacExt"
VERSION = 2
IN_USE = 0x746F6E59
_SECTOR = 512
_BAT_OFFSET = 64
#: A cluster is at most 2 GiB less a sector, as in QEMU.
_MAX_TRACKS = 0x7FFFFFFF // _SECTOR


@dataclass(frozen=True)
class ParallelsHeader(Record):
    """The header in front of the block allocation table."""

    ORDER: ClassVar[str] = "<"

    magic: Bytes16
    version: U32
    heads: U32
    cylinders: U32
    tracks: U32
    bat_entries: U32
    nb_sectors: U64
    in_use: U32
    data_off: U32
    flags: U32
    ext_off: U64


def inspect(window: Window) -> ImageInfo:
    """Say what a file with the extended magic is. Bounded and total."""
    return _inspect("ploop", window.head(ParallelsHeader.length()), window.size)


def describe(reader: Reader) -> ImageInfo:
    """Say what a file with either magic is; QEMU calls both parallels. Bounded and total."""
    length = min(ParallelsHeader.length(), reader.size)
    return _inspect("parallels", reader.at(0, length, "header"), reader.size)


def _inspect(format: str, data: bytes, size: int) -> ImageInfo:
    findings = Findings()
    try:
        header = ParallelsHeader.unpack(data)
    except FormatError:
        findings.corrupt("truncated header")
        return findings.info(format, size)
    extended = header.magic == EXTENDED_MAGIC
    # The upper half of the number is not used by the first magic.
    sectors = header.nb_sectors if extended else header.nb_sectors & 0xFFFFFFFF
    capacity = sectors * _SECTOR
    if capacity >= 2**63:
        findings.corrupt(f"the disk is {sectors} sectors")
        capacity = size
    if header.version != VERSION:
        findings.unsupported(f"Parallels version {header.version}")
    if not 0 < header.tracks <= _MAX_TRACKS:
        findings.corrupt(f"blocks of {header.tracks} sectors")
    elif header.bat_entries * header.tracks < sectors:
        findings.corrupt(f"a table of {header.bat_entries} blocks is too small for the disk")
    if _BAT_OFFSET + 4 * header.bat_entries > size:
        findings.corrupt("the block allocation table reaches beyond the end of the file")
    if header.in_use == IN_USE:
        findings.suspicious("the image was not closed cleanly")
    return replace(
        findings.info(format, capacity), subformat="extended" if extended else "expandable"
    )
