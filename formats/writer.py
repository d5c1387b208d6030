"""What fills a new image with the content of a disk: one class a format, one engine for all.

The engine (`storaged.formats.convert`) decides what has to be moved and how; a `Writer` decides
where it goes and what the tables say of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from storaged.formats.handle import Bytes, Handle


class Place(NamedTuple):
    """Room for a stretch of plain data; with `Writer.blank`, it reads as zeros until written to."""

    file: Handle
    offset: int
    length: int


class Writer(ABC):
    """The content of a new image, given in order of offsets, each part at most once.

    Every part begins at a multiple of `unit` and ends at one or where the disk ends. What is never
    given reads as zeros, or as the backing image where there is one. Before `finish` the target is
    no image; after an error it is of no use.
    """

    #: in bytes, a power of two
    unit: int
    #: whether room reads as zeros; False: all of what is claimed has to be written
    blank: bool = True
    #: whether what reads as zeros has to be given too, by `zero`: what is never given may read as
    #: something else (a backing image's data, a device's old ones)
    needs_zeros: bool = False

    @abstractmethod
    def place(self, offset: int, length: int) -> Place | None:
        """Claim room for plain data, at least one unit of it and at most *length* bytes.

        None: it takes its data by `write` only (what is compressed).

        :raise FormatError: the image would exceed a limit of its format.
        """

    @abstractmethod
    def write(self, offset: int, data: Bytes) -> None:
        """Take one whole unit, or the last part of one where the disk ends."""

    @abstractmethod
    def zero(self, offset: int, length: int) -> None:
        """Make a part read as zeros whatever a backing image says; needs no room."""

    @abstractmethod
    def finish(self) -> None:
        """Write the tables, and the header last. Nothing is flushed."""

    def abort(self) -> None:
        """Let go of what the writer holds, after an error in place of `finish`: its threads."""
