"""QEMU Enhanced Disk images.

Source: the QED specification of QEMU. All integers are little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import BackingRef, ImageInfo
from storaged.formats.record import U32, U64, Bytes4, Record
from storaged.formats.window import HEAD_LIMIT, Window

MAGIC = b"QED\0"
MIN_CLUSTER, MAX_CLUSTER = 4 << 10, 64 << 20
MAX_TABLE = 16
_MAX_BACKING_NAME = 1023


class Features(IntFlag):
    """Features a program must know to open an image at all."""

    BACKING_FILE = 1 << 0
    NEED_CHECK = 1 << 1
    BACKING_FORMAT_NO_PROBE = 1 << 2


@dataclass(frozen=True)
class QedHeader(Record):
    """The header."""

    ORDER: ClassVar[str] = "<"

    magic: Bytes4
    cluster_size: U32
    table_size: U32
    header_size: U32
    features: U64
    compat_features: U64
    autoclear_features: U64
    l1_table_offset: U64
    image_size: U64
    backing_filename_offset: U32
    backing_filename_size: U32


def inspect(window: Window) -> ImageInfo:
    """Say what a file that starts with QED is. Bounded and total."""
    findings = Findings()
    try:
        header = QedHeader.unpack(window.head(QedHeader.length()))
        if header.magic != MAGIC:
            raise FormatError(f"magic is {header.magic!r}")
    except FormatError as err:
        findings.corrupt(str(err))
        return findings.info("qed", window.size)
    size = header.cluster_size
    good = MIN_CLUSTER <= size <= MAX_CLUSTER and not size & size - 1
    if not good:
        findings.corrupt(f"cluster_size is {size}")
    else:
        _check_table(header, window.size, findings)
    unknown = header.features & ~sum(Features)
    if unknown:
        findings.unsupported(f"unknown features {unknown:#x}")
    if header.features & Features.NEED_CHECK:
        findings.suspicious("the image was not closed cleanly")
    return ImageInfo(
        "qed",
        _capacity(header, window.size, findings),
        cluster_size=size if good else 0,
        backing=_backing(header, window, findings),
        state=findings.state,
        reasons=tuple(findings.reasons),
    )


def _capacity(header: QedHeader, size: int, findings: Findings) -> int:
    if header.image_size >= 2**63 or header.image_size % 512:
        findings.corrupt(f"image_size is {header.image_size}")
        return size
    return header.image_size


def _check_table(header: QedHeader, size: int, findings: Findings) -> None:
    clusters = header.table_size
    if not 1 <= clusters <= MAX_TABLE or clusters & clusters - 1:
        findings.corrupt(f"table_size is {clusters} clusters")
        return
    table = clusters * header.cluster_size
    if header.image_size > (table // 8) ** 2 * header.cluster_size:
        findings.corrupt(f"image_size {header.image_size} is more than the tables can map")
    offset = header.l1_table_offset
    if offset % header.cluster_size or not 0 < offset <= size - table:
        findings.corrupt(f"the L1 table at {offset} is not within the file")


def _backing(header: QedHeader, window: Window, findings: Findings) -> BackingRef | None:
    if not header.features & Features.BACKING_FILE:
        return None
    offset, length = header.backing_filename_offset, header.backing_filename_size
    if not length:
        return None
    if length > _MAX_BACKING_NAME:
        findings.corrupt(f"backing_filename_size is {length}, more than 1023")
    elif offset < QedHeader.length() or offset + length > min(HEAD_LIMIT, window.size):
        findings.corrupt(f"backing file name at {offset} is not within the file's start")
    else:
        raw = header.features & Features.BACKING_FORMAT_NO_PROBE
        return BackingRef(window.head(offset + length)[offset:], "raw" if raw else None)
    return None
