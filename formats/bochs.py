"""Growing images of the Bochs emulator: recognised and described.

Source: the header as Bochs documents it. All integers are little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.reader import Reader
from storaged.formats.record import U32, Bytes16, Bytes32, Record

MAGIC = b"Bochs Virtual HD Image"
VERSION_1, VERSION_2 = 0x00010000, 0x00020000
#: QEMU's limit: a catalog of 4 MiB.
MAX_CATALOG = 1 << 20
_MAX_EXTENT = 8 << 20
_HEADER_SIZE = 512


@dataclass(frozen=True)
class BochsHeader(Record):
    """The header; in version 2 the disk's size stands four bytes further on."""

    ORDER: ClassVar[str] = "<"

    magic: Bytes32
    type: Bytes16
    subtype: Bytes16
    version: U32
    header: U32
    catalog: U32
    bitmap: U32
    extent: U32
    disk: Annotated[bytes, "12s"]


def describe(reader: Reader) -> ImageInfo:
    """Say what a file with Bochs's magic is. Bounded and total."""
    findings = Findings()
    try:
        header = reader.record(BochsHeader, 0, "header")
    except FormatError:
        findings.corrupt("truncated header")
        return findings.info("bochs", reader.size)
    kinds = tuple(field.rstrip(b"\0") for field in (header.type, header.subtype))
    if header.version not in (VERSION_1, VERSION_2) or kinds != (b"Redolog", b"Growing"):
        findings.unsupported(f"Bochs image of version {header.version:#x}, or not growing")
        return findings.info("bochs", reader.size)
    at = 4 if header.version == VERSION_2 else 0
    capacity = int.from_bytes(header.disk[at : at + 8], "little")
    if capacity >= 2**63:
        findings.corrupt(f"disk size is {capacity}")
        capacity = reader.size
    if not 512 <= header.extent <= _MAX_EXTENT or header.extent & header.extent - 1:
        findings.corrupt(f"extents of {header.extent} bytes")
    elif header.catalog * header.extent < capacity:
        findings.corrupt(f"a catalog of {header.catalog} entries is too small for the disk")
    if header.catalog > MAX_CATALOG:
        findings.corrupt(f"a catalog of {header.catalog} entries")
    if header.header < _HEADER_SIZE or header.header + 4 * header.catalog > reader.size:
        findings.corrupt(f"the catalog at {header.header} is not within the file")
    return findings.info("bochs", capacity)
