"""LUKS containers: raw volumes whose data are encrypted.

Source: the LUKS On-Disk Format Specification 1.2.3. All integers are big-endian.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from storaged.formats.errors import FormatError
from storaged.formats.findings import Findings
from storaged.formats.image import ImageInfo
from storaged.formats.record import U16, U32, Bytes32, Record
from storaged.formats.window import Window

SECTOR = 512
KEY_SLOTS = 8
KEY_ENABLED, KEY_DISABLED = 0x00AC71F3, 0x0000DEAD
STRIPES = 4000
#: The header and the reserved rest of its 4 KiB.
MIN_PAYLOAD = 8
MAX_KEY_BYTES = 64
#: Beyond any machine's two seconds of PBKDF2; opening such an image is a denial of service.
MAX_ITERATIONS = 1_000_000_000


@dataclass(frozen=True)
class LuksHeader(Record):
    """The partition header of version 1, in front of its key slots."""

    magic: Annotated[bytes, "6s"]
    version: U16
    cipher_name: Bytes32
    cipher_mode: Bytes32
    hash_spec: Bytes32
    payload_offset: U32
    key_bytes: U32
    mk_digest: Annotated[bytes, "20s"]
    mk_digest_salt: Bytes32
    mk_digest_iterations: U32
    uuid: Annotated[bytes, "40s"]


@dataclass(frozen=True)
class KeySlot(Record):
    """One of the eight key slots behind the header."""

    active: U32
    iterations: U32
    salt: Bytes32
    key_material_offset: U32
    stripes: U32


def overlapping(slots: Sequence[KeySlot], key_bytes: int) -> tuple[int, int] | None:
    """Return the numbers of two slots in use whose key material shares sectors, None if none do."""
    sectors = -(-key_bytes * STRIPES // SECTOR)
    places = sorted(
        (slot.key_material_offset, number)
        for number, slot in enumerate(slots)
        if slot.active == KEY_ENABLED
    )
    for (start, number), (following, other) in itertools.pairwise(places):
        if following < start + sectors:
            return number, other
    return None


def inspect(window: Window) -> ImageInfo:
    """Say what a file with the LUKS magic is. Bounded and total.

    The format is ``raw``. In version 1 the capacity is what lies behind the header; in version 2,
    whose place stands in a JSON text that is not read, it is the file's size.
    """
    findings = Findings()
    version = int.from_bytes(window.head(8)[6:], "big")
    if version == 1:
        return _inspect_version1(window, findings)
    if len(window.head(8)) < 8:
        findings.corrupt("truncated header")
    elif version == 2:
        findings.unsupported("LUKS version 2: where its data start is not known")
    else:
        findings.unsupported(f"LUKS version {version}")
    return _info(window.size, findings, "luks2" if version == 2 else "luks")


def _inspect_version1(window: Window, findings: Findings) -> ImageInfo:
    data = window.head(LuksHeader.length() + KEY_SLOTS * KeySlot.length())
    try:
        header = LuksHeader.unpack(data)
        slots = [
            KeySlot.unpack(data, LuksHeader.length() + number * KeySlot.length())
            for number in range(KEY_SLOTS)
        ]
    except FormatError:
        findings.corrupt("truncated header")
        return _info(window.size, findings)
    _check_header(header, findings)
    for number, slot in enumerate(slots):
        _check_slot(number, slot, header, findings)
    pair = overlapping(slots, min(header.key_bytes, MAX_KEY_BYTES))
    if pair is not None:
        findings.corrupt(f"key slots {pair[0]} and {pair[1]} overlap")
    payload = header.payload_offset * SECTOR
    if header.payload_offset < MIN_PAYLOAD or payload > window.size:
        findings.corrupt(f"payload at sector {header.payload_offset} is not within the file")
        return _info(window.size, findings)
    return _info(window.size - payload, findings)


def _check_header(header: LuksHeader, findings: Findings) -> None:
    for name in ("cipher_name", "cipher_mode", "hash_spec", "uuid"):
        if b"\0" not in getattr(header, name):
            findings.corrupt(f"{name} does not end")
    if not 0 < header.key_bytes <= MAX_KEY_BYTES:
        findings.corrupt(f"key of {header.key_bytes} bytes")
    if not 0 < header.mk_digest_iterations <= MAX_ITERATIONS:
        findings.suspicious(f"{header.mk_digest_iterations} iterations for the key's digest")


def _check_slot(number: int, slot: KeySlot, header: LuksHeader, findings: Findings) -> None:
    if slot.active == KEY_DISABLED:
        return
    if slot.active != KEY_ENABLED:
        findings.corrupt(f"key slot {number} is neither enabled nor disabled")
        return
    if slot.stripes != STRIPES:
        findings.corrupt(f"key slot {number} has {slot.stripes} stripes, not 4000")
    if not 0 < slot.iterations <= MAX_ITERATIONS:
        findings.suspicious(f"{slot.iterations} iterations for key slot {number}")
    length = -(-min(header.key_bytes, MAX_KEY_BYTES) * STRIPES // SECTOR)
    if not 1 < slot.key_material_offset <= header.payload_offset - length:
        findings.corrupt(f"key slot {number} at sector {slot.key_material_offset}")


def _info(capacity: int, findings: Findings, encryption: str = "luks") -> ImageInfo:
    return ImageInfo(
        "raw",
        capacity,
        encryption=encryption,
        state=findings.state,
        reasons=tuple(findings.reasons),
    )
