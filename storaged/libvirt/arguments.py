"""Arguments as the C binding takes them: what is refused with which exception, what is cut.

Source: libvirt-python's behaviour.
"""

from __future__ import annotations

from operator import index
from typing import Final

_UINT: Final = (1 << 32) - 1
_ULONG: Final = (1 << 64) - 1


def text(value: object, function: str, position: int) -> str | None:
    """Return a text, or None, which the function itself refuses where it must.

    :raise TypeError: it is neither.
    :raise ValueError: it contains a NUL.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        found = type(value).__name__
        raise TypeError(f"{function}() argument {position} must be str or None, not {found}")
    if "\0" in value:
        raise ValueError("embedded null character")
    return value


def data(value: object, function: str, position: int) -> bytes | None:
    """Return bytes, those of a text included; or None, which the function itself refuses.

    :raise TypeError: it is none of these.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    found = type(value).__name__
    if isinstance(value, bytearray):
        required = f"{function}() argument {position} must be read-only bytes-like object"
        raise TypeError(f"{required}, not {found}")
    raise TypeError(f"a bytes-like object is required, not '{found}'")


def flags(value: object) -> int:
    """Return the lower 32 bits of an integer.

    :raise TypeError: it is none.
    """
    return index(value) & _UINT  # type: ignore[arg-type]


def number(value: object) -> int:
    """Return an integer of 32 bits with sign.

    :raise TypeError: it is none.
    :raise OverflowError: it does not fit.
    """
    found = index(value)  # type: ignore[arg-type]
    if found >= 1 << 31:
        raise OverflowError("signed integer is greater than maximum")
    if found < -(1 << 31):
        raise OverflowError("signed integer is less than minimum")
    return found


def size(value: object) -> int:
    """Return an integer of 64 bits without sign; a negative one is taken modulo 2**64.

    :raise TypeError: it is none.
    :raise OverflowError: it does not fit.
    """
    found = index(value)  # type: ignore[arg-type]
    if not -(1 << 63) <= found <= _ULONG:
        raise OverflowError("int too big to convert")
    return found & _ULONG


def uuid_bytes(value: object) -> bytes | None:
    """Return the 16 bytes of an uuid, None if it has another length."""
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return bytes(raw) if isinstance(raw, bytes | bytearray) and len(raw) == 16 else None


def parse_uuid(value: str) -> bytes | None:
    """Return the 16 bytes of an uuid in text, dashes anywhere; None if malformed."""
    digits = value.strip().replace("-", "")
    if len(digits) != 32 or not set(digits) <= set("0123456789abcdefABCDEF"):
        return None
    return bytes.fromhex(digits)


def format_uuid(raw: bytes) -> str:
    """Return an uuid as text."""
    digits = raw.hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(parts)
