"""Version 1 of QEMU's copy-on-write format.

Source: QEMU's description of the format. All integers are big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo
from storaged.formats.record import U8, U16, U32, U64, Bytes4, Record
from storaged.formats.window import HEAD_LIMIT, Window

MAGIC = b"QFI\xfb"
_MAX_BACKING_NAME = 1023
_AES = 1


@dataclass(frozen=True)
class QcowHeader(Record):
    """The header of version 1."""

    magic: Bytes4
    version: U32
    backing_file_offset: U64
    backing_file_size: U32
    mtime: U32
    size: U64
    cluster_bits: U8
    l2_bits: U8
    padding: U16
    crypt_method: U32
    l1_table_offset: U64


def inspect(window: Window) -> ImageInfo:
    """Say what a file with the magic and version 1 is. Bounded and total."""
    findings = Findings()
    try:
        header = QcowHeader.unpack(window.head(QcowHeader.length()))
    except FormatError:
        findings.corrupt("truncated header")
        return findings.info("qcow", window.size)
    if header.magic != MAGIC:
        findings.corrupt(f"magic is {header.magic!r}")
    capacity = header.size
    if capacity >= 2**63:
        findings.corrupt(f"size is {capacity}")
        capacity = window.size
    if header.crypt_method > _AES:
        findings.unsupported(f"crypt_method {header.crypt_method}")
    _check_tables(header, window.size, findings)
    return ImageInfo(
        "qcow",
        capacity,
        encryption="qcow" if header.crypt_method == _AES else None,
        cluster_size=1 << header.cluster_bits if 9 <= header.cluster_bits <= 16 else 0,
        backing=_backing(header, window, findings),
        state=findings.state,
        reasons=tuple(findings.reasons),
    )


def _check_tables(header: QcowHeader, size: int, findings: Findings) -> None:
    if not 9 <= header.cluster_bits <= 16:
        findings.corrupt(f"cluster_bits is {header.cluster_bits}, not 9 to 16")
    elif not 6 <= header.l2_bits <= 13:
        findings.corrupt(f"l2_bits is {header.l2_bits}, not 6 to 13")
    else:
        mapped = 1 << header.cluster_bits + header.l2_bits
        entries = -(-header.size // mapped)
        start = header.l1_table_offset
        if start < QcowHeader.length() or start + 8 * entries > size:
            findings.corrupt(f"the L1 table at {start} is not within the file")


def _backing(header: QcowHeader, window: Window, findings: Findings) -> BackingRef | None:
    offset, length = header.backing_file_offset, header.backing_file_size
    if not offset or not length:
        return None
    if length > _MAX_BACKING_NAME:
        findings.corrupt(f"backing_file_size is {length}, more than 1023")
    elif offset < QcowHeader.length() or offset + length > min(HEAD_LIMIT, window.size):
        findings.corrupt(f"backing file name at {offset} is not within the file's start")
    else:
        return BackingRef(window.head(offset + length)[offset:])
    return None
