"""Compressed loop images (cloop) of version 2: recognised and described.

Source: the header as the cloop driver has it: a shell script, then big-endian integers.
"""

from __future__ import annotations

import struct

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.reader import Reader

MAGIC = b"#!/bin/sh\n#V2.0 Format"
#: QEMU's limits.
MAX_BLOCK = 64 << 20
MAX_OFFSETS = 512 << 20
_SECTOR = 512
_HEADER = struct.Struct(">II")
_HEADER_AT = 128


def describe(reader: Reader) -> ImageInfo:
    """Say what a file with cloop's magic is. Bounded and total."""
    findings = Findings()
    try:
        data = reader.at(_HEADER_AT, _HEADER.size, "header")
    except FormatError:
        findings.corrupt("truncated header")
        return findings.info("cloop", reader.size)
    block, count = _HEADER.unpack(data)
    if not 0 < block <= MAX_BLOCK or block % _SECTOR:
        findings.corrupt(f"blocks of {block} bytes")
        return findings.info("cloop", reader.size)
    offsets = 8 * (count + 1)
    if offsets > MAX_OFFSETS or _HEADER_AT + _HEADER.size + offsets > reader.size:
        findings.corrupt(f"a table of {count} blocks is not within the file")
    return findings.info("cloop", block * count)
