"""The reader against QEMU: the same bytes, the same map, whatever the image's options are."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storaged.formats.disk import Kind, Stretch
from storaged.formats.errors import FormatError, UnsupportedFormat
from storaged.formats.qcow2 import CryptMethod
from storaged.formats.qcow2_create import CreateOptions, Preallocation, create
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_snapshots import read_snapshots
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.qcow2_content import (
    assert_same,
    content,
    opened,
    our_map,
    qemu_content,
    qemu_map,
    read_only,
    scattered,
)

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

MATRIX = (
    ("compat=0.10", "cluster_size=512"),
    ("compat=0.10", "cluster_size=64k"),
    ("compat=1.1", "cluster_size=512", "compression_type=zstd"),
    ("compat=1.1", "cluster_size=4k"),
    ("compat=1.1", "cluster_size=64k"),
    ("compat=1.1", "cluster_size=64k", "compression_type=zstd"),
    ("compat=1.1", "cluster_size=2M", "compression_type=zstd"),
    ("extended_l2=on", "cluster_size=16k"),
    ("extended_l2=on", "cluster_size=64k", "compression_type=zstd"),
    ("extended_l2=on", "cluster_size=2M"),
)


def cluster_size_of(options: tuple[str, ...]) -> int:
    text = next(option.partition("=")[2] for option in options if "cluster_size" in option)
    return int(text.rstrip("kM")) * {"k": KIB, "M": MIB}.get(text[-1], 1)


@pytest.mark.parametrize("options", MATRIX, ids=",".join)
def test_like_qemu(tmp_path: Path, options: tuple[str, ...]) -> None:
    cluster_size = cluster_size_of(options)
    size = 37 * cluster_size + 3 * 512
    path = qemu.create(tmp_path / "image", size, *options)
    qemu.io(path, *scattered(cluster_size, size, cluster_size))
    with opened(path) as disk:
        assert disk.size() == size
        assert disk.unit == cluster_size
        assert_same(path, disk)


@pytest.mark.parametrize("options", MATRIX, ids=",".join)
def test_converted_compressed(tmp_path: Path, options: tuple[str, ...]) -> None:
    """As ``qemu-img convert -c`` packs it: many to a host cluster, the last one cut short."""
    cluster_size = cluster_size_of(options)
    raw = tmp_path / "raw"
    piece = os.urandom(300) + b"text" * 53
    raw.write_bytes((piece * (9 * cluster_size // 512))[: 9 * cluster_size - 512] + bytes(512))
    path = tmp_path / "image"
    given = [word for option in options for word in ("-o", option)]
    qemu.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *given, raw, path)
    with opened(path) as disk:
        assert content(disk) == raw.read_bytes()
        assert disk.pread(700, cluster_size - 300) == raw.read_bytes()[cluster_size - 300 :][:700]
        kinds = {stretch.kind for stretch in disk.stretches(0, disk.size())}
        assert Kind.COMPRESSED in kinds
        assert our_map(disk) == qemu_map(path)


def test_any_part(tmp_path: Path) -> None:
    """Reads and maps of a part are that part of the whole."""
    size = 40 * 16 * KIB
    path = qemu.create(tmp_path / "image", size, "extended_l2=on", "cluster_size=16k")
    qemu.io(path, *scattered(5, size, 16 * KIB))
    with opened(path) as disk:
        whole = content(disk)
        marks = b"".join(
            bytes((list(Kind).index(stretch.kind),)) * (stretch.length // 512)
            for stretch in disk.stretches(0, size)
        )
        for offset in range(0, size, 7 * 512):
            for length in (1, 512, 5000, 100_000):
                assert disk.pread(length, offset + 3) == whole[offset + 3 :][:length]
            part = list(disk.stretches(offset, 20 * 512))
            assert part[0].offset == offset
            assert (
                b"".join(
                    bytes((list(Kind).index(stretch.kind),)) * (stretch.length // 512)
                    for stretch in part
                )
                == marks[offset // 512 :][:20]
            )
        assert disk.pread(10, size) == b""
        assert disk.pread(10, size + 5) == b""
        assert disk.pread(10, size - 5) == whole[-5:]
        assert list(disk.stretches(size, 10)) == []


def test_chain(tmp_path: Path) -> None:
    """Three images of different sizes, the middle one the shortest."""
    base = qemu.create(tmp_path / "base", 5 * MIB)
    middle = qemu.create(tmp_path / "middle", "2304k", f"backing_file={base}", "backing_fmt=qcow2")
    options = (f"backing_file={middle}", "backing_fmt=qcow2", "cluster_size=4k")
    top = qemu.create(tmp_path / "top", 4 * MIB, *options)
    for seed, (path, size, cluster) in enumerate(
        ((base, 5 * MIB, 65536), (middle, 2304 * KIB, 65536), (top, 4 * MIB, 4096))
    ):
        qemu.io(path, *scattered(seed, size, cluster, count=20))
    below = Qcow2Disk(read_only(middle), backing=Qcow2Disk(read_only(base)))
    with opened(top, backing=below) as disk:
        assert_same(top, disk)
        assert {stretch.depth for stretch in disk.stretches(0, 4 * MIB)} == {0, 1, 2}
        alone = list(disk.stretches(0, 4 * MIB, chain=False))
        assert {stretch.depth for stretch in alone} == {0}
        assert Kind.ABSENT in {stretch.kind for stretch in alone}
        tail = list(disk.stretches(3 * MIB, MIB))
        assert all(stretch.depth < 2 for stretch in tail)


@pytest.mark.parametrize("version", ["compat=0.10", "compat=1.1", "extended_l2=on"])
def test_raw_backing(tmp_path: Path, version: str) -> None:
    """Holes of a raw backing file are known; where it ends, zeros follow."""
    base = tmp_path / "base"
    base.write_bytes(b"b" * 200_000)
    with base.open("r+b") as file:
        file.truncate(3 * MIB + 300)
    options = (version, f"backing_file={base}", "backing_fmt=raw")
    path = qemu.create(tmp_path / "image", 5 * MIB, *options)
    qemu.io(path, *scattered(7, 5 * MIB, 65536, count=12))
    with opened(path, backing=read_only(base)) as disk:
        assert content(disk) == qemu_content(path, "-f", "qcow2")
        data = [s for s in disk.stretches(0, 5 * MIB) if s.kind is Kind.DATA and s.depth == 1]
        assert data
        assert all(stretch.host == stretch.offset for stretch in data)


@pytest.mark.parametrize("raw", ["on", "off"])
def test_data_file(tmp_path: Path, raw: str) -> None:
    data = tmp_path / "data"
    options = (f"data_file={data}", f"data_file_raw={raw}")
    path = qemu.create(tmp_path / "image", 3 * MIB + 512, *options)
    qemu.io(path, *scattered(3, 3 * MIB, 65536, compressed=False), "write -P 9 0 64k")
    with opened(path, data_file=read_only(data)) as disk:
        assert content(disk) == qemu_content(path, "-f", "qcow2")
        first = next(disk.stretches(0, MIB))
        assert first.kind is Kind.DATA
        assert first.host == 0
        assert first.file is not None
        assert first.file.pread(1, 0) == b"\x09"


def test_data_file_must_fit(tmp_path: Path) -> None:
    data = tmp_path / "data"
    path = qemu.create(tmp_path / "image", MIB, f"data_file={data}")
    plain = qemu.create(tmp_path / "plain", MIB)
    with read_only(path) as handle, read_only(data) as other, read_only(plain) as third:
        with pytest.raises(UnsupportedFormat, match="external file, which was not given"):
            Qcow2Disk(handle)
        with pytest.raises(FormatError, match="but the image has none"):
            Qcow2Disk(third, data_file=other)


@pytest.mark.parametrize("options", [("compat=0.10",), ("compat=1.1",), ("extended_l2=on",)])
def test_snapshots(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = qemu.create(tmp_path / "image", MIB, *options)
    for number in range(3):
        qemu.io(path, *scattered(number, MIB, 65536, count=8, compressed=not number))
        qemu.run("qemu-img", "snapshot", "-c", f"s{number}", path)
    qemu.io(path, *scattered(9, MIB, 65536, count=8, compressed=False))
    with read_only(path) as handle:
        snapshots = read_snapshots(handle)
    for snapshot in snapshots:
        with opened(path, snapshot=snapshot) as disk:
            assert content(disk) == qemu_content(path, "-f", "qcow2", "-l", snapshot.name)
            assert disk.size() == MIB
    with opened(path) as disk:
        assert_same(path, disk)


def test_snapshot_has_its_own_size(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", MIB)
    qemu.io(path, "write -P 5 0 1M")
    qemu.run("qemu-img", "snapshot", "-c", "before", path)
    qemu.run("qemu-img", "resize", "-q", "-f", "qcow2", path, "3M")
    with read_only(path) as handle:
        (snapshot,) = read_snapshots(handle)
    with opened(path, snapshot=snapshot) as disk:
        assert content(disk) == b"\x05" * MIB
    with opened(path) as disk:
        assert content(disk) == b"\x05" * MIB + bytes(2 * MIB)


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("extended", [False, True])
def test_preallocated(tmp_path: Path, preallocation: str, extended: bool) -> None:
    path = tmp_path / "image"
    options = CreateOptions(
        3 * MIB + 512, extended_l2=extended, preallocation=Preallocation(preallocation)
    )
    qemu.write_native(path, lambda handle: create(handle, options))
    by_qemu = qemu.create(
        tmp_path / "qemu", 3 * MIB + 512, f"preallocation={preallocation}",
        f"extended_l2={'on' if extended else 'off'}",
    )  # fmt: skip
    for image in (path, by_qemu):
        with opened(image) as disk:
            assert content(disk) == bytes(3 * MIB + 512)
        qemu.io(image, "write -P 1 512 70000")
        with opened(image) as disk:
            assert content(disk) == qemu_content(image, "-f", "qcow2")


def test_empty(tmp_path: Path) -> None:
    with opened(qemu.create(tmp_path / "image", 0)) as disk:
        assert disk.size() == 0
        assert disk.pread(10, 0) == b""
        assert list(disk.stretches(0, 10)) == []


@pytest.mark.parametrize("bit", [1, 2])
def test_marked_images_are_readable(tmp_path: Path, bit: int) -> None:
    """Dirty and corrupt: neither forbids reading."""
    path = qemu.create(tmp_path / "image", MIB)
    qemu.io(path, "write -P 5 0 1M")
    data = bytearray(path.read_bytes())
    data[79] |= bit
    disk = Qcow2Disk(MemoryHandle(bytes(data)))
    assert content(disk) == b"\x05" * MIB


def test_encrypted_is_not_native(tmp_path: Path) -> None:
    data = bytearray(qemu.create(tmp_path / "image", MIB).read_bytes())
    data[35] = CryptMethod.AES
    with pytest.raises(UnsupportedFormat, match="encrypted"):
        Qcow2Disk(MemoryHandle(bytes(data)))


def test_read_only_and_closed_with_all_it_has(tmp_path: Path) -> None:
    base = qemu.create(tmp_path / "base", MIB)
    backing = Qcow2Disk(read_only(base))
    path = qemu.create(tmp_path / "image", MIB, f"backing_file={base}", "backing_fmt=qcow2")
    disk = Qcow2Disk(read_only(path), backing=backing)
    calls: tuple[Callable[[], None], ...] = (
        lambda: disk.pwrite(b"x", 0),
        lambda: disk.truncate(0),
        lambda: disk.write_zeroes(0, 1),
    )
    for call in calls:
        with pytest.raises(OSError, match="Read-only") as info:
            call()
        assert info.value.errno == errno.EROFS
    assert disk.fileno() is None
    disk.close()
    disk.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        backing.pread(1, 0)


def test_threads(tmp_path: Path) -> None:
    size = 200 * 4 * KIB
    path = qemu.create(tmp_path / "image", size, "cluster_size=4k", "compression_type=zstd")
    qemu.io(path, *scattered(1, size, 4 * KIB, count=150))
    wrong: list[int] = []
    with opened(path) as disk:
        whole = content(disk)

        def read(seed: int) -> None:
            for step in range(400):
                offset = (seed * 977 + step * 7919) * 512 % size
                if disk.pread(6000, offset) != whole[offset : offset + 6000]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_maps_of_large_disks_are_few_stretches(tmp_path: Path) -> None:
    """Runs are found across tables, and what is absent costs nothing."""
    path = tmp_path / "image"
    options = CreateOptions(2 * GIB + 65536, preallocation=Preallocation.METADATA)
    qemu.write_native(path, lambda handle: create(handle, options))
    with opened(path) as disk:
        (stretch,) = disk.stretches(0, disk.size())
        assert stretch.length == 2 * GIB + 65536
        assert stretch.kind is Kind.DATA
    handle = MemoryHandle()
    create(handle, CreateOptions(64 * TIB))
    disk = Qcow2Disk(handle)
    handle.reads.clear()
    assert list(disk.stretches(0, disk.size())) == [Stretch(0, 64 * TIB, Kind.ABSENT)]
    assert len(handle.reads) < 20
