"""What a SCSI unit calls itself, in the words of udev's scsi_id, without starting it.

The kernel has read the unit's identification when it found it, and keeps it in sysfs; so this asks
neither the unit nor a program for each of a hundred LUNs.

Source: SCSI Primary Commands (vital product data pages 0x80 and 0x83); what scsi_id prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

#: The header of a page, and that of a designator in it, in bytes.
_HEADER: Final = 4
#: What is no letter, no digit and none of the signs that udev leaves as they are.
_ODD = re.compile(r"[^0-9A-Za-z#+\-.:=@_\x80-\U0010ffff]")
_SPACE = re.compile(r"[ \t\n\v\f\r]+")


class Code(IntEnum):
    """How a designator is written."""

    BINARY = 1
    ASCII = 2


class Kind(IntEnum):
    """Who made up a designator."""

    VENDOR = 0
    T10 = 1
    EUI64 = 2
    NAA = 3


#: Kinds of names, the best first; of NAA's forms the extended and the registered one go before all.
_ORDER: Final = (
    (Kind.NAA, 6),
    (Kind.NAA, 5),
    (Kind.NAA, None),
    (Kind.EUI64, None),
    (Kind.T10, None),
    (Kind.VENDOR, None),
)


@dataclass(frozen=True, slots=True)
class Designator:
    """One name of a unit.

    :param of_unit: not of its port, or its target.
    """

    code: int
    kind: int
    value: bytes
    of_unit: bool = True

    @property
    def rank(self) -> int | None:
        """How good a name it is, 0 the best; None if it is none of the unit itself."""
        if not self.of_unit or not self.value or self.code not in (Code.BINARY, Code.ASCII):
            return None
        for rank, (kind, form) in enumerate(_ORDER):
            if self.kind == kind and form in (None, self.value[0] >> 4):
                return 2 * rank + (self.code == Code.ASCII)
        return None

    def text(self, maker: bytes) -> str:
        """Return it as a serial.

        :param maker: vendor and model, without which a vendor's own numbers say nothing.
        """
        value = self.value.hex().encode() if self.code == Code.BINARY else self.value
        return plain(b"%x" % self.kind + (maker if self.kind == Kind.VENDOR else b"") + value)


def designators(page: bytes) -> Iterator[Designator]:
    """Yield what page 0x83 holds; a page that is cut short, or no such page, ends early."""
    if len(page) < _HEADER or page[1] != 0x83:
        return
    end = min(len(page), _HEADER + int.from_bytes(page[2:4], "big"))
    at = _HEADER
    while at + _HEADER <= end:
        length = page[at + 3]
        value = page[at + _HEADER : at + _HEADER + length]
        if len(value) < length:
            return
        of_unit = page[at + 1] & 0x30 == 0
        yield Designator(page[at] & 0x0F, page[at + 1] & 0x0F, value, of_unit)
        at += _HEADER + length


def serial_of(page83: bytes, page80: bytes, maker: bytes) -> str | None:
    """Return the serial that scsi_id prints; None if the pages hold none.

    :param maker: vendor and model as the unit pads them.
    """
    found = [(rank, each) for each in designators(page83) if (rank := each.rank) is not None]
    if found:
        return min(found, key=lambda ranked: ranked[0])[1].text(maker)
    if len(page80) > _HEADER and page80[1] == 0x80:
        value = page80[_HEADER : _HEADER + int.from_bytes(page80[2:4], "big")]
        if value.strip():
            return plain(b"S" + maker + value)
    return None


def plain(serial: bytes) -> str:
    """Return a serial as udev writes it: no blank at its ends, others and odd signs as ``_``."""
    text = serial.partition(b"\0")[0].decode(errors="replace").replace("\ufffd", "\0")
    return _ODD.sub("_", _SPACE.sub("_", text.strip(" \t\n\v\f\r")))


def read_serial(device: str) -> str | None:
    """Return the serial of a unit as the kernel has read it, None if it has none.

    :param device: its directory in sysfs.
    """
    maker = _content(f"{device}/vendor").rstrip(b"\n") + _content(f"{device}/model").rstrip(b"\n")
    page83, page80 = _content(f"{device}/vpd_pg83"), _content(f"{device}/vpd_pg80")
    if len(page83) > 6 and page83[6]:
        return None  # of before SPC-3: another layout
    return serial_of(page83, page80, maker)


def _content(path: str) -> bytes:
    with suppress(OSError):
        return Path(path).read_bytes()
    return b""
