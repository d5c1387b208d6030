"""Lists of internal snapshots: QEMU's, enormous ones, and ones that lie."""

from __future__ import annotations

import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats.errors import CorruptImage, FormatError
from storaged.formats.qcow2 import SnapshotHeader
from storaged.formats.qcow2_directory import printable
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_snapshots import Snapshot, read_snapshots
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.qcow2_content import read_only
from tests.formats.zoo_qcow2 import sound

MIB = 1 << 20


def entry(
    *, id: bytes = b"1", name: bytes = b"n", extra: bytes = bytes(16),
    extra_size: int | None = None, l1: tuple[int, int] = (0, 0), state: int = 0,
) -> bytes:  # fmt: skip
    fixed = SnapshotHeader(
        *l1, len(id), len(name), 1, 5, 7, state, len(extra) if extra_size is None else extra_size
    )
    data = fixed.pack() + extra + id + name
    return data + bytes(-len(data) % 8)


def image(*entries: bytes, count: int | None = None) -> MemoryHandle:
    data = sound(MIB)
    data += bytes(-len(data) % 65536)
    struct.pack_into(">IQ", data, 60, len(entries) if count is None else count, len(data))
    return MemoryHandle(bytes(data + b"".join(entries)))


@pytest.mark.parametrize("version", ["compat=0.10", "compat=1.1"])
def test_like_qemu(tmp_path: Path, version: str) -> None:
    path = qemu.create(tmp_path / "image", MIB, version)
    for name in ("first", "second", "späte Änderung"):
        qemu.run("qemu-img", "snapshot", "-c", name, path)
    qemu.run("qemu-img", "snapshot", "-d", "first", path)
    with read_only(path) as handle:
        snapshots = read_snapshots(handle)
    for ours, theirs in zip(snapshots, qemu.info(path)["snapshots"], strict=True):
        assert (ours.id, ours.name) == (theirs["id"], theirs["name"])
        assert ours.created // 10**9 == theirs["date-sec"]
        assert ours.created % 10**9 == theirs["date-nsec"]
        assert ours.vm_clock == theirs["vm-clock-sec"] * 10**9 + theirs["vm-clock-nsec"]
        assert ours.vm_state_size == theirs["vm-state-size"]
        assert ours.icount == theirs.get("icount")
        assert ours.disk_size == MIB
        assert ours.l1_size == 1


def test_none(tmp_path: Path) -> None:
    assert read_snapshots(MemoryHandle(bytes(sound(MIB)))) == ()


def test_optional_fields() -> None:
    """What older versions do not record, and what newer ones may add."""
    extras = (
        b"",
        struct.pack(">Q", 1 << 40),
        struct.pack(">QQ", 3, 512),
        struct.pack(">QQQ", 3, 512, 9),
        struct.pack(">QQQ", 3, 512, 2**64 - 1) + b"more",
    )
    found = read_snapshots(image(*(entry(extra=extra, state=4) for extra in extras)))
    assert [snapshot.vm_state_size for snapshot in found] == [4, 1 << 40, 3, 3, 3]
    assert [snapshot.disk_size for snapshot in found] == [None, None, 512, 512, 512]
    assert [snapshot.icount for snapshot in found] == [None, None, None, 9, None]


def test_many_tiny_ones_are_fast() -> None:
    handle = image(*[entry(id=b"", name=b"")] * 65536)
    began = time.process_time()
    assert len(read_snapshots(handle)) == 65536
    assert time.process_time() - began < 2  # a third of a second on an idle machine
    assert max(length for _, length in handle.reads) <= 1 << 18


@pytest.mark.parametrize(
    ("handle", "reason"),
    [
        (image(entry(extra_size=1025)), "1025 bytes of extra data"),
        (image(entry(extra_size=2**32 - 1)), "extra data, at most 1024"),
        (image(entry(), entry()[:50]), "beyond the end of the file"),
        (image(entry(id=b"x" * 65535, name=b"y" * 65535)[:-99]), "beyond the end of the file"),
        (image(b"\xff" * 64), "extra data"),
        (image(entry(), count=2), "beyond the end of the file"),
        (image(entry(), count=65537), "nb_snapshots is 65537"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lies(handle: MemoryHandle, reason: str) -> None:
    with pytest.raises(CorruptImage, match=reason):
        read_snapshots(handle)


def test_a_table_is_at_most_64_mib() -> None:
    one = entry(id=b"i" * 65535, name=b"n" * 65535)
    assert len(read_snapshots(image(*[one] * 100))) == 100
    with pytest.raises(CorruptImage, match="beyond its limit"):
        read_snapshots(image(*[one] * 513))


def test_the_last_entry_may_lack_its_padding() -> None:
    handle = image(entry(name=b"abc"))
    whole = bytes(handle.data).rstrip(b"\0")
    assert read_snapshots(MemoryHandle(whole))[0].name == "abc"


def test_names_are_safe_to_show() -> None:
    assert printable("späte".encode()) == "späte"
    assert printable(b"\x1b[2J\n\0\xff") == r"\x1b[2J\n\x00\xff"
    assert printable("\u202egpj".encode()) == r"\u202egpj"
    (snapshot,) = read_snapshots(image(entry(id=b"\n" * 300, name=b"x" * 300)))
    assert snapshot.id == r"\n" * 127
    assert snapshot.name == "x" * 255


@pytest.mark.parametrize(
    ("offset", "size", "disk_size", "reason"),
    [
        (100, 1, MIB, "is not aligned"),
        (0, 1, MIB, "is not aligned"),
        (1 << 40, 1, MIB, "beyond the end of the file"),
        (1 << 16, 1 << 23, MIB, "8388608 entries"),
        (1 << 16, 1, 1 << 60, "too small for its size"),
        (0, 0, 512, "too small for its size"),
    ],
)
def test_reading_one_that_lies(offset: int, size: int, disk_size: int, reason: str) -> None:
    snapshot = Snapshot("1", "n", 0, 0, 0, disk_size, offset, size)
    with pytest.raises(CorruptImage, match=reason):
        Qcow2Disk(MemoryHandle(bytes(sound(MIB))), snapshot=snapshot)


def test_without_a_recorded_size_it_is_the_disks() -> None:
    disk = Qcow2Disk(
        MemoryHandle(bytes(sound(MIB))), snapshot=Snapshot("1", "n", 0, 0, 0, None, 0, 0)
    )
    assert disk.pread(2 * MIB, 0) == bytes(MIB)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_flipped_bytes(data: st.DataObject) -> None:
    handle = image(entry(), entry(id=b"22", name=b"name", extra=bytes(24)), entry())
    table = len(handle.data) - 200
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(table, len(handle.data) - 1) | st.integers(0, 120))
        handle.data[place] = data.draw(st.integers(0, 255))
    with suppress(FormatError):
        for snapshot in read_snapshots(handle):
            assert snapshot.name.isprintable()
            assert snapshot.id.isprintable()
