"""The backing chain of an image as a value: each file of it, and what speaks against it."""

from __future__ import annotations

from dataclasses import dataclass

from storaged.concerns import Concern, Level, dangers
from storaged.formats.image import ImageInfo

#: A chain has at most so many images, as in libvirt.
MAX_DEPTH = 200
#: ... and so many files, with all that hold the data of one image.
MAX_FILES = 4096
#: ... and is not looked at for longer, in seconds.
MAX_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Part:
    """A file that holds data of an image: the external data file of a qcow2, an extent of a vmdk.

    :param name: as the image has it: a plain name in its own directory.
    :param size: bytes of the file.
    """

    name: bytes
    size: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Link:
    """One image of a chain.

    :param name: as the image above has it; of the first one the name of the volume.
    :param format: what it is read as: what the image above records.
    :param capacity: the virtual size in bytes.
    :param size: bytes of the file.
    :param image: what its header says; None of one that is read as raw data.
    :param concerns: what speaks against this image.
    :param device: ``st_dev`` of the file; with *inode* it tells the file from all others.
    """

    name: bytes
    path: str
    format: str
    capacity: int
    size: int
    device: int
    inode: int
    image: ImageInfo | None = None
    concerns: tuple[Concern, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """An image and what lies below it, as far as that may be, and can be, looked at.

    :param links: the volume's own image first.
    :param end: why it ends before its end; None if it is complete.
    """

    links: tuple[Link, ...]
    end: Concern | None = None

    @property
    def complete(self) -> bool:
        """Whether the last link needs nothing below it."""
        return self.end is None

    @property
    def concerns(self) -> tuple[Concern, ...]:
        """All that speaks against any part of it, the dangers first."""
        found = [concern for link in self.links for concern in link.concerns]
        if self.end is not None:
            found.append(self.end)
        ordered = sorted(found, key=lambda concern: concern.level is Level.NOTE)
        return tuple(dict.fromkeys(ordered))

    @property
    def dangers(self) -> list[str]:
        """Why nothing of it may be opened; empty if it may."""
        return dangers(self.concerns)
