"""LUKS 2 containers: described from their JSON text, neither opened nor made here.

Source: the LUKS2 On-Disk Format Specification 1.1. Integers of the binary header are big-endian.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

from storaged.formats.errors import CorruptImage, FormatError
from storaged.formats.findings import Findings
from storaged.formats.handle import Handle
from storaged.formats.image import ImageInfo
from storaged.formats.reader import Reader
from storaged.formats.record import U16, U64, Bytes32, Record

MAGIC = b"LUKS\xba\xbe"
SECOND_MAGIC = b"SKUL\xba\xbe"
VERSION = 2
_BINARY = 4096
#: Header and JSON text together: from 16 KiB to 4 MiB in powers of two; the second copy's place.
SIZES = tuple(1 << bits for bits in range(14, 23))
_CHECKSUM_AT = 448
_MAX_SEGMENTS = 32
#: A few KiB are usual; parsed, hostile JSON takes thirty times its length.
_MAX_TEXT = 256 << 10


@dataclass(frozen=True)
class Luks2Header(Record):
    """The binary header, of 4096 bytes with its padding."""

    magic: Annotated[bytes, "6s"]
    version: U16
    hdr_size: U64
    seqid: U64
    label: Annotated[bytes, "48s"]
    csum_alg: Bytes32
    salt: Annotated[bytes, "64s"]
    uuid: Annotated[bytes, "40s"]
    subsystem: Annotated[bytes, "48s"]
    hdr_offset: U64
    padding: Annotated[bytes, "184s"]
    csum: Annotated[bytes, "64s"]


def describe(handle: Handle) -> ImageInfo:
    """Say what a LUKS 2 container is and how much it holds. Total; reads at most 8 MiB.

    The format is ``luks``, the state UNSUPPORTED at best: nothing here opens it. The capacity is
    the length of its data, the file's size if that cannot be told.

    :raise OSError: if it cannot be read.
    """
    findings = Findings()
    findings.unsupported("LUKS version 2: it is not opened here")
    reader = Reader(handle, 2 * SIZES[-1])
    capacity = reader.size
    try:
        capacity = _capacity(_metadata(reader, findings), reader.size)
    except FormatError as err:
        findings.corrupt(str(err))
    return ImageInfo(
        "luks",
        capacity,
        encryption="luks2",
        subformat="luks2",
        state=findings.state,
        reasons=tuple(findings.reasons),
    )


def _metadata(reader: Reader, findings: Findings) -> dict[str, Any]:
    """Return the JSON object of the first header that is valid."""
    try:
        header, text = _header(reader, 0, MAGIC)
    except CorruptImage as err:
        findings.corrupt(str(err))
        header, text = _second(reader)
    if header.version != VERSION:
        raise CorruptImage(f"LUKS version {header.version}")
    text = text.split(b"\0", 1)[0]
    if len(text) > _MAX_TEXT:
        raise CorruptImage(f"a JSON text of {len(text)} bytes")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise CorruptImage("the JSON text cannot be read") from err
    if not isinstance(metadata, dict):
        raise CorruptImage("the JSON text is no object")
    return metadata


def _second(reader: Reader) -> tuple[Luks2Header, bytes]:
    for offset in SIZES:
        if offset + _BINARY <= reader.size:
            magic = reader.at(offset, len(SECOND_MAGIC), "second header")
            if magic == SECOND_MAGIC:
                return _header(reader, offset, SECOND_MAGIC)
    raise CorruptImage("no second header")


def _header(reader: Reader, offset: int, magic: bytes) -> tuple[Luks2Header, bytes]:
    data = reader.at(offset, _BINARY, "header")
    header = Luks2Header.unpack(data)
    if header.magic != magic or header.hdr_offset != offset:
        raise CorruptImage(f"no header at {offset}")
    if header.hdr_size not in SIZES:
        raise CorruptImage(f"a header of {header.hdr_size} bytes")
    text = reader.at(offset + _BINARY, header.hdr_size - _BINARY, "JSON text")
    algorithm = header.csum_alg.rstrip(b"\0")
    if algorithm not in (b"sha256", b"sha1", b"sha512"):
        raise CorruptImage("the header's checksum is of an unknown kind")
    total = hashlib.new(algorithm.decode(), data[:_CHECKSUM_AT] + bytes(64) + data[512:] + text)
    if total.digest() != header.csum[: total.digest_size]:
        raise CorruptImage(f"the checksum of the header at {offset} is wrong")
    return header, text


def _capacity(metadata: dict[str, Any], size: int) -> int:
    """Return the length of all data segments together."""
    segments = metadata.get("segments")
    if not isinstance(segments, dict) or not 0 < len(segments) <= _MAX_SEGMENTS:
        raise CorruptImage("the JSON text names no data segments")
    total = 0
    for segment in segments.values():
        if not isinstance(segment, dict):
            raise CorruptImage("a data segment is no object")
        offset = _number(segment.get("offset"))
        length = segment.get("size")
        if offset > size:
            raise CorruptImage(f"a data segment at {offset} is not within the file")
        total += size - offset if length == "dynamic" else _number(length)
    if total >= 2**63:
        raise CorruptImage(f"data segments of {total} bytes")
    return total


def _number(value: object) -> int:
    """Return a number, which the format keeps as text."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 20:
        raise CorruptImage("a data segment without a place or a length")
    return int(value)
