"""Which formats an image could be: magic numbers, versions and libvirt's order of asking.

Source: libvirt's behaviour for the formats it knows; the formats' specifications for the others.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from storaged.formats.window import Window

ISO_OFFSET = 32769
ISO_MAGIC = b"CD001"
VDI_OFFSET = 64
VDI_MAGIC = b"\x7f\x10\xda\xbe"
LUKS_MAGIC = b"LUKS\xba\xbe"


class Signature(NamedTuple):
    """How a format is recognised."""

    format: str
    offset: int
    magic: bytes
    #: layout and offset of the version field, None where the format has none
    version: tuple[struct.Struct, int] | None = None
    accepted: tuple[int, ...] = ()


_BE = struct.Struct(">I")
_LE = struct.Struct("<I")

#: In libvirt's order: the first that matches names the format.
SIGNATURES = (
    Signature("iso", ISO_OFFSET, ISO_MAGIC),
    Signature("vpc", 0, b"conectix", (_BE, 12), (0x00010000,)),
    Signature("vdi", VDI_OFFSET, VDI_MAGIC, (_LE, 68), (0x00010001,)),
    Signature("ploop", 0, b"WithouFreSpacExt"),
    Signature("cow", 0, b"OOOM", (_BE, 4), (2,)),
    # libvirt compares three bytes of these; the fourth belongs to the magic all the same.
    Signature("qcow", 0, b"QFI", (_BE, 4), (1,)),
    Signature("qcow2", 0, b"QFI", (_BE, 4), (2, 3)),
    Signature("qed", 0, b"QED"),
    Signature("vmdk", 0, b"KDMV", (_LE, 4), (1, 2, 3)),
)


class Foreign(NamedTuple):
    """A format that libvirt's volumes cannot have: such a file is listed as raw."""

    magic: bytes
    name: str
    #: what the format is called where it has a name of its own
    format: str


#: At the start of a file.
FOREIGN = (
    Foreign(b"vhdxfile", "a VHDX image", "vhdx"),
    Foreign(b"WithoutFreeSpace", "a Parallels image", "parallels"),
    Foreign(b"Bochs Virtual HD Image", "a Bochs image", "bochs"),
    Foreign(b"#!/bin/sh\n#V2.0 Format", "a cloop image", "cloop"),
    Foreign(b"# Disk DescriptorFile", "a VMDK descriptor, whose data lie in other files", "vmdk"),
    Foreign(b"COWD", "a VMDK image of ESX (COWD)", "vmdk"),
)
#: In the last 512 bytes of a file.
FOREIGN_TRAILERS = (
    Foreign(b"conectix", "a fixed VHD image, by its footer", "vpc"),
    Foreign(b"koly", "an Apple disk image (dmg), by its trailer", "dmg"),
)

#: The first three bytes of everything that can be recognised at the start of a file.
PREFIXES = frozenset(
    magic[:3]
    for magic in (
        *(signature.magic for signature in SIGNATURES if not signature.offset),
        *(foreign.magic for foreign in FOREIGN),
        LUKS_MAGIC,
    )
)
TRAILERS = tuple(foreign.magic for foreign in FOREIGN_TRAILERS)
TRAILER_SIZE = 512


class Match(NamedTuple):
    """A signature that was found; *accepted* is False for a version libvirt does not know."""

    format: str
    accepted: bool


def matches(window: Window) -> list[Match]:
    """Return every format whose magic is there, the one libvirt would choose first."""
    found = []
    start = window.head(VDI_OFFSET + len(VDI_MAGIC))
    for signature in SIGNATURES:
        offset, magic = signature.offset, signature.magic
        if window.size < offset + len(magic):
            continue
        data, place = (start, offset) if offset < len(start) else (window.at(offset, len(magic)), 0)
        if not data.startswith(magic, place):
            continue
        if signature.version is None:
            found.append(Match(signature.format, accepted=True))
        elif _claims(signature, window):
            found.append(Match(signature.format, accepted=_accepted(signature, window)))
    return sorted(found, key=lambda match: not match.accepted)


def foreign_heads(window: Window) -> list[Foreign]:
    """Return the formats that libvirt's volumes cannot have and that the start claims."""
    head = window.head(64)
    return [candidate for candidate in FOREIGN if head.startswith(candidate.magic)]


def foreign_trailers(window: Window) -> list[Foreign]:
    """Return those that the end claims; only a checksum tells them from a guest's data."""
    trailer = window.tail(TRAILER_SIZE)
    return [candidate for candidate in FOREIGN_TRAILERS if trailer.startswith(candidate.magic)]


def _accepted(signature: Signature, window: Window) -> bool:
    if signature.version is None:
        return True
    layout, offset = signature.version
    field = window.at(offset, layout.size)
    return len(field) == layout.size and layout.unpack(field)[0] in signature.accepted


def _claims(signature: Signature, window: Window) -> bool:
    """Tell whether a magic with a version field is enough to name the format.

    qcow and qcow2 share theirs: version 1 is qcow, every other qcow2. With a wrong fourth byte it
    takes a version that libvirt accepts.
    """
    if signature.magic != b"QFI" or _accepted(signature, window):
        return True
    is_version_1 = window.at(4, 4) == b"\0\0\0\1"
    return signature.format == "qcow2" and window.at(3, 1) == b"\xfb" and not is_version_1
