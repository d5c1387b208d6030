"""A table of entries of varying length, as snapshots and bitmaps have it: read piece by piece."""

from __future__ import annotations

from storaged.formats.errors import CorruptImage
from storaged.formats.handle import Handle

_PIECE = 256 << 10


class Directory:
    """Reads a table from its start to its end, at most 256 KiB ahead.

    :param name: how errors call it.
    :param offset: where it begins in the file.
    :param limit: how many bytes it may have at most.
    """

    def __init__(self, handle: Handle, name: str, offset: int, limit: int) -> None:
        self._handle = handle
        self._name = name
        self._offset = offset
        self._left = limit
        self._data = b""
        self._position = 0

    def take(self, length: int) -> bytes:
        """Return the next *length* bytes.

        :raise CorruptImage: if the table or the file ends before.
        """
        end = self._position + length
        if end > len(self._data):
            self._read(length)
            end = length
        data = self._data[self._position : end]
        self._position = end
        return data

    def pad(self, length: int) -> None:
        """Skip what follows an entry of *length* bytes up to a multiple of 8.

        The last entry of a file may lack its padding.
        """
        self._position += -length % 8

    def _read(self, least: int) -> None:
        rest = self._data[self._position :]
        # Padding may have been skipped that is not read yet.
        skipped = max(self._position - len(self._data), 0)
        self._offset += skipped
        self._left -= skipped
        wanted = min(max(least - len(rest), _PIECE), max(self._left, 0))
        data = self._handle.pread(wanted, self._offset) if wanted else b""
        if len(rest) + len(data) < least:
            where = "its limit" if len(data) == wanted else "the end of the file"
            raise CorruptImage(f"{self._name} reaches beyond {where}")
        self._offset += len(data)
        self._left -= len(data)
        self._data, self._position = rest + data, 0


def printable(name: bytes) -> str:
    """Return a name from an image as text that is safe to show: the rest is escaped."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
