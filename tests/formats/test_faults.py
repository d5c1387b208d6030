"""Storage that fails or changes under a reader: a sector that cannot be read, a file that shrinks
or grows, a disk that is full. Errors come through, answers have the right length, nothing hangs.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from storaged.formats.convert import convert
from storaged.formats.errors import FormatError
from storaged.formats.file import FileHandle
from storaged.formats.handle import Bytes, Handle
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_check import check
from storaged.formats.qcow2_create import CreateOptions
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.raw_writer import RawWriter
from storaged.formats.vmdk_stream_writer import VmdkStreamWriter
from storaged.formats.vmdk_writer import VmdkWriter
from storaged.formats.writer import Writer
from tests.formats.memory import MemoryHandle
from tests.formats.zoo_deep import qcow2_image, vmdk_image
from tests.formats.zoo_use import USES, opened
from tests.fuzz import seeds

SECTOR, MIB = 512, 1 << 20
#: Images of both formats, with all of their tables in few sectors.
IMAGES = {
    "qcow2": seeds.qcow2(100 << 10),
    "packed": seeds.qcow2(64 << 10, packing=CompressionType.DEFLATE, cluster_size=4096),
    "snapshot": seeds.with_snapshot(seeds.qcow2(8 << 10)),
    "vmdk": vmdk_image(),
    "stream": vmdk_image(stream=True),
}


class BadSector(MemoryHandle):
    """A disk of which one sector cannot be read."""

    def __init__(self, data: bytes, sector: int) -> None:
        super().__init__(data)
        self._sector = sector

    def pread(self, length: int, offset: int) -> bytes:
        if length and offset // SECTOR <= self._sector <= (offset + length - 1) // SECTOR:
            raise OSError(errno.EIO, "a bad sector")
        return super().pread(length, offset)


class Restless(MemoryHandle):
    """A file whose length changes with every look at it or its bytes."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self._step = step

    def pread(self, length: int, offset: int) -> bytes:
        self._change()
        return super().pread(length, offset)

    def size(self) -> int:
        self._change()
        return super().size()

    def _change(self) -> None:
        self.truncate(max(len(self.data) + self._step, 0))


class Full(MemoryHandle):
    """A disk that is full after so many bytes were written."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def pwrite(self, data: Bytes, offset: int) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "full")
        super().pwrite(data, offset)


def use(name: str, handle: Handle) -> str:
    try:
        return USES[name](handle)
    except FormatError as err:
        return str(err)
    except OSError as err:
        return errno.errorcode[err.errno or 0]


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_sector(kind: str) -> None:
    """The error comes through, or the sector was not needed and the answer is the usual one."""
    image = IMAGES[kind]
    # of the zeros between tables one sector is as good as the other
    sectors = [n for n in range(-(-len(image) // SECTOR)) if any(image[n * SECTOR :][:SECTOR])]
    for name in USES:
        usual = use(name, MemoryHandle(image))
        failed = 0
        for sector in sectors:
            found = use(name, BadSector(image, sector))
            assert found in (usual, "EIO")
            failed += found == "EIO"
        assert failed or name == "identify"


@pytest.mark.parametrize("step", [-SECTOR, -1, -65536, SECTOR, 65536])
@pytest.mark.parametrize("kind", IMAGES)
def test_a_length_that_changes(kind: str, step: int) -> None:
    for name in USES:
        use(name, Restless(IMAGES[kind], step))


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for kind, image in IMAGES.items():
        for end in range(0, len(image), max(len(image) // 40, 1)):
            path.write_bytes(image)
            with closing(opened(FileHandle(os.open(path, os.O_RDONLY)))) as disk:
                begin = disk.pread(700, 0)
                os.truncate(path, end)
                with suppress(FormatError, OSError):
                    assert len(disk.pread(disk.size(), 0)) == disk.size(), kind
                with suppress(FormatError, OSError):
                    for stretch in disk.stretches(0, disk.size()):
                        assert stretch.length
                assert len(begin) == 700


def test_a_file_replaced_while_it_is_read(tmp_path: Path) -> None:
    """An open image stays what it was: nobody looks at its name again."""
    path = tmp_path / "image"
    path.write_bytes(IMAGES["qcow2"])
    with closing(opened(FileHandle(os.open(path, os.O_RDONLY)))) as disk:
        before = disk.pread(disk.size(), 0)
        (tmp_path / "other").write_bytes(qcow2_image())
        (tmp_path / "other").rename(path)
        assert disk.pread(disk.size(), 0) == before


#: The content id is given: its length is the descriptor's.
WRITERS: dict[str, Callable[[Handle, int], Writer]] = {
    "raw": lambda handle, size: RawWriter(handle, size),
    "qcow2": lambda handle, size: Qcow2Writer(handle, CreateOptions(size, cluster_size=512)),
    "packed": lambda handle, size: Qcow2Writer(
        handle, CreateOptions(size), compression=CompressionType.DEFLATE
    ),
    "vmdk": lambda handle, size: VmdkWriter(handle, size, cid=1),
    "stream": lambda handle, size: VmdkStreamWriter(handle, size, cid=1),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk(kind: str) -> None:
    """The error comes through at once, with no thread left behind."""
    source = seeds.disk(400 << 10, 4096)
    whole = Full(1 << 30)
    convert(MemoryHandle(source), WRITERS[kind](whole, len(source)))
    needed = (1 << 30) - whole.room
    threads = threading.active_count()
    for room in (0, 1, 512, needed // 9, needed // 3, needed // 2, needed - 512, needed - 1):
        target = Full(room)
        with pytest.raises(OSError, match="full"):
            convert(MemoryHandle(source), WRITERS[kind](target, len(source)))
        assert threading.active_count() == threads
        if kind in ("qcow2", "packed"):  # the header comes last
            assert not target.data.startswith(b"QFI\xfb")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_bad_sector_of_the_source(kind: str) -> None:
    source = seeds.disk(400 << 10, 4096)
    threads = threading.active_count()
    for sector in (0, 9, 333, 799):
        with pytest.raises(OSError, match="a bad sector"):
            convert(BadSector(source, sector), WRITERS[kind](MemoryHandle(), len(source)))
        assert threading.active_count() == threads


def test_a_source_that_becomes_shorter() -> None:
    """What is made is a sound image or none, and never longer than was asked for."""
    source = seeds.disk(400 << 10, 4096)
    for step in (-SECTOR, -4096, -65536):
        target = MemoryHandle()
        with suppress(OSError):
            convert(Restless(source, step), Qcow2Writer(target, CreateOptions(len(source))))
            assert check(target).clean
            assert Qcow2Disk(target).size() == len(source)
