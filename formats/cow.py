"""Copy-on-write images of User Mode Linux, version 2.

Source: the header of UML's block driver. All integers are big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo
from storaged.formats.record import U32, U64, Bytes4, Record
from storaged.formats.window import Window

VERSION = 2


@dataclass(frozen=True)
class CowHeader(Record):
    """The header of version 2."""

    magic: Bytes4
    version: U32
    backing_file: Annotated[bytes, "1024s"]
    mtime: U32
    size: U64
    sectorsize: U32


def inspect(window: Window) -> ImageInfo:
    """Say what a file with UML's magic is. Bounded and total."""
    findings = Findings()
    version = int.from_bytes(window.head(8)[4:], "big")
    try:
        header = CowHeader.unpack(window.head(CowHeader.length()))
    except FormatError:
        findings.corrupt("truncated header")
        return findings.info("cow", window.size)
    if version != VERSION:
        findings.unsupported(f"COW version {version}")
        return findings.info("cow", window.size)
    capacity = header.size
    if capacity >= 2**63:
        findings.corrupt(f"size is {capacity}")
        capacity = window.size
    name, zero, _ = header.backing_file.partition(b"\0")
    if not zero:
        findings.corrupt("the backing file's name does not end")
    backing = BackingRef(name) if name and zero else None
    return ImageInfo(
        "cow",
        capacity,
        backing=backing,
        state=findings.state,
        reasons=tuple(findings.reasons),
    )
