"""VirtualBox disk images.

Source: the header as VirtualBox and QEMU document it. All integers are little-endian.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Annotated, ClassVar

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.reader import Reader
from storaged.formats.record import U32, U64, Bytes16, Record
from storaged.formats.window import Window

VERSION = 0x00010001
#: The only block size that VirtualBox and QEMU use.
BLOCK_SIZE = 1 << 20
#: QEMU's limit: the block map stays below 4 GiB.
MAX_BLOCKS = 0x3FFFFFFF
_SECTOR = 512
_NO_UUID = bytes(16)
#: Map entries from here on mean zeros, or nothing yet.
_ZERO_BLOCK = 0xFFFFFFFE
#: How much of the map is looked at, in bytes: 64 GiB of disk.
_MAP_LIMIT = 256 << 10


class ImageType(IntEnum):
    """``image_type`` of the header."""

    DYNAMIC = 1
    STATIC = 2
    UNDO = 3
    DIFFERENCING = 4


_SUBFORMATS = MappingProxyType({kind.value: kind.name.lower() for kind in ImageType})


@dataclass(frozen=True)
class VdiHeader(Record):
    """The first sector, without its padding."""

    ORDER: ClassVar[str] = "<"

    text: Annotated[bytes, "64s"]
    signature: U32
    version: U32
    header_size: U32
    image_type: U32
    image_flags: U32
    description: Annotated[bytes, "256s"]
    offset_bmap: U32
    offset_data: U32
    cylinders: U32
    heads: U32
    sectors: U32
    sector_size: U32
    unused1: U32
    disk_size: U64
    block_size: U32
    block_extra: U32
    blocks_in_image: U32
    blocks_allocated: U32
    uuid_image: Bytes16
    uuid_last_snap: Bytes16
    uuid_link: Bytes16
    uuid_parent: Bytes16


def inspect(window: Window) -> ImageInfo:
    """Say what a file with VDI's magic is. Bounded and total."""
    findings = Findings()
    try:
        header = VdiHeader.unpack(window.head(VdiHeader.length()))
    except FormatError:
        findings.corrupt("truncated header")
        return findings.info("vdi", window.size)
    if header.version != VERSION:
        findings.unsupported(f"VDI version {header.version >> 16}.{header.version & 0xFFFF}")
        return findings.info("vdi", window.size)
    capacity = header.disk_size
    if capacity > MAX_BLOCKS * BLOCK_SIZE:
        findings.corrupt(f"disk size is {capacity}")
        capacity = window.size
    _check_type(header, findings)
    _check_blocks(header, window.size, findings)
    return replace(findings.info("vdi", capacity), subformat=_SUBFORMATS.get(header.image_type))


def describe(reader: Reader) -> ImageInfo:
    """Say what a file with VDI's magic is, with a look at its block map. Bounded and total."""
    window = Window(reader.pread, reader.size)
    info = inspect(window)
    if info.state in (ImageState.CORRUPT, ImageState.UNSUPPORTED):
        return info
    header = reader.record(VdiHeader, 0, "header")
    length = min(4 * header.blocks_in_image, _MAP_LIMIT)
    entries = array("I", reader.at(header.offset_bmap, length, "block map"))
    if sys.byteorder == "big":
        entries.byteswap()
    last = max((entry for entry in entries if entry < _ZERO_BLOCK), default=None)
    if last is None or header.offset_data + last * BLOCK_SIZE < reader.size:
        return info
    reason = f"block {last} of the map lies beyond the end of the file"
    return replace(info, state=ImageState.CORRUPT, reasons=(*info.reasons, reason))


def _check_type(header: VdiHeader, findings: Findings) -> None:
    if header.image_type in (ImageType.UNDO, ImageType.DIFFERENCING):
        findings.unsupported("a differencing image: part of its data lie in another file")
    elif header.image_type not in tuple(ImageType):
        findings.unsupported(f"image type {header.image_type}")
    elif header.uuid_parent != _NO_UUID or header.uuid_link != _NO_UUID:
        findings.unsupported("the image is linked to another one")


def _check_blocks(header: VdiHeader, size: int, findings: Findings) -> None:
    if header.sector_size != _SECTOR:
        findings.unsupported(f"sector size {header.sector_size}")
    if header.block_size != BLOCK_SIZE:
        findings.unsupported(f"block size {header.block_size}")
    elif header.blocks_in_image * BLOCK_SIZE < header.disk_size:
        findings.corrupt(f"{header.blocks_in_image} blocks are too few for the disk")
    if header.blocks_allocated > header.blocks_in_image:
        findings.corrupt(f"{header.blocks_allocated} blocks allocated, more than there are")
    for name, offset in (("block map", header.offset_bmap), ("data", header.offset_data)):
        if offset < _SECTOR or offset % _SECTOR:
            findings.corrupt(f"{name} at {offset}, not behind the header or not aligned")
    if header.offset_bmap + 4 * header.blocks_in_image > size:
        findings.corrupt("the block map reaches beyond the end of the file")
