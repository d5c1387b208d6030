"""Apple disk images (UDIF, dmg): recognised by their trailer and described.

Source: the trailer as Apple's tools write it. All integers are big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.reader import Reader
from storaged.formats.record import U32, U64, Bytes4, Record

MAGIC = b"koly"
VERSION = 4
TRAILER_SIZE = 512
_SECTOR = 512


@dataclass(frozen=True)
class Trailer(Record):
    """The last 512 bytes, as far as they matter here."""

    signature: Bytes4
    version: U32
    header_size: U32
    flags: U32
    running_data_fork_offset: U64
    data_fork_offset: U64
    data_fork_length: U64
    rsrc_fork_offset: U64
    rsrc_fork_length: U64
    segments: Annotated[bytes, "160s"]
    xml_offset: U64
    xml_length: U64
    rest: Annotated[bytes, "260s"]
    sector_count: U64


def is_trailer(data: bytes) -> bool:
    """Whether 512 bytes are more than the magic by chance: version and length are right, too."""
    if len(data) < TRAILER_SIZE or not data.startswith(MAGIC):
        return False
    trailer = Trailer.unpack(data)
    return (trailer.version, trailer.header_size) == (VERSION, TRAILER_SIZE)


def describe(reader: Reader) -> ImageInfo:
    """Say what a file with the trailer's magic is. Bounded and total: no property list is read."""
    findings = Findings()
    try:
        data = reader.at(reader.size - TRAILER_SIZE, TRAILER_SIZE, "trailer")
        trailer = Trailer.unpack(data)
    except FormatError:
        findings.corrupt("truncated trailer")
        return findings.info("dmg", reader.size)
    if not is_trailer(data):
        findings.unsupported(f"dmg trailer of version {trailer.version}")
        return findings.info("dmg", reader.size)
    end = reader.size - TRAILER_SIZE
    for name, offset, length in (
        ("data", trailer.data_fork_offset, trailer.data_fork_length),
        ("resources", trailer.rsrc_fork_offset, trailer.rsrc_fork_length),
        ("property list", trailer.xml_offset, trailer.xml_length),
    ):
        if offset + length > end:
            findings.corrupt(f"the {name} at {offset} are not within the file")
    capacity = trailer.sector_count * _SECTOR
    if capacity >= 2**63:
        findings.corrupt(f"the disk is {trailer.sector_count} sectors")
        capacity = reader.size
    return findings.info("dmg", capacity)
