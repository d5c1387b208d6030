"""Tables that lie, runs against a naive search, and damage of every kind."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.disk import Kind, Stretch
from storaged.formats.errors import CorruptImage, FormatError
from storaged.formats.image import ImageState
from storaged.formats.qcow2 import COPIED, CompressionType
from storaged.formats.qcow2_bitmaps import read_bitmaps
from storaged.formats.qcow2_create import CreateOptions, Preallocation, create
from storaged.formats.qcow2_pages import Entries
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_snapshots import read_snapshots
from storaged.formats.qcow2_tables import COMPRESSED, ZERO
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.qcow2_content import content, scattered
from tests.formats.zoo_case import Case
from tests.formats.zoo_qcow2 import qcow2_cases

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 16 * KIB


@dataclass
class Image:
    """An image of 64 clusters, all of them there; its entries can be set."""

    handle: MemoryHandle
    l1: int
    l2: int
    data: int
    width: int

    def set(self, index: int, entry: int, bitmap: int = 0) -> None:
        place = self.l2 + index * self.width
        self.handle.pwrite(struct.pack(">QQ", entry, bitmap)[: self.width], place)

    def disk(self) -> Qcow2Disk:
        return Qcow2Disk(self.handle)

    def stretches(self) -> list[Stretch]:
        disk = self.disk()
        return list(disk.stretches(0, disk.size()))


def image(*, extended: bool = False, version: int = 3, clusters: int = 64) -> Image:
    handle = MemoryHandle()
    options = CreateOptions(
        clusters * CLUSTER,
        version=version,
        cluster_size=CLUSTER,
        extended_l2=extended,
        preallocation=Preallocation.METADATA,
    )
    create(handle, options)
    (l1,) = struct.unpack_from(">Q", handle.data, 40)
    l2 = struct.unpack_from(">Q", handle.data, l1)[0] & ~COPIED
    data = struct.unpack_from(">Q", handle.data, l2)[0] & ~COPIED
    made = Image(handle, l1, l2, data, 16 if extended else 8)
    if extended:
        for index in range(clusters):
            made.set(index, COPIED | data + index * CLUSTER, 2**32 - 1)
    return made


def refused(made: Image, reason: str) -> None:
    """Map and read say the same, and only of what lies there."""
    with pytest.raises(CorruptImage, match=reason):
        made.stretches()
    with pytest.raises(CorruptImage, match=reason):
        content(made.disk())
    assert made.disk().pread(10, 30 * CLUSTER) == bytes(10)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (1 << 56, "reserved bits"),
        (1 << 61, "reserved bits"),
        (2, "reserved bits"),
        (CLUSTER * 20 | 1 << 8, "reserved bits"),
        (CLUSTER * 20 + 512, "not aligned"),
        (CLUSTER * 20 + 512 | ZERO, "not aligned"),
        (1 << 40, "beyond the end of the file"),
        (COPIED | (1 << 56) - CLUSTER, "beyond the end of the file"),
        (COMPRESSED | 1 << 40, "compressed cluster at 1099511627776 reaches beyond"),
        (COMPRESSED | (1 << 62) - 1, "reaches beyond"),
    ],
)
def test_entries_that_lie(entry: int, reason: str) -> None:
    made = image()
    made.set(10, entry)
    refused(made, reason)


def test_zero_flag_in_version_2() -> None:
    made = image(version=2)
    made.set(10, ZERO)
    refused(made, "reserved bits")


@pytest.mark.parametrize(
    ("entry", "bitmap", "reason"),
    [
        (COPIED | CLUSTER * 20, 1 | 1 << 32, "impossible"),
        (0, 1, "impossible"),
        (CLUSTER * 20 | ZERO, 0, "reserved bits"),
        (COMPRESSED | 512, 1, "beside subclusters"),
        (CLUSTER * 20 | 2, 1, "reserved bits"),
    ],
)
def test_extended_entries_that_lie(entry: int, bitmap: int, reason: str) -> None:
    made = image(extended=True)
    made.set(10, entry, bitmap)
    refused(made, reason)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (1 << 40, "unaligned or not there"),
        (CLUSTER + 512, "unaligned or not there"),
        (CLUSTER | 1, "reserved bits"),
        (1 << 62, "reserved bits"),
    ],
)
def test_l1_entries_that_lie(entry: int, reason: str) -> None:
    made = image()
    struct.pack_into(">Q", made.handle.data, made.l1, entry)
    with pytest.raises(CorruptImage, match=f"L1 entry 0.*{reason}"):
        made.stretches()


def test_flag_without_an_offset_is_absent() -> None:
    made = image()
    struct.pack_into(">Q", made.handle.data, made.l1, COPIED)
    assert [stretch.kind for stretch in made.stretches()] == [Kind.ABSENT]
    made = image()
    made.set(10, COPIED)
    assert [stretch.kind for stretch in made.stretches()] == [Kind.DATA, Kind.ABSENT, Kind.DATA]


def test_subclusters() -> None:
    """Each kind in one cluster, of which a part reaches into the next."""
    made = image(extended=True)
    made.set(10, COPIED | made.data + 10 * CLUSTER, 0x0000FF00 | 0xFF0000FF << 32)
    part = CLUSTER // 4
    place = 10 * CLUSTER
    found = [stretch for stretch in made.stretches() if place <= stretch.offset < place + CLUSTER]
    assert [(stretch.kind, stretch.offset - place, stretch.length) for stretch in found] == [
        (Kind.ZERO, 0, part),
        (Kind.DATA, part, part),
        (Kind.ABSENT, 2 * part, part),
        (Kind.ZERO, 3 * part, part),
    ]
    assert found[1].host == made.data + place + part


def test_data_cut_short_read_as_zeros() -> None:
    made = image(clusters=3)
    for offset in (made.data + CLUSTER, made.data + 2 * CLUSTER):
        made.handle.pwrite(b"\x07" * CLUSTER, offset)
    made.handle.truncate(made.data + 2 * CLUSTER + 1000)
    assert content(made.disk()) == bytes(CLUSTER) + b"\x07" * (CLUSTER + 1000) + bytes(
        CLUSTER - 1000
    )
    assert [(stretch.kind, stretch.length) for stretch in made.stretches()] == [
        (Kind.DATA, 2 * CLUSTER + 1000),
        (Kind.ZERO, CLUSTER - 1000),
    ]
    made.handle.truncate(made.data + 2 * CLUSTER)
    with pytest.raises(CorruptImage, match="beyond the end"):
        made.stretches()


def test_one_table_for_the_whole_disk() -> None:
    """A few kilobytes must not claim more runs than the file has room for."""
    handle = MemoryHandle()
    create(handle, CreateOptions(1 << 40))
    (l1,) = struct.unpack_from(">Q", handle.data, 40)
    table = len(handle.data) + -len(handle.data) % 65536
    handle.pwrite(struct.pack(">QQ", 0, ZERO) * 4096, table)
    handle.pwrite(struct.pack(">Q", table) * 2048, l1)
    disk = Qcow2Disk(handle)
    began = time.process_time()
    with pytest.raises(CorruptImage, match="more L2 tables"):
        for _ in disk.stretches(0, disk.size()):
            pass
    assert time.process_time() - began < 2


def test_one_compressed_cluster_for_all_is_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = image()
    calls: list[int] = []

    def unpack(kind: CompressionType, data: bytes, size: int) -> bytes:
        calls.append(size)
        return bytes(size)

    monkeypatch.setattr("storaged.formats.packing.unpack", unpack)
    for index in range(64):
        made.set(index, COMPRESSED | made.data)
    assert content(made.disk()) == bytes(64 * CLUSTER)
    assert len(calls) == 1


def test_what_is_no_stream_names_its_place() -> None:
    made = image()
    made.handle.pwrite(b"\xff" * 512, made.data)
    made.set(10, COMPRESSED | made.data)
    with pytest.raises(CorruptImage, match=f"compressed cluster at {made.data}: not a deflate"):
        content(made.disk())


def test_memory_is_bounded() -> None:
    """Pages of tables are given up again."""
    handle = MemoryHandle()
    create(handle, CreateOptions(2 << 40, preallocation=Preallocation.OFF))
    (l1,) = struct.unpack_from(">Q", handle.data, 40)
    table = len(handle.data) + -len(handle.data) % 65536
    for index in range(200):
        handle.pwrite(struct.pack(">Q", table + index * 65536), l1 + 8 * index)
    handle.truncate(table + 200 * 65536)
    disk = Qcow2Disk(handle)
    assert [stretch.kind for stretch in disk.stretches(0, disk.size())] == [Kind.ABSENT]
    assert len(disk._mapping._pages._pages) <= 64
    handle.reads.clear()
    assert disk.pread(10, 0) == bytes(10)
    assert handle.reads  # its page had been given up
    handle.reads.clear()
    assert disk.pread(10, 4096) == bytes(10)
    assert not handle.reads


WORDS = st.sampled_from([0, 1, 512, 1024, 1536, 2048, COPIED, COPIED | 512, 2**64 - 1, 2**64 - 512])


@given(words=st.lists(WORDS, min_size=2, max_size=24), wide=st.booleans())
@settings(max_examples=400, deadline=None)
def test_runs_like_a_naive_search(words: list[int], wide: bool) -> None:
    width = 2 if wide else 1
    rows = [tuple(words[i : i + width]) for i in range(0, len(words) // width * width, width)]
    data = b"".join(struct.pack(f">{width}Q", *row) for row in rows)
    entries = Entries(data, 8 * width, 512)
    for index, row in enumerate(rows):
        until = index + 1
        while until < len(rows) and rows[until] == row:
            until += 1
        assert entries.equal_until(index) == until
        if row[0] >= COPIED + 2**60:
            continue  # reserved bits are set: that is checked before
        until = index + 1
        while until < len(rows) and rows[until] == (row[0] + 512 * (until - index), *row[1:]):
            until += 1
        assert entries.rising_until(index) == until


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small valid images that use everything."""
    folder: Path = tmp_path_factory.mktemp("victims")
    images = []
    for number, options in enumerate(
        (
            ("compat=0.10", "cluster_size=512"),
            ("compat=1.1", "cluster_size=4k", "compression_type=zstd"),
            ("extended_l2=on", "cluster_size=16k"),
        )
    ):
        cluster_size = (512, 4096, 16384)[number]
        path = qemu.create(folder / f"image{number}", 20 * cluster_size, *options)
        qemu.io(path, *scattered(number, 20 * cluster_size, cluster_size, count=12))
        qemu.run("qemu-img", "snapshot", "-c", "snap", path)
        if number:
            qemu.run("qemu-img", "bitmap", "--add", "-f", "qcow2", path, "bits")
        images.append(path.read_bytes())
    return images


def read_all(data: bytes) -> None:
    """Read a damaged image in every way; only the errors of this layer may come of it."""
    handle = MemoryHandle(data)
    snapshots = []
    with suppress(FormatError):
        read_bitmaps(handle)
    with suppress(FormatError):
        snapshots = list(read_snapshots(handle))
    for snapshot in (None, *snapshots[:2]):
        with suppress(FormatError):
            disk = Qcow2Disk(handle, snapshot=snapshot)
            size = disk.size()
            with suppress(FormatError):
                lengths = [stretch.length for stretch in disk.stretches(0, size)]
                assert sum(lengths) == size
            for offset in range(0, min(size, MIB), 32768):
                with suppress(FormatError):
                    assert len(disk.pread(32768, offset)) == min(32768, size - offset)


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_flipped_bytes(victims: list[bytes], data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from(victims)))
    word = st.integers(0, len(image) // 8 - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, 160) | word.map(lambda number: number * 8))
        image[place] = data.draw(st.integers(0, 255))
    began = time.process_time()
    read_all(bytes(image))
    assert time.process_time() - began < 5


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_used_entries_are_replaced(victims: list[bytes], data: st.DataObject) -> None:
    """Damage where it matters: words of the tables that are in use."""
    image = bytearray(data.draw(st.sampled_from(victims)))
    (l1,) = struct.unpack_from(">Q", image, 40)
    table = struct.unpack_from(">Q", image, l1)[0] & (1 << 56) - 512
    for _ in range(data.draw(st.integers(1, 6))):
        place = table + 8 * data.draw(st.integers(0, 39))
        value = data.draw(st.integers(0, 2**64 - 1) | st.integers(0, len(image)))
        struct.pack_into(">Q", image, place, value)
    read_all(bytes(image))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_truncated(victims: list[bytes], data: st.DataObject) -> None:
    image = data.draw(st.sampled_from(victims))
    read_all(image[: data.draw(st.integers(0, len(image)))])


def test_garbage_is_no_image() -> None:
    with pytest.raises(FormatError, match="magic"):
        Qcow2Disk(MemoryHandle(os.urandom(4096).replace(b"Q", b"R")))


@pytest.mark.parametrize("case", list(qcow2_cases()), ids=lambda case: case.name)
def test_the_zoo(case: Case) -> None:
    """What the probe calls corrupt or unknown is not read; all else is, or refused in words."""
    handle = MemoryHandle(case.data)
    if case.state in (ImageState.CORRUPT, ImageState.UNSUPPORTED) and "marked" not in case.reason:
        with pytest.raises(FormatError):
            Qcow2Disk(handle)
    began = time.process_time()
    read_all(case.data)
    assert time.process_time() - began < 1
