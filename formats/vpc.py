"""VHD images that are not of fixed size ("vpc" in libvirt and QEMU).

Source: Microsoft's Virtual Hard Disk Image Format Specification 1.0. Integers are big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.record import U8, U16, U32, U64, Bytes4, Bytes8, Bytes16, Record
from storaged.formats.window import HEAD_LIMIT, Window

MAGIC = b"conectix"
DYNAMIC_MAGIC = b"cxsparse"
VERSION = 0x00010000
#: 65535 cylinders, 16 heads, 255 sectors of 512 bytes and what Microsoft allows beyond.
MAX_CAPACITY = 2040 << 30
_FOOTER_SIZE = 512
_CHECKSUM = 64
_DYNAMIC_SIZE = 1024
_DYNAMIC_CHECKSUM = 36


class DiskType(IntEnum):
    """``disk_type`` of the footer."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


@dataclass(frozen=True)
class Footer(Record):
    """The footer, whose copy opens a dynamic image; without the reserved rest."""

    cookie: Bytes8
    features: U32
    file_format_version: U32
    data_offset: U64
    time_stamp: U32
    creator_application: Bytes4
    creator_version: U32
    creator_host_os: Bytes4
    original_size: U64
    current_size: U64
    cylinders: U16
    heads: U8
    sectors_per_track: U8
    disk_type: U32
    checksum: U32
    unique_id: Bytes16
    saved_state: U8


@dataclass(frozen=True)
class DynamicHeader(Record):
    """The dynamic disk header, up to the parent's facts."""

    cookie: Bytes8
    data_offset: U64
    table_offset: U64
    header_version: U32
    max_table_entries: U32
    block_size: U32
    checksum: U32
    parent_unique_id: Annotated[bytes, "16s"]


def checksum(data: bytes, at: int) -> int:
    """Return the complement of the sum of all bytes, the checksum at *at* taken as zero."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def inspect(window: Window) -> ImageInfo:
    """Say what a file that starts with a VHD footer is. Bounded and total.

    The capacity is the footer's original size, as in libvirt.
    """
    findings = Findings()
    data = window.head(_FOOTER_SIZE)
    try:
        footer = Footer.unpack(data)
    except FormatError:
        findings.corrupt("truncated footer")
        return findings.info("vpc", window.size)
    if footer.file_format_version != VERSION:
        findings.unsupported(f"VHD version {footer.file_format_version:#x}")
        return findings.info("vpc", window.size)
    capacity = footer.original_size
    if not 0 < capacity <= MAX_CAPACITY:
        findings.corrupt(f"original size is {capacity}")
        capacity = window.size
    if len(data) < _FOOTER_SIZE or checksum(data, _CHECKSUM) != footer.checksum:
        findings.corrupt("the footer's checksum is wrong")
    if footer.disk_type == DiskType.DIFFERENCING:
        findings.unsupported("a differencing image: part of its data lie in another file")
    elif footer.disk_type != DiskType.DYNAMIC:
        findings.corrupt(f"disk type {footer.disk_type} with a footer at the start")
    _check_dynamic(footer, window, findings)
    return findings.info("vpc", capacity)


def _check_dynamic(footer: Footer, window: Window, findings: Findings) -> None:
    offset = footer.data_offset
    if offset > HEAD_LIMIT - _DYNAMIC_SIZE:
        findings.suspicious(f"dynamic disk header at {offset}, too far from the start")
        return
    data = window.at(offset, _DYNAMIC_SIZE)
    if len(data) < _DYNAMIC_SIZE or not data.startswith(DYNAMIC_MAGIC):
        findings.corrupt(f"no dynamic disk header at {offset}")
        return
    header = DynamicHeader.unpack(data)
    if checksum(data, _DYNAMIC_CHECKSUM) != header.checksum:
        findings.corrupt("the dynamic disk header's checksum is wrong")
    size = header.block_size
    if size < 512 or size & size - 1:
        findings.corrupt(f"block size is {size}")
    elif header.max_table_entries * size < footer.current_size:
        findings.corrupt(f"a table of {header.max_table_entries} blocks is too small for the disk")
    if header.table_offset + 4 * header.max_table_entries > window.size:
        findings.corrupt("the block allocation table reaches beyond the end of the file")
