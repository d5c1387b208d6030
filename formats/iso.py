"""ISO 9660 images: recognised, and checked for being whole.

Source: ECMA-119, section 8.4 (the primary volume descriptor).
"""

from __future__ import annotations

import struct

from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.window import Window

#: Sector 16 of 2048 bytes: the first volume descriptor.
_DESCRIPTOR = 32768
_VOLUME_SPACE_SIZE = struct.Struct("<I")
_LOGICAL_BLOCK_SIZE = struct.Struct("<H")
_PRIMARY = 1


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
