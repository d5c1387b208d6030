"""Directories full of images, made fast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import storaged

#: Bytes of the disk that each qcow2 image is.
QCOW2_SIZE = 10 << 30
BLOCK = 4096


@dataclass(frozen=True)
class Template:
    """What an image's file holds: its size, and offset and bytes of each stretch of data."""

    size: int
    pieces: tuple[tuple[int, bytes], ...]

    @classmethod
    def make(cls, directory: Path) -> Template:
        """Create an empty qcow2 below *directory* and read it."""
        with storaged.open(directory / "template-state", durability="none") as storage:
            pool = storage.ensure_dir_pool("template", directory / "template")
            volume = pool.create("template.qcow2", QCOW2_SIZE, format="qcow2")
            content = Path(volume.path).read_bytes()
        pieces = ((at, content[at : at + BLOCK]) for at in range(0, len(content), BLOCK))
        return cls(len(content), tuple((at, data) for at, data in pieces if any(data)))

    def write(self, fd: int) -> None:
        """Write it to an empty file."""
        for offset, data in self.pieces:
            os.pwrite(fd, data, offset)
        os.ftruncate(fd, self.size)


#: A sparse raw image.
RAW = Template(1 << 30, ())


def fill(directory: Path, count: int, qcow2: Template) -> None:
    """Make *count* images in *directory*: raw and qcow2 in turn, all sparse."""
    directory.mkdir(parents=True)
    for number in range(count):
        kind, image = ("qcow2", qcow2) if number % 2 else ("raw", RAW)
        name = directory / f"disk-{number:06}.{kind}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            image.write(fd)
        finally:
            os.close(fd)
