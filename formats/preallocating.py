"""A writer whose image has room for every byte of its disk."""

from __future__ import annotations

from storaged.formats.handle import Bytes
from storaged.formats.writer import Place, Writer


class Preallocating(Writer):
    """Gives every part of a disk its room in the image, also what reads as zeros.

    :param writer: fills an image without a backing image, on what reads as zeros.
    """

    blank = True
    needs_zeros = True

    def __init__(self, writer: Writer) -> None:
        self.unit = writer.unit
        self._writer = writer

    def place(self, offset: int, length: int) -> Place | None:
        """Claim room as the other writer does."""
        return self._writer.place(offset, length)

    def write(self, offset: int, data: Bytes) -> None:
        """Write as the other writer does."""
        self._writer.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Claim room, which reads as zeros.

        :raise FormatError: the image would exceed a limit of its format.
        """
        end = offset + length
        while offset < end:
            place = self._writer.place(offset, end - offset)
            if place is None:  # what is packed has no room of its own
                return
            offset += place.length

    def finish(self) -> None:
        """Write the tables and the header."""
        self._writer.finish()

    def abort(self) -> None:
        """Let go of what the other writer holds."""
        self._writer.abort()
