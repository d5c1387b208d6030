"""Sizes: text to bytes and back. Inside storaged every size is an int of bytes.

Source: the unit names of libvirt's volume XML (case does not count).
"""

from __future__ import annotations

import re

from storaged.errors import InvalidArgument, Overflow

#: The largest size anything may have: a signed 64-bit offset.
MAX_SIZE = 2**63 - 1

_POWERS = {letter: power for power, letter in enumerate("kmgtpe", start=1)}
#: So many digits are enough for every size, and few enough for Python to convert.
_SIZE = re.compile(r"\s*(\d{1,400})(?:\.(\d{1,400}))?\s*([a-zA-Z]*)\s*")
_STEPS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def factor(unit: str) -> int:
    """Return how many bytes one of *unit* is.

    Nothing, ``b``, ``byte`` and ``bytes`` are 1; ``k`` and ``KiB`` are 1024, ``KB`` is 1000, and so
    on up to ``E``.

    :raise InvalidArgument: for every other word.
    """
    word = unit.lower()
    if word in ("", "b", "byte", "bytes"):
        return 1
    power = _POWERS.get(word[0])
    if power is not None:
        if word[1:] in ("", "ib"):
            return int(1024**power)
        if word[1:] == "b":
            return int(1000**power)
    raise InvalidArgument(f"unknown suffix '{unit}'")


def scaled(value: int, unit: str, limit: int = MAX_SIZE) -> int:
    """Return *value* times *unit* in bytes.

    :raise InvalidArgument: for an unknown unit.
    :raise Overflow: if the product is above *limit*.
    """
    by = factor(unit)
    if value > limit // by:
        raise Overflow(f"value too large: {value}{unit}")
    return value * by


def parse_size(text: str | int) -> int:
    """Return the bytes that a person meant: 4096, "20G", "20 GiB", "1.5 TB".

    A part of a byte is rounded up.

    :raise InvalidArgument: for a negative number or what is no size.
    :raise Overflow: above `MAX_SIZE`.
    """
    if isinstance(text, int):
        if text < 0:
            raise InvalidArgument(f"size must not be negative: {text}")
        if text > MAX_SIZE:
            raise Overflow(f"value too large: {text}")
        return text
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"malformed size '{text}'", advice="Write it like 20G or 512 MiB.")
    whole, fraction, unit = match.groups()
    size = scaled(int(whole), unit)
    if fraction:
        size += -(-int(fraction) * factor(unit) // 10 ** len(fraction))
        if size > MAX_SIZE:
            raise Overflow(f"value too large: {text.strip()}")
    return size


def format_size(size: int) -> str:
    """Return *size* in bytes for people, such as ``1.50 GiB``; whole numbers carry no fraction."""
    value = float(size)
    for step in _STEPS:
        if abs(value) < 1024 or step == _STEPS[-1]:
            if step == "bytes":
                return f"{size} byte" if size == 1 else f"{size} bytes"
            return f"{value:.2f} {step}".replace(".00", "")
        value /= 1024
    raise AssertionError("unreachable")
