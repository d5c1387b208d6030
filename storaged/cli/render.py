"""Text for people: tables, fields, sizes, times. Nothing here knows pools or volumes.

Names of files come from the storage and may hold anything, so control characters never reach the
terminal: they are shown as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from storaged.units import format_size

_GAP = "  "
#: Where the values of `fields` begin, as virsh prints them.
_LABEL_WIDTH = 16


def clean(text: str) -> str:
    """Return *text* with control characters and undecodable bytes as visible escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def width(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(letter) for letter in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align *rows* below *headers*.

    :param headers: a leading ``>`` sets the column flush right.
    :returns: lines without trailing blanks and without a last newline.
    """
    columns = [
        _column(header.removeprefix(">"), cells, flush_right=header.startswith(">"))
        for header, cells in zip(headers, _transposed(rows, len(headers)), strict=True)
    ]
    return "\n".join(map(str.rstrip, map(_GAP.join, zip(*columns, strict=True))))


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """Set out names and values one a line, as virsh's info commands do."""
    return "\n".join(
        f"{name + ':':<{_LABEL_WIDTH}}{clean(value)}".rstrip() for name, value in pairs
    )


def size(count: int, *, exact: bool = False) -> str:
    """Return bytes for people, or as a plain number if *exact*."""
    return str(count) if exact else format_size(count)


def duration(seconds: float) -> str:
    """Return a stretch of time in its two largest units, such as ``3 min 20 s``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def yes_no(value: bool) -> str:
    """Return ``yes`` or ``no``."""
    return "yes" if value else "no"


def _transposed(rows: Iterable[Sequence[str]], count: int) -> Iterable[Sequence[str]]:
    return list(zip(*rows, strict=True)) or [()] * count


def _column(header: str, cells: Sequence[str], *, flush_right: bool) -> list[str]:
    """Return the header and the cells of one column, all of the same width."""
    shown = [header, *map(clean, cells)]
    wide = max(map(width, shown))
    if all(map(str.isascii, shown)):
        pad = str.rjust if flush_right else str.ljust
        return [pad(cell, wide) for cell in shown]
    blanks = [" " * (wide - width(cell)) for cell in shown]
    pairs = zip(blanks, shown, strict=True) if flush_right else zip(shown, blanks, strict=True)
    return [first + second for first, second in pairs]


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
