"""What a name that stands inside an image refers to, told by its words alone.

An image may come from anywhere, so nothing here looks at a file: a name is sorted before anybody
follows it. What follows it has to look again, because a link or a mount may lead elsewhere.

Sources: how QEMU and libvirt tell a protocol from a path (a colon before the first slash), and that
both take a relative name from the directory of the image that has it.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: As much of a name is shown.
_SHOWN = 200
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
#: Where names stand for devices, or for what the kernel makes up as it is read.
_SPECIAL = ("/dev", "/proc", "/sys")
#: ``scheme://user:password@host``
_USERINFO = re.compile(r"(?<=://)[^/@\s\"']*@")
#: ``rbd:pool/image:id=admin:key=...``; a colon of the value is escaped by a backslash
_RBD_KEY = re.compile(r":key=(?:[^:\\]|\\.)*")
_SECRET_KEYS = re.compile(r"password|secret|cookie|\bkey$", re.IGNORECASE)


class ReferenceKind(StrEnum):
    """What kind of thing a name refers to."""

    #: a path of this host
    FILE = "file"
    #: a server, or another protocol of QEMU's: ``nbd://host/x``, ``rbd:pool/image``, ``fat:/etc``
    NETWORK = "network"
    #: QEMU's ``json:`` with a description of anything at all
    JSON = "json"
    #: something below /dev, /proc or /sys that is not the pool's
    DEVICE = "device"
    #: no name that a file could have, or none that can be shown: empty, control characters, bytes
    #: that are no UTF-8
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Reference:
    """A name and what it refers to.

    :param name: as the image has it.
    :param path: the absolute path of a FILE or a DEVICE, with the dots of the name; else None.
    :param inside: whether that path lies below the pool's target, by its words.
    """

    kind: ReferenceKind
    name: bytes
    path: str | None = None
    inside: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it names a file beside the image, without any path."""
        named = self.kind is ReferenceKind.FILE and b"/" not in self.name
        return named and self.name not in (b".", b"..")

    @property
    def place(self) -> str | None:
        """The path without dots and doubled slashes, for comparing; None if it has none."""
        return None if self.path is None else clean(self.path)

    def __str__(self) -> str:
        """Return the name for people: short, without secrets, and all of it can be printed."""
        shown = without_credentials(os.fsdecode(self.name))
        text = "".join(map(_visible, shown[: _SHOWN + 1]))
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def refer(name: bytes, directory: str, target: str | None = None) -> Reference:
    """Return what a name in an image refers to.

    :param directory: absolute path of the directory that the image lies in.
    :param target: absolute path of its pool's target; None if that is the directory.
    """
    text = os.fsdecode(name)
    if text.startswith("json:"):
        return Reference(ReferenceKind.JSON, name)
    if not text or _CONTROL.search(text):
        return Reference(ReferenceKind.UNUSABLE, name)
    if text.startswith("/"):
        path = text
    elif ":" in text.partition("/")[0]:
        return Reference(ReferenceKind.NETWORK, name)
    else:
        path = f"{directory}/{text}"
    place = clean(path)
    inside = _is_below(place, clean(directory if target is None else target))
    special = not inside and any(place == top or _is_below(place, top) for top in _SPECIAL)
    kind = ReferenceKind.DEVICE if special else ReferenceKind.FILE
    return Reference(kind, name, path, inside)


def clean(path: str) -> str:
    """Return an absolute path without dots and doubled slashes. Links are not looked at."""
    found = posixpath.normpath(path)
    return found[1:] if found.startswith("//") else found


def without_credentials(text: str) -> str:
    """Return the name of a network image without the secrets that some people put into it."""
    if text.startswith("json:"):
        import json  # few images have such a name

        try:
            found = json.loads(text[5:], object_pairs_hook=_unambiguous)
            cleaned = _cleaned(found)
            return text if cleaned == found else "json:" + json.dumps(cleaned)
        except (ValueError, RecursionError):
            return "json:"
    cleaned = _USERINFO.sub("", text)
    return _RBD_KEY.sub("", cleaned) if cleaned.startswith("rbd:") else cleaned


def _visible(letter: str) -> str:
    """Return a letter, or the escape for a byte or a character that cannot be printed.

    Such as the command line has them, which finds nothing left to escape.
    """
    if letter.isprintable():
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _cleaned(inner) for key, inner in value.items() if not _SECRET_KEYS.search(key)
        }
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    return without_credentials(value) if isinstance(value, str) else value


def _is_below(place: str, top: str) -> bool:
    return place.startswith(top if top.endswith("/") else f"{top}/")
