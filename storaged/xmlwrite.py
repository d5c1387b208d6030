r"""Writing XML as libvirt does: two spaces a level, single quotes, no declaration.

Text may hold what XML cannot. One rule covers it: a control character, or a byte that is not UTF-8
(a surrogate of `os.fsdecode`), is written as a backslash, ``x`` and two hexadecimal digits, such as
``\x1b``; any other surrogate and the two non-characters as ``\ud800`` and ``\uffff``. Backslashes
of the text stay as they are, so legal text is never changed; only a name that holds such letters
itself reads the same as one that holds the character.

What a parser would change is written as a reference: a carriage return everywhere, tab and newline
in attributes. So every legal text is read back as it was.

Source: libvirt's output. It drops control characters, and writes the rest of what is listed here as
it is: bytes that are not UTF-8 make its document ill-formed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

#: An attribute: its name, and what it holds; None leaves it out.
Attribute = tuple[str, str | int | None]

_ILLEGAL = r"\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff"
_TEXT = re.compile(rf"[&<>\"'\r{_ILLEGAL}]")
_ATTRIBUTE = re.compile(rf"[&<>\"'\r\t\n{_ILLEGAL}]")
_REFERENCES = (
    *(("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&apos;")),
    *(("\r", "&#13;"), ("\t", "&#9;"), ("\n", "&#10;")),
)
_REFERENCE_OF = dict(_REFERENCES)


def escape_text(text: str) -> str:
    """Return *text* as it stands between tags; see the module for what XML cannot hold."""
    return _TEXT.sub(_escape, text)


def escape_attribute(text: str) -> str:
    """Return *text* as it stands between the quotes of an attribute."""
    return _ATTRIBUTE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    reference = _REFERENCE_OF.get(character)
    if reference is not None:
        return reference
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that os.fsdecode could not decode
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class Writer:
    """Collects the lines of one document."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._indent = ""

    @contextmanager
    def element(self, tag: str, *attributes: Attribute) -> Iterator[None]:
        """Write an element around what the block writes; always on two lines, also if empty."""
        self._line(f"<{tag}{_attributes(attributes)}>")
        outer = self._indent
        self._indent = outer + "  "
        yield
        self._indent = outer
        self._line(f"</{tag}>")

    def empty(self, tag: str, *attributes: Attribute) -> None:
        """Write an element without content."""
        self._line(f"<{tag}{_attributes(attributes)}/>")

    def text(self, tag: str, text: str | int | None, *attributes: Attribute) -> None:
        """Write an element that holds text; nothing for None."""
        if text is not None:
            self._line(f"<{tag}{_attributes(attributes)}>{escape_text(str(text))}</{tag}>")

    def blank(self) -> None:
        """Write an empty line."""
        self._lines.append("")

    def finish(self) -> str:
        """Return the document, with a newline at the end."""
        return "\n".join(self._lines) + "\n"

    def _line(self, text: str) -> None:
        self._lines.append(self._indent + text)


def _attributes(attributes: tuple[Attribute, ...]) -> str:
    return "".join(
        f" {name}='{escape_attribute(str(value))}'"
        for name, value in attributes
        if value is not None
    )


def yes_no(value: bool | None) -> str | None:
    """Return the word for a switch; None for None."""
    return None if value is None else "yes" if value else "no"
