"""VMDK disks of ours, filled: read back by us, QEMU, dissect and 7-Zip."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.convert import convert
from storaged.formats.disk import Kind
from storaged.formats.errors import FormatError
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.image import ImageState
from storaged.formats.probe import probe
from storaged.formats.raw_writer import RawWriter
from storaged.formats.vmdk_check import check
from storaged.formats.vmdk_create import Parent
from storaged.formats.vmdk_describe import describe
from storaged.formats.vmdk_read import VmdkDisk
from storaged.formats.vmdk_stream_writer import VmdkStreamWriter
from storaged.formats.vmdk_writer import VmdkWriter
from storaged.formats.writer import Writer
from tests.formats import qemu
from tests.formats.memory import LoggingHandle, MemoryHandle
from tests.formats.vmdk_images import GRAIN, open_disk, open_file

MIB, GIB = 1 << 20, 1 << 30
KINDS: tuple[type[VmdkWriter] | type[VmdkStreamWriter], ...] = (VmdkWriter, VmdkStreamWriter)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
#: Three tables of which one is empty, and a last grain that is not whole.
SIZE = 80 * MIB + 5 * 512
GRAINS = (*range(7), 100, 511, 1024, 1025, 1279, 1280)


def grain(index: int) -> bytes:
    """Return content that is half random, half zeros."""
    return random.Random(index).randbytes(GRAIN // 2).ljust(GRAIN, b"\0")


def content() -> bytes:
    disk = bytearray(SIZE)
    for index in GRAINS:
        disk[index * GRAIN : (index + 1) * GRAIN] = grain(index)
    return bytes(disk[:SIZE])


def fill(writer: Writer) -> None:
    data = content()
    for index in GRAINS:
        writer.write(index * GRAIN, data[index * GRAIN : (index + 1) * GRAIN])
    writer.finish()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return qemu.write_native(
        tmp_path / "a.vmdk", lambda handle: fill(request.param(handle, SIZE, name="a.vmdk"))
    )


def test_by_us(image: Path) -> None:
    disk = open_disk(image)
    assert disk.pread(SIZE, 0) == content()
    with open_file(image) as handle:
        assert check(handle).clean
        assert check(handle).allocated == len(GRAINS)
        assert probe(handle).state is ImageState.OK
        assert probe(handle).subformat in ("monolithicSparse", "streamOptimized")
    disk.close()


def test_by_qemu(image: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(content())
    qemu.run("qemu-img", "check", "-f", "vmdk", image)
    qemu.run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, image)
    disk = open_disk(image)
    seen = [row for row in qemu.mapping(image) if row["data"]]
    ours = [s for s in disk.stretches(0, SIZE) if s.kind.data]
    covered = {place for row in seen for place in grains_of(row["start"], row["length"])}
    assert covered == set(GRAINS)
    assert covered == {place for s in ours for place in grains_of(s.offset, s.length)}
    disk.close()


def grains_of(offset: int, length: int) -> range:
    return range(offset // GRAIN, -(-(offset + length) // GRAIN))


def test_by_dissect(image: Path) -> None:
    vmdk = pytest.importorskip("dissect.hypervisor.disk.vmdk", reason="dissect is not installed")
    whole = SIZE & -8192  # it cannot read the last part of its own buffer
    with image.open("rb") as file:
        assert vmdk.VMDK(file).read(whole) == content()[:whole]


def test_by_7zip(image: Path, tmp_path: Path) -> None:
    if shutil.which("7z") is None:
        pytest.skip("7z is not installed (package p7zip-full)")
    qemu.run("7z", "x", "-bd", f"-o{tmp_path / 'out'}", image)
    (unpacked,) = (tmp_path / "out").iterdir()
    assert unpacked.read_bytes() == content()


def test_qemu_writes_to_it(tmp_path: Path) -> None:
    path = qemu.write_native(tmp_path / "a.vmdk", lambda handle: fill(VmdkWriter(handle, SIZE)))
    qemu.run("qemu-io", "-f", "vmdk", "-c", "write -P 5 200k 900k", "-c", "write -P 6 40M 1M", path)
    expected = bytearray(content())
    expected[200 << 10 : 1100 << 10] = b"\5" * (900 << 10)
    expected[40 * MIB : 41 * MIB] = b"\6" * MIB
    disk = open_disk(path)
    assert disk.pread(SIZE, 0) == expected
    with open_file(path) as handle:
        assert check(handle).clean
    disk.close()


#: In the second table, behind all that a pattern fills.
LAST = 540
patterns = st.lists(
    st.tuples(st.integers(0, 515), st.integers(1, 24), st.sampled_from("dzp")), max_size=12
)


@kinds
@settings(max_examples=20, deadline=None)
@given(runs=patterns, tail=st.integers(1, 128))
def test_round_trip(kind: type[Writer], runs: list[tuple[int, int, str]], tail: int) -> None:
    """Runs of grains that are written, placed or zeroed, in any pattern."""
    size = LAST * GRAIN + tail * 512
    handle = MemoryHandle(b"old" * 1000)
    writer = kind(handle, size)  # type: ignore[call-arg]
    expected = bytearray(size)
    end = 0
    for start, count, how in sorted(runs):
        first = max(start, end)
        end = max(start + count, end)
        offset, length = first * GRAIN, (end - first) * GRAIN
        if not length:
            continue
        data = bytes([first % 255 + 1]) * length
        if how == "z":
            writer.zero(offset, length)
            continue
        expected[offset : offset + length] = data
        room = writer.place(offset, length) if how == "p" else None
        if room is not None:
            assert room.length == length
            room.file.pwrite(data, room.offset)
        else:
            for place in range(offset, offset + length, GRAIN):
                writer.write(place, data[:GRAIN])
    writer.write(LAST * GRAIN, b"t" * tail * 512)
    expected[LAST * GRAIN :] = b"t" * tail * 512
    writer.finish()
    disk = VmdkDisk(handle)
    assert disk.pread(size, 0) == expected
    assert check(handle).clean


def test_over_a_parent(tmp_path: Path) -> None:
    base = qemu.write_native(tmp_path / "base.vmdk", lambda handle: fill(VmdkWriter(handle, SIZE)))
    with open_file(base) as handle:
        cid = describe(handle).cid
    assert cid is not None

    def overlay(handle: MemoryHandle | Any) -> None:
        writer = VmdkWriter(handle, SIZE, parent=Parent(b"base.vmdk", cid))
        writer.write(GRAIN, b"n" * GRAIN)
        writer.zero(2 * GRAIN, 2 * GRAIN)
        writer.zero(1280 * GRAIN, 5 * 512)
        writer.finish()

    top = qemu.write_native(tmp_path / "top.vmdk", overlay)
    expected = bytearray(content())
    expected[GRAIN : 2 * GRAIN] = b"n" * GRAIN
    expected[2 * GRAIN : 4 * GRAIN] = bytes(2 * GRAIN)
    expected[1280 * GRAIN :] = bytes(5 * 512)
    disk = open_disk(top, parent=open_disk(base))
    assert disk.pread(SIZE, 0) == expected
    assert [s.kind for s in disk.stretches(2 * GRAIN, 2 * GRAIN)] == [Kind.ZERO]
    disk.close()
    flat = tmp_path / "flat"
    qemu.run("qemu-img", "convert", "-O", "raw", top, flat)
    assert flat.read_bytes() == expected
    with open_file(top) as handle:
        assert check(handle).clean


def test_zeros_alone_leave_the_version(tmp_path: Path) -> None:
    handle = MemoryHandle()
    writer = VmdkWriter(handle, SIZE)
    writer.zero(0, MIB)
    writer.finish()
    assert struct.unpack_from("<I", handle.data, 4) == (1,)
    assert check(handle).allocated == 0


def test_zero_grains_take_no_room() -> None:
    handle = MemoryHandle()
    writer = VmdkStreamWriter(handle, SIZE)
    writer.write(0, bytes(GRAIN))
    writer.finish()
    assert check(handle).allocated == 0
    assert VmdkDisk(handle).pread(GRAIN, 0) == bytes(GRAIN)


@kinds
def test_no_image_before_the_end(kind: type[Writer]) -> None:
    handle = LoggingHandle(b"KDMV" + bytes(1000))
    fill(kind(handle, SIZE))  # type: ignore[call-arg]
    (writes,) = handle.groups
    assert [offset for offset, _ in writes].count(0) == 1
    assert writes[-1][0] == 0
    assert writes[-1][1].startswith(b"KDMV")


class Device(MemoryHandle):
    """Keeps its length, and what was in it."""

    def truncate(self, size: int) -> None:
        assert size <= len(self.data)


def test_a_device() -> None:
    handle = Device(b"\xff" * (8 * MIB))
    writer = VmdkWriter(handle, SIZE)
    assert not writer.blank
    place = writer.place(0, 2 * GRAIN)
    place.file.pwrite(b"a" * 2 * GRAIN, place.offset)
    writer.write(1280 * GRAIN, b"e" * 5 * 512)
    writer.finish()
    disk = VmdkDisk(handle)
    rest = SIZE - 2 * GRAIN - 5 * 512
    assert disk.pread(SIZE, 0) == b"a" * 2 * GRAIN + bytes(rest) + b"e" * 5 * 512
    with pytest.raises(FormatError, match="a device cannot"):
        VmdkStreamWriter(handle, SIZE)


def test_nothing_old_shows_behind_the_end_on_a_device() -> None:
    """The capacity is rounded up to a sector, of which the disk has only a part."""
    handle, length = Device(b"\xff" * (8 * MIB)), 2 * GRAIN + 100
    source = MemoryHandle(b"a" * length)
    convert(source, VmdkWriter(handle, length))
    disk = VmdkDisk(handle)
    assert disk.pread(disk.size(), 0) == (b"a" * length).ljust(2 * GRAIN + 512, b"\0")


def test_limits() -> None:
    with pytest.raises(FormatError, match="capacity must be from 1"):
        VmdkStreamWriter(MemoryHandle(), 0)
    writer = VmdkWriter(MemoryHandle(), SIZE)
    with pytest.raises(FormatError, match="not on the disk"):
        writer.write(1281 * GRAIN, bytes(GRAIN))
    with pytest.raises(FormatError, match="beyond 4294967296"):
        writer.place(0, 1 << 41)
    stream = VmdkStreamWriter(MemoryHandle(), SIZE)
    with pytest.raises(FormatError, match="not on the disk"):
        stream.write(1281 * GRAIN, b"a" * GRAIN)
    stream.abort()


def test_a_stream_out_of_order() -> None:
    stream = VmdkStreamWriter(MemoryHandle(), SIZE, threads=1)
    for index in (0, 1024, 1):
        stream.write(index * GRAIN, b"a" * GRAIN)
    with pytest.raises(FormatError, match="not given in order"):
        stream.finish()


def test_many_tables(tmp_path: Path) -> None:
    """More tables than are kept in memory, filled in one stroke and across the border."""

    def make(handle: Any) -> None:
        writer = VmdkWriter(handle, 20 * GIB)
        place = writer.place(8 * GIB - MIB, 2 * MIB)
        place.file.pwrite(b"\7" * (2 * MIB), place.offset)
        writer.write(0, b"\1" * GRAIN)
        writer.finish()

    path = qemu.write_native(tmp_path / "a.vmdk", make)
    disk = open_disk(path)
    data = [(e.offset, e.length) for e in disk.map(0, 20 * GIB) if e.data]
    assert data == [(0, GRAIN), (8 * GIB - MIB, 2 * MIB)]
    disk.close()
    patterns = ("read -P 1 0 64k", f"read -P 7 {8 * GIB - MIB} 2M", "read -P 0 9G 1M")
    for pattern in patterns:
        assert "failed" not in qemu.run("qemu-io", "-f", "vmdk", "-r", "-c", pattern, path)


def converted(
    source: Handle, target: Path, make: Callable[[FileHandle], Writer], *, chain: bool = True
) -> None:
    with qemu.open_native(target) as handle:
        convert(source, make(handle), chain=chain)


@kinds
def test_converted(kind: type[Writer], tmp_path: Path) -> None:
    """By the engine: from raw to VMDK, to the other kind of VMDK, and back."""
    other = next(other for other in KINDS if other is not kind)
    raw, back = tmp_path / "raw", tmp_path / "back"
    with raw.open("wb") as file:
        file.truncate(SIZE)
        for index in GRAINS[:-1]:
            file.seek(index * GRAIN)
            file.write(grain(index))
    one, two = tmp_path / "one.vmdk", tmp_path / "two.vmdk"
    with open_file(raw) as source:
        converted(source, one, lambda handle: kind(handle, SIZE))  # type: ignore[call-arg]
    disk = open_disk(one)
    converted(disk, two, lambda handle: other(handle, SIZE))
    disk.close()
    disk = open_disk(two)
    converted(disk, back, lambda handle: RawWriter(handle, SIZE))
    disk.close()
    assert back.read_bytes() == raw.read_bytes()
    for path in (one, two):
        qemu.run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, path)
        with open_file(path) as handle:
            assert check(handle).clean


def test_the_top_layer_alone(tmp_path: Path) -> None:
    """A copy of an overlay stays one; what reads as zeros there does so in the copy."""
    base = qemu.write_native(tmp_path / "base.vmdk", lambda handle: fill(VmdkWriter(handle, SIZE)))
    parent = Parent(b"base.vmdk", 1)

    def overlay(handle: Any) -> None:
        writer = VmdkWriter(handle, SIZE, parent=parent)
        writer.write(GRAIN, b"n" * GRAIN)
        writer.zero(2 * GRAIN, 2 * GRAIN)
        writer.finish()

    top = qemu.write_native(tmp_path / "top.vmdk", overlay)
    copy = tmp_path / "copy.vmdk"
    disk = open_disk(top, parent=open_disk(base))
    converted(disk, copy, lambda handle: VmdkWriter(handle, SIZE, parent=parent), chain=False)
    copied = open_disk(copy, parent=open_disk(base))
    assert copied.pread(SIZE, 0) == disk.pread(SIZE, 0)
    kinds = [(s.kind, s.length) for s in disk.stretches(0, SIZE, chain=False)]
    assert [(s.kind, s.length) for s in copied.stretches(0, SIZE, chain=False)] == kinds
    copied.close()
    disk.close()
