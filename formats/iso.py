"""ISO 9660 images: recognised, and checked for being whole.

Source: ECMA-119, section 8.4 (the primary volume descriptor).
"""

from __future__ import annotations

import struct
from dataclasses import replace

from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.reader import Reader
from storaged.formats.window import Window

#: Sector 16 of 2048 bytes: the first volume descriptor.
_DESCRIPTOR = 32768
_VOLUME_SPACE_SIZE = struct.Struct("<I")
_LOGICAL_BLOCK_SIZE = struct.Struct("<H")
_PRIMARY = 1
_SECTOR = 2048
#: How many volume descriptors are looked at.
_DESCRIPTORS = 32
_UDF = (b"NSR02", b"NSR03")


def inspect(window: Window) -> ImageInfo:
    """Say what a file with the volume descriptor's magic is. Bounded and total.

    The capacity is the file's size, as in libvirt.
    """
    findings = Findings()
    descriptor = window.at(_DESCRIPTOR, 512)
    if len(descriptor) < 512:
        findings.corrupt("truncated volume descriptor")
    elif descriptor[0] == _PRIMARY:
        (blocks,) = _VOLUME_SPACE_SIZE.unpack_from(descriptor, 80)
        (block_size,) = _LOGICAL_BLOCK_SIZE.unpack_from(descriptor, 128)
        if blocks * block_size > window.size:
            findings.suspicious(
                f"the volume is {blocks} blocks of {block_size} bytes, more than the file"
            )
    return findings.info("iso", window.size)


def describe(reader: Reader) -> ImageInfo:
    """Say what an ISO 9660 or UDF image is, and which of both it is. Bounded and total."""
    window = Window(reader.pread, reader.size)
    info = inspect(window)
    found = identifiers(reader)
    kinds = [
        name for name, there in (("iso9660", b"CD001" in found), ("udf", is_udf(found))) if there
    ]
    return replace(info, cluster_size=_SECTOR, subformat="+".join(kinds) or None)


def is_udf(found: frozenset[bytes]) -> bool:
    """Whether these identifiers make a UDF file system."""
    return bool(found.intersection(_UDF))


def identifiers(reader: Reader) -> frozenset[bytes]:
    """Return the identifiers of all volume descriptors."""
    data = reader.pread(_DESCRIPTORS * _SECTOR, _DESCRIPTOR)
    found = set()
    for start in range(0, len(data), _SECTOR):
        if not any(data[start : start + 7]):
            break
        found.add(data[start + 1 : start + 6])
    return frozenset(found)
