"""VHDX images of Hyper-V: recognised and described, neither read nor written here.

Source: Microsoft's VHDX format specification, MS-VHDX. All integers are little-endian.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import ClassVar

from storaged.formats.crc32c import crc32c
from storaged.formats.errors import CorruptImage, FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo
from storaged.formats.reader import Reader
from storaged.formats.record import U16, U32, U64, Bytes4, Bytes8, Bytes16, Record

MAGIC = b"vhdxfile"
MAX_CAPACITY = 64 << 40
MIN_BLOCK, MAX_BLOCK = 1 << 20, 256 << 20
MAX_ENTRIES = 2047
_MIB = 1 << 20
_HEADERS = (64 << 10, 128 << 10)
_HEADER_SIZE = 4096
_REGION_TABLES = (192 << 10, 256 << 10)
_TABLE_SIZE = 64 << 10
_VERSION = 1
_REQUIRED_REGION = 1
_REQUIRED_ITEM = 4
_LEAVE_ALLOCATED, _HAS_PARENT = 1, 2
#: No item but a parent locator is longer than this.
_MAX_LOCATOR = 64 << 10


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


BAT = _guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA = _guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = _guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_DISK_SIZE = _guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
PAGE_83_DATA = _guid("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_SIZE = _guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_SIZE = _guid("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = _guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
_KNOWN_ITEMS = frozenset(
    (
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        PAGE_83_DATA,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
        PARENT_LOCATOR,
    )
)
#: Keys of a parent locator, the one that a person would name first.
_PARENT_KEYS = ("relative_path", "absolute_win32_path", "volume_path")


@dataclass(frozen=True)
class VhdxHeader(Record):
    """One of the two headers; the valid one with the higher sequence number counts."""

    ORDER: ClassVar[str] = "<"

    signature: Bytes4
    checksum: U32
    sequence_number: U64
    file_write_guid: Bytes16
    data_write_guid: Bytes16
    log_guid: Bytes16
    log_version: U16
    version: U16
    log_length: U32
    log_offset: U64


@dataclass(frozen=True)
class TableHeader(Record):
    """The start of a region table."""

    ORDER: ClassVar[str] = "<"

    signature: Bytes4
    checksum: U32
    entry_count: U32
    reserved: U32


@dataclass(frozen=True)
class RegionEntry(Record):
    """Where a region lies."""

    ORDER: ClassVar[str] = "<"

    guid: Bytes16
    file_offset: U64
    size: U32
    required: U32


@dataclass(frozen=True)
class MetadataHeader(Record):
    """The start of the metadata region."""

    ORDER: ClassVar[str] = "<"

    signature: Bytes8
    reserved: U16
    entry_count: U16
    reserved2: Bytes16
    reserved3: U32


@dataclass(frozen=True)
class MetadataEntry(Record):
    """Where an item lies, from the start of the metadata region."""

    ORDER: ClassVar[str] = "<"

    item_id: Bytes16
    offset: U32
    size: U32
    flags: U32
    reserved: U32


def describe(reader: Reader) -> ImageInfo:
    """Say what a file with VHDX's magic is. Bounded and total."""
    findings = Findings()
    try:
        _check_header(reader, findings)
        regions = _regions(reader, findings)
        items = _items(reader, regions[METADATA], findings)
        return _info(reader, regions[BAT], items, findings)
    except FormatError as err:
        findings.corrupt(str(err))
        return findings.info("vhdx", reader.size)


def _checked(data: bytes, signature: bytes) -> bool:
    """Whether a structure has its signature and its checksum, which lies behind it."""
    if not data.startswith(signature):
        return False
    (stored,) = struct.unpack_from("<I", data, 4)
    return bool(crc32c(data[:4] + bytes(4) + data[8:]) == stored)


def _check_header(reader: Reader, findings: Findings) -> None:
    headers = []
    for offset in _HEADERS:
        data = reader.at(offset, _HEADER_SIZE, "header")
        if _checked(data, b"head"):
            headers.append(VhdxHeader.unpack(data))
    if not headers:
        raise CorruptImage("no valid header")
    header = max(headers, key=lambda header: header.sequence_number)
    if header.version != _VERSION:
        findings.unsupported(f"VHDX version {header.version}")
    if any(header.log_guid):
        findings.suspicious("the image was not closed cleanly: its log has to be replayed")
    if header.log_offset % _MIB or header.log_offset + header.log_length > reader.size:
        findings.corrupt(f"the log at {header.log_offset} is not within the file")


def _regions(reader: Reader, findings: Findings) -> dict[bytes, RegionEntry]:
    for offset in _REGION_TABLES:
        data = reader.at(offset, _TABLE_SIZE, "region table")
        if _checked(data, b"regi"):
            break
        findings.suspicious(f"the region table at {offset} is not valid")
    else:
        raise CorruptImage("no valid region table")
    count = TableHeader.unpack(data).entry_count
    if count > MAX_ENTRIES:
        raise CorruptImage(f"a region table of {count} entries")
    regions: dict[bytes, RegionEntry] = {}
    for number in range(count):
        at = TableHeader.length() + number * RegionEntry.length()
        region = RegionEntry.unpack(data, at)
        if region.guid in regions:
            raise CorruptImage(f"region {_name(region.guid)} is there twice")
        if region.file_offset < _MIB or region.file_offset % _MIB:
            raise CorruptImage(f"region {_name(region.guid)} at {region.file_offset}")
        if region.file_offset + region.size > reader.size:
            raise CorruptImage(f"region {_name(region.guid)} reaches beyond the end of the file")
        if region.required & _REQUIRED_REGION and region.guid not in (BAT, METADATA):
            findings.unsupported(f"unknown region {_name(region.guid)}")
        regions[region.guid] = region
    if BAT not in regions or METADATA not in regions:
        raise CorruptImage("no block allocation table or no metadata")
    return regions


def _items(reader: Reader, region: RegionEntry, findings: Findings) -> dict[bytes, bytes]:
    start = region.file_offset
    header = reader.record(MetadataHeader, start, "metadata table")
    if header.signature != b"metadata" or header.entry_count > MAX_ENTRIES:
        raise CorruptImage("the metadata table is not valid")
    length = MetadataEntry.length()
    table = reader.at(start + MetadataHeader.length(), header.entry_count * length, "metadata")
    items: dict[bytes, bytes] = {}
    for number in range(header.entry_count):
        entry = MetadataEntry.unpack(table, number * length)
        if entry.item_id in items:
            raise CorruptImage(f"metadata item {_name(entry.item_id)} is there twice")
        if entry.item_id in _KNOWN_ITEMS:
            if entry.size > _MAX_LOCATOR or entry.offset + entry.size > region.size:
                raise CorruptImage(f"metadata item {_name(entry.item_id)} at {entry.offset}")
            items[entry.item_id] = reader.at(start + entry.offset, entry.size, "metadata item")
        elif entry.flags & _REQUIRED_ITEM:
            findings.unsupported(f"unknown metadata item {_name(entry.item_id)}")
    return items


def _info(
    reader: Reader, bat: RegionEntry, items: dict[bytes, bytes], findings: Findings
) -> ImageInfo:
    block, flags = _numbers(items, FILE_PARAMETERS, "<II")
    (capacity,) = _numbers(items, VIRTUAL_DISK_SIZE, "<Q")
    (sector,) = _numbers(items, LOGICAL_SECTOR_SIZE, "<I")
    if not MIN_BLOCK <= block <= MAX_BLOCK or block & block - 1:
        raise CorruptImage(f"block size is {block}")
    if sector not in (512, 4096):
        raise CorruptImage(f"logical sectors of {sector} bytes")
    if capacity > MAX_CAPACITY or capacity % sector:
        raise CorruptImage(f"virtual disk size is {capacity}")
    blocks, ratio = -(-capacity // block), (sector << 23) // block
    parent = bool(flags & _HAS_PARENT)
    entries = -(-blocks // ratio) * (ratio + 1) if parent else blocks + max(blocks - 1, 0) // ratio
    if 8 * entries > bat.size:
        findings.corrupt(f"a block allocation table of {bat.size} bytes is too small for the disk")
    backing = None
    if parent:
        findings.unsupported("a differencing image: part of its data lie in another file")
        backing = _parent(items.get(PARENT_LOCATOR, b""))
    return ImageInfo(
        "vhdx",
        capacity,
        cluster_size=block,
        backing=backing,
        subformat=(
            "differencing" if parent else "fixed" if flags & _LEAVE_ALLOCATED else "dynamic"
        ),
        state=findings.state,
        reasons=tuple(findings.reasons),
    )


def _numbers(items: dict[bytes, bytes], item: bytes, layout: str) -> tuple[int, ...]:
    data = items.get(item, b"")
    if len(data) != struct.calcsize(layout):
        raise CorruptImage(f"metadata item {_name(item)} is missing or of a wrong length")
    return struct.unpack(layout, data)


def _parent(locator: bytes) -> BackingRef | None:
    """Return the parent's name from its locator: a table of keys and values in UTF-16."""
    if len(locator) < 20:
        raise CorruptImage("no parent locator")
    (count,) = struct.unpack_from("<H", locator, 18)
    if 20 + 12 * count > len(locator):
        raise CorruptImage(f"a parent locator of {count} entries")
    found = {}
    for number in range(count):
        key, value, key_length, value_length = struct.unpack_from(
            "<IIHH", locator, 20 + 12 * number
        )
        name = locator[key : key + key_length].decode("utf-16-le", "replace")
        found[name] = locator[value : value + value_length].decode("utf-16-le", "replace")
    for name in _PARENT_KEYS:
        if found.get(name):
            return BackingRef(found[name].encode(errors="replace"), "vhdx")
    return None


def _name(guid: bytes) -> str:
    return str(uuid.UUID(bytes_le=guid)).upper()
