"""What an inhabitant of the zoo is, and how it is made: sound images with wrong fields."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from storaged.formats.image import ImageState

MIB, GIB = 1 << 20, 1 << 30
OK, SUSPICIOUS, CORRUPT, UNSUPPORTED = ImageState
ALL = 2**64 - 1

#: Offset, `struct` code and value of a field.
Patch: TypeAlias = tuple[int, str, int | bytes]


@dataclass(frozen=True)
class Case:
    """An image and the answer that it deserves; *capacity* None is the file's size."""

    name: str
    data: bytes
    format: str
    state: ImageState
    capacity: int | None = None
    reason: str = ""


def patched(data: bytearray, *patches: Patch) -> bytes:
    for offset, code, value in patches:
        struct.pack_into(code, data, offset, value)
    return bytes(data)
