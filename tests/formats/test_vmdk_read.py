"""Reading what qemu-img writes, what it does not, and what is damaged."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import probe, vmdk_create
from storaged.formats.disk import Kind, Stretch
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.vmdk_check import check
from storaged.formats.vmdk_create import Parent
from storaged.formats.vmdk_describe import describe
from storaged.formats.vmdk_read import VmdkDisk
from storaged.formats.vmdk_stream_writer import VmdkStreamWriter
from storaged.formats.vmdk_writer import VmdkWriter
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.vmdk_images import GRAIN, cowd, open_disk, open_file, text

MIB, GIB = 1 << 20, 1 << 30
SUBFORMATS = (
    *("monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"),
    *("monolithicFlat", "twoGbMaxExtentFlat"),
)
#: Not a multiple of a grain, and three files if it is split.
SIZE = 4 * GIB + 100 * MIB + 3 * 512


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with data at both ends, across the split, in runs and alone."""
    path = tmp_path_factory.mktemp("vmdk") / "source.raw"
    rand = random.Random(1)
    places = [0, 2 * GIB - MIB, SIZE - 512 - 2 * MIB]
    places += [rand.randrange(0, SIZE // GRAIN - 40) * GRAIN for _ in range(30)]
    with path.open("wb") as file:
        file.truncate(SIZE)
        for place in places:
            file.seek(place)
            file.write(rand.randbytes(rand.choice((512, GRAIN, 5 * GRAIN))))
        file.seek(2 * GIB - GRAIN)
        file.write(rand.randbytes(3 * GRAIN))
        file.seek(SIZE - 512)
        file.write(b"e" * 512)
    return path


def converted(source: Path, target: Path, *options: str) -> Path:
    words = [word for option in options for word in ("-o", option)]
    qemu.run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", *words, source, target)
    return target


def tiled(stretches: list[Stretch], size: int) -> bool:
    """Whether stretches are in order, without gaps, and none could be longer."""
    follows = all(a.offset + a.length == b.offset for a, b in pairwise(stretches))
    alike = any(
        a[2:5] == b[2:5] and (a.kind is not Kind.DATA or a.host + a.length == b.host)
        for a, b in pairwise(stretches)
    )
    return follows and not alike and stretches[-1].offset + stretches[-1].length == size


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_what_qemu_img_wrote(tmp_path: Path, source: Path, subformat: str) -> None:
    path = converted(source, tmp_path / "a.vmdk", f"subformat={subformat}")
    disk = open_disk(path)
    with open_file(source) as raw:
        assert disk.size() == SIZE
        stretches = list(disk.stretches(0, SIZE))
        assert stretches[0].offset == 0
        assert tiled(stretches, SIZE)
        for stretch in stretches:  # a gap is compared in few pieces: it is long
            step = 64 * MIB if stretch.kind.data else 512 * MIB
            for offset in range(stretch.offset, stretch.offset + stretch.length, step):
                length = min(step, stretch.offset + stretch.length - offset, 8 * MIB)
                assert disk.pread(length, offset) == raw.pread(length, offset)
        data = [extent for extent in raw.map(0, SIZE) if extent.data]
        assert all(
            any(extent.data for extent in disk.map(extent.offset, extent.length)) for extent in data
        )
        for offset in (0, 1, GRAIN - 1, 2 * GIB - 7, 2 * GIB, SIZE - 600, SIZE - 1, SIZE):
            assert disk.pread(1000, offset) == raw.pread(1000, offset)
    disk.close()
    disk.close()


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_same_map_as_qemu_img(tmp_path: Path, source: Path, subformat: str) -> None:
    path = converted(source, tmp_path / "a.vmdk", f"subformat={subformat}")
    disk = open_disk(path)
    ours = [(extent.offset, extent.length, extent.data) for extent in disk.map(0, SIZE)]
    assert ours == merged(qemu.mapping(path))
    hosts = {s.offset: s.host for s in disk.stretches(0, SIZE) if s.kind is Kind.DATA}
    theirs = {row["start"]: row["offset"] for row in qemu.mapping(path) if "offset" in row}
    if subformat == "monolithicSparse":
        assert hosts.items() <= theirs.items()
    disk.close()


def merged(rows: Any) -> list[tuple[int, int, bool]]:
    found: list[tuple[int, int, bool]] = []
    for row in rows:
        if found and found[-1][2] == row["data"]:
            start, length, data = found.pop()
            found.append((start, length + row["length"], data))
        else:
            found.append((row["start"], row["length"], row["data"]))
    return found


def test_an_overlay(tmp_path: Path) -> None:
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    qemu.create(base, 64 * MIB, format="vmdk")
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 1M", "-c", "write -P 2 40M 64k", base)
    qemu.run(
        *("qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk"),
        *("-o", "zeroed_grain=on", top, "80M"),
    )
    qemu.run(
        *("qemu-io", "-f", "vmdk", "-c", "write -P 3 64k 64k", "-c", "write -P 4 70M 64k"),
        *("-c", "write -z 128k 128k", top),
    )
    disk = open_disk(top, parent=open_disk(base))
    flat = tmp_path / "flat"
    qemu.run("qemu-img", "convert", "-O", "raw", top, flat)
    assert disk.pread(80 * MIB, 0) == flat.read_bytes()
    kinds = [
        (s.offset // GRAIN, s.length // GRAIN, s.kind, s.depth) for s in disk.stretches(0, MIB)
    ]
    assert kinds == [
        (0, 1, Kind.DATA, 1), (1, 1, Kind.DATA, 0), (2, 2, Kind.ZERO, 0), (4, 12, Kind.DATA, 1),
    ]  # fmt: skip
    *_, last = disk.stretches(0, 80 * MIB)
    assert (last.kind, last.depth) == (Kind.ABSENT, 1)
    alone = [(s.offset // GRAIN, s.kind) for s in disk.stretches(0, MIB, chain=False)]
    assert alone == [(0, Kind.ABSENT), (1, Kind.DATA), (2, Kind.ZERO), (4, Kind.ABSENT)]
    disk.close()
    without = open_disk(top)
    assert without.pread(GRAIN, 0) == bytes(GRAIN)
    assert without.pread(GRAIN, GRAIN) == b"\3" * GRAIN
    without.close()


def test_a_redo_log_of_esx(tmp_path: Path) -> None:
    rand = random.Random(2)
    grains = [rand.choice((None, rand.randbytes(4096))) for _ in range(9000)]
    (tmp_path / "a-delta.vmdk").write_bytes(cowd(grains))
    path = tmp_path / "a.vmdk"
    path.write_bytes(text('RW 72000 VMFSSPARSE "a-delta.vmdk"', kind="vmfsSparse"))
    disk = open_disk(path)
    content = b"".join(grain or bytes(4096) for grain in grains)
    assert disk.pread(len(content), 0) == content
    assert disk.unit == 4096
    flat = tmp_path / "flat"
    qemu.run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, flat)
    assert flat.read_bytes() == content
    assert check(open_memory(path), extents=[open_memory(tmp_path / "a-delta.vmdk")]).clean
    disk.close()


def test_a_flat_disk_of_esx() -> None:
    data = bytes(range(256)) * 16
    descriptor = MemoryHandle(text('RW 4 VMFS "a"', 'RW 3 VMFS "b"', kind="vmfs"))
    disk = VmdkDisk(descriptor, extents=[MemoryHandle(data), MemoryHandle(data)])
    assert disk.size() == 7 * 512
    assert disk.pread(9999, 5) == data[5:2048] + data[:1536]


def open_memory(path: Path) -> MemoryHandle:
    return MemoryHandle(path.read_bytes())


def small(*, stream: bool = False, parent: Parent | None = None) -> MemoryHandle:
    """Return an image of 34 MiB with grains in both of its tables."""
    handle = MemoryHandle()
    writer: VmdkWriter | VmdkStreamWriter
    if stream:
        writer = VmdkStreamWriter(handle, 34 * MIB, cid=1, threads=1)
    else:
        writer = VmdkWriter(handle, 34 * MIB, cid=1, parent=parent)
    for index in (0, 1, 3, 512, 543):
        writer.write(index * GRAIN, bytes([index % 255 + 1]) * GRAIN)
    writer.finish()
    return handle


def entry(handle: MemoryHandle, index: int, *, stream: bool = False) -> int:
    """Return where in a small image the entry of a grain stands."""
    directory = struct.unpack_from(
        "<Q", handle.data, len(handle.data) - 1024 + 56 if stream else 56
    )
    (table,) = struct.unpack_from("<I", handle.data, directory[0] * 512 + index // 512 * 4)
    return int(table * 512 + index % 512 * 4)


@pytest.mark.parametrize("value", [1, 2**32 - 1, 10**6])
def test_a_grain_outside_of_the_file(value: int) -> None:
    handle = small()
    struct.pack_into("<I", handle.data, entry(handle, 3), value)
    disk = VmdkDisk(handle)
    assert disk.pread(GRAIN, 0) == b"\1" * GRAIN
    for attempt in (lambda: disk.pread(512, 3 * GRAIN), lambda: list(disk.stretches(0, MIB))):
        with pytest.raises(CorruptImage, match="grain of byte 196608"):
            attempt()


def test_a_table_outside_of_the_file() -> None:
    handle = small()
    (directory,) = struct.unpack_from("<Q", handle.data, 56)
    struct.pack_into("<I", handle.data, directory * 512 + 4, 10**6)
    disk = VmdkDisk(handle)
    assert disk.pread(GRAIN, 0) == b"\1" * GRAIN
    with pytest.raises(CorruptImage, match="grain table at sector 1000000"):
        disk.pread(1, 33 * MIB)


def test_more_tables_than_fit() -> None:
    """A directory all of whose entries name one table would make a small file a long walk."""
    handle = MemoryHandle()
    vmdk_create.create(handle, 100 * GIB)
    data = handle.data[:MIB]
    struct.pack_into("<I", data, 8, 1)
    struct.pack_into("<QQ", data, 56, 21, 100)  # the other directory, which is within the file
    disk = VmdkDisk(MemoryHandle(bytes(data)))
    with pytest.raises(CorruptImage, match="3200 grain tables do not fit"):
        list(disk.stretches(0, disk.size()))


def test_compressed_grains_that_lie() -> None:
    for patch, reason in (
        (("<Q", 0, 5), "is that of sector 5"),
        (("<I", 8, 2**31), "compressed bytes"),
        (("<I", 8, 0), "compressed bytes"),
        (("<I", 8, 20), "has 0 bytes|no end|unpacked"),
        (("<H", 12, 0), "unpacked"),
    ):
        handle = small(stream=True)
        place = struct.unpack_from("<I", handle.data, entry(handle, 3, stream=True))[0] * 512
        struct.pack_into(patch[0], handle.data, place + patch[1], patch[2])
        disk = VmdkDisk(handle)
        assert next(disk.stretches(0, MIB)).kind is Kind.COMPRESSED
        assert disk.pread(GRAIN, GRAIN) == b"\2" * GRAIN
        with pytest.raises(CorruptImage, match=reason):
            disk.pread(512, 3 * GRAIN)


def test_wrong_number_of_files() -> None:
    descriptor = MemoryHandle(text('RW 4 FLAT "a" 0'))
    with pytest.raises(FormatError, match="names 1 extents, 0 were given"):
        VmdkDisk(descriptor)
    with pytest.raises(FormatError, match="no other files"):
        VmdkDisk(small(), extents=[MemoryHandle()])
    with pytest.raises(CorruptImage, match="ends beyond its file"):
        VmdkDisk(descriptor, extents=[MemoryHandle(bytes(2047))])
    longer = MemoryHandle(text('RW 131073 SPARSE "a"', kind="twoGbMaxExtentSparse"))
    with pytest.raises(CorruptImage, match="an extent has"):
        VmdkDisk(longer, extents=[small()])


def test_unmarked_compression() -> None:
    handle = small(stream=True)
    for base in (0, len(handle.data) - 1024):
        struct.pack_into("<I", handle.data, base + 8, 0x10001)
    with pytest.raises(UnsupportedFormat, match="without markers"):
        VmdkDisk(handle)


BASES = {
    "sparse": small().data,
    "parent": small(parent=Parent(b"base.vmdk", 7)).data,
    "stream": small(stream=True).data,
    "cowd": bytearray(cowd([b"a" * 4096, None, b"b" * 4096])),
}


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage(name: str, data: st.DataObject) -> None:
    """Whatever the bytes are: an answer of the right length, or an error of ours."""
    image = bytearray(BASES[name])
    tables = [at for at in range(0, len(image), 512) if any(image[at : at + 16])]
    for _ in range(data.draw(st.integers(1, 5))):
        where = data.draw(st.sampled_from(tables)) + data.draw(st.integers(0, 79))
        if where < len(image):
            image[where] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    handle = MemoryHandle(bytes(image))
    probe.probe(handle)
    with suppress(FormatError):
        describe(handle)
    with suppress(FormatError):
        check(handle)
    with suppress(FormatError):
        disk = VmdkDisk(handle)
        size = disk.size()
        for offset in (0, 3 * GRAIN - 5, 33 * MIB, size // 2, size - 9):
            with suppress(FormatError):
                length = max(min(70_000, size - offset), 0) if offset >= 0 else 0
                assert len(disk.pread(70_000, max(offset, 0))) == length or offset < 0
        for _ in zip(range(10_000), disk.stretches(0, size), strict=False):
            pass


def test_holes_of_a_flat_disk(tmp_path: Path, source: Path) -> None:
    disk = open_disk(converted(source, tmp_path / "a.vmdk", "subformat=twoGbMaxExtentFlat"))
    with open_file(source) as raw:
        for extent in disk.map(0, SIZE):
            if not extent.data:
                assert all(not there.data for there in raw.map(extent.offset, extent.length))
    assert any(not extent.data for extent in disk.map(0, SIZE))
    disk.close()


def test_an_empty_directory_costs_nothing() -> None:
    """64 TiB without a table: told in one stretch, and the directory is read but once."""
    handle = small()
    grains = (64 << 40) // 512
    struct.pack_into("<Q", handle.data, 12, grains)
    struct.pack_into("<I", handle.data, 8, 1)
    struct.pack_into("<Q", handle.data, 56, 1 << 20)
    sparse = Sparse(bytes(handle.data), (1 << 29) + (8 << 20))
    disk = VmdkDisk(sparse)
    assert [(s.length, s.kind) for s in disk.stretches(0, disk.size())] == [(64 << 40, Kind.ABSENT)]
    assert len(sparse.reads) < 30


class Sparse(MemoryHandle):
    """A file that is longer than its data: zeros follow."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data, claims=size)

    def pread(self, length: int, offset: int) -> bytes:
        length = max(min(length, self.size() - offset), 0)
        return super().pread(length, offset).ljust(length, b"\0")


@pytest.mark.parametrize(
    ("content", "cut", "reason"),
    [
        (bytes(GRAIN), 0, ""),
        (bytes(GRAIN + 1), 0, "65537 bytes"),
        (bytes(1 << 26), 0, "65537 bytes"),
        (bytes(GRAIN - 1), 0, "65535 bytes"),
        (bytes(GRAIN), 1, "no end"),
        (bytes(GRAIN), 4, "no end"),
        (b"", 0, "0 bytes"),
    ],
)
def test_content_of_a_compressed_grain(content: bytes, cut: int, reason: str) -> None:
    """Exactly a grain comes out of it, with a checksum; a bomb is never unpacked as a whole."""
    handle = small(stream=True)
    packed = zlib.compress(content, 9)
    packed = packed[: len(packed) - cut]
    place = len(handle.data) // 512
    table = entry(handle, 3, stream=True)
    footer = bytes(handle.data[-1024:])
    handle.data += struct.pack("<QI", 3 * 128, len(packed)) + packed
    handle.data += bytes(-len(handle.data) % 512) + footer
    struct.pack_into("<I", handle.data, table, place)
    disk = VmdkDisk(handle)
    if not reason:
        assert disk.pread(GRAIN, 3 * GRAIN) == content
        return
    with pytest.raises(CorruptImage, match=reason):
        disk.pread(1, 3 * GRAIN)


def test_a_wrong_checksum() -> None:
    handle = small(stream=True)
    (sector,) = struct.unpack_from("<I", handle.data, entry(handle, 3, stream=True))
    (length,) = struct.unpack_from("<I", handle.data, sector * 512 + 8)
    handle.data[sector * 512 + 12 + length - 1] ^= 1
    with pytest.raises(CorruptImage, match="cannot be unpacked"):
        VmdkDisk(handle).pread(1, 3 * GRAIN)


def test_several_threads() -> None:
    """Each gets the grain that it asked for although only the last one is kept."""
    handle = MemoryHandle()
    writer = VmdkStreamWriter(handle, 4 * GRAIN)
    for number in range(4):
        writer.write(number * GRAIN, bytes((number + 1,)) * GRAIN)
    writer.finish()
    disk = VmdkDisk(handle)

    def read(number: int) -> bool:
        expected = bytes((number + 1,)) * 8
        return all(disk.pread(8, number * GRAIN) == expected for _ in range(300))

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(4)))
    finally:
        sys.setswitchinterval(usual)
