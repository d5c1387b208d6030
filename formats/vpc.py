"""VHD images, "vpc" in libvirt and QEMU. Those of fixed size have a footer only.

Source: Microsoft's Virtual Hard Disk Image Format Specification 1.0. Integers are big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Annotated

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.formats.reader import Reader
from storaged.formats.record import U8, U16, U32, U64, Bytes4, Bytes8, Bytes16, Record
from storaged.formats.window import HEAD_LIMIT, Window

MAGIC = b"conectix"
DYNAMIC_MAGIC = b"cxsparse"
VERSION = 0x00010000
#: 65535 cylinders, 16 heads, 255 sectors of 512 bytes and what Microsoft allows beyond.
MAX_CAPACITY = 2040 << 30
FOOTER_SIZE = 512
_CHECKSUM = 64
_DYNAMIC_SIZE = 1024
_DYNAMIC_CHECKSUM = 36
_SECTOR = 512
#: Where the dynamic disk header has the parent's name, in UTF-16.
_PARENT_NAME, _PARENT_NAME_SIZE = 64, 512
#: Programs that keep the disk's size in the footer as it is; for others its geometry counts.
_EXACT = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")
#: The largest geometry stands for any larger disk.
_MAX_GEOMETRY = 65535 * 16 * 255


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


def virtual_size(footer: Footer) -> int:
    """Return the size that a guest sees, in bytes, as QEMU and Virtual PC tell it."""
    sectors = footer.cylinders * footer.heads * footer.sectors_per_track
    if footer.creator_application in _EXACT or sectors == _MAX_GEOMETRY:
        return footer.current_size // _SECTOR * _SECTOR
    return sectors * _SECTOR


def is_footer(data: bytes) -> bool:
    """Whether 512 bytes are a footer by their checksum, not the magic alone."""
    if len(data) < FOOTER_SIZE or not data.startswith(MAGIC):
        return False
    return checksum(data, _CHECKSUM) == Footer.unpack(data).checksum


def describe(reader: Reader) -> ImageInfo:
    """Say what a VHD of any kind is, and its size as a guest sees it. Bounded and total."""
    findings = Findings()
    try:
        head = reader.at(0, min(FOOTER_SIZE, reader.size), "footer")
        if head.startswith(MAGIC):
            return _describe_sparse(reader, Footer.unpack(head), findings)
        return _describe_fixed(reader, findings)
    except FormatError as err:
        findings.corrupt(str(err))
        return findings.info("vpc", reader.size)


def _describe_sparse(reader: Reader, footer: Footer, findings: Findings) -> ImageInfo:
    window = Window(reader.pread, reader.size)
    info = inspect(window)
    findings.reasons, findings.state = list(info.reasons), info.state
    if info.state is ImageState.UNSUPPORTED and footer.file_format_version != VERSION:
        return info
    backing = None
    if footer.disk_type == DiskType.DIFFERENCING:
        start = footer.data_offset + _PARENT_NAME
        name = reader.at(start, _PARENT_NAME_SIZE, "parent's name").decode("utf-16-be", "replace")
        name = name.split("\0", 1)[0]
        backing = BackingRef(name.encode(errors="replace"), "vpc") if name else None
    kind = "differencing" if footer.disk_type == DiskType.DIFFERENCING else "dynamic"
    return replace(
        info,
        capacity=_within_limits(virtual_size(footer), reader.size, findings),
        subformat=kind,
        backing=backing,
        state=findings.state,
        reasons=tuple(findings.reasons),
    )


def _describe_fixed(reader: Reader, findings: Findings) -> ImageInfo:
    data = reader.at(reader.size - FOOTER_SIZE, FOOTER_SIZE, "footer")
    footer = Footer.unpack(data)
    capacity = _within_limits(virtual_size(footer), reader.size, findings)
    if not is_footer(data):
        findings.corrupt("the footer's checksum is wrong")
    if footer.file_format_version != VERSION:
        findings.unsupported(f"VHD version {footer.file_format_version:#x}")
    if footer.disk_type != DiskType.FIXED:
        findings.corrupt(f"disk type {footer.disk_type} without a footer at the start")
    elif capacity > reader.size - FOOTER_SIZE:
        findings.corrupt(f"the disk is {capacity} bytes, more than the file")
    return replace(findings.info("vpc", capacity), subformat="fixed")


def _within_limits(capacity: int, size: int, findings: Findings) -> int:
    if capacity <= MAX_CAPACITY:
        return capacity
    findings.corrupt(f"the disk is {capacity} bytes")
    return size


def inspect(window: Window) -> ImageInfo:
    """Say what a file that starts with a VHD footer is. Bounded and total.

    The capacity is the footer's original size, as in libvirt.
    """
    findings = Findings()
    data = window.head(FOOTER_SIZE)
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
    if len(data) < FOOTER_SIZE or checksum(data, _CHECKSUM) != footer.checksum:
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
