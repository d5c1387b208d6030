"""Growing in place: judged by qemu-img, and cut off after every single write."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from storaged.formats import qcow2, qcow2_grow
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.handle import Bytes
from storaged.formats.qcow2_create import CreateOptions, create
from tests.formats import qemu
from tests.formats.memory import LoggingHandle, MemoryHandle

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def grow(
    path: Path, capacity: int, *, backing_size: int | None = None
) -> tuple[qcow2.HeaderV2, qcow2.HeaderV2]:
    """Grow an image; return its header before and after."""
    with qemu.open_native(path) as handle:
        before = qcow2.read_header(handle.pread(112, 0)).fixed
        qcow2_grow.grow(handle, capacity, backing_size=backing_size)
        after = qcow2.read_header(handle.pread(112, 0)).fixed
    qemu.check(path)
    assert qemu.info(path)["virtual-size"] == -(-capacity // 512) * 512
    return before, after


def native(path: Path, options: CreateOptions) -> Path:
    return qemu.write_native(path, lambda handle: create(handle, options))


def test_size_only(tmp_path: Path) -> None:
    path = native(tmp_path / "image", CreateOptions(GIB + 512))
    before, after = grow(path, GIB + 100 * MIB + 1)
    assert after.size == GIB + 100 * MIB + 512
    assert (before.l1_size, before.l1_table_offset) == (after.l1_size, after.l1_table_offset)


def test_more_entries_in_the_same_cluster(tmp_path: Path) -> None:
    path = native(tmp_path / "image", CreateOptions(GIB))
    qemu.io(path, "write -P 1 0 1M")
    before, after = grow(path, 3 * TIB)
    assert before.l1_table_offset == after.l1_table_offset
    assert after.l1_size == 3 * TIB // (512 * MIB)
    qemu.io(path, "read -P 1 0 1M", "read -P 0 1G 1M", "write -P 2 2T 1M", "read -P 2 2T 1M")
    qemu.check(path)


def test_stale_bytes_behind_the_table_are_cleared(tmp_path: Path) -> None:
    path = native(tmp_path / "image", CreateOptions(GIB))
    with qemu.open_native(path) as handle:
        fixed = qcow2.read_header(handle.pread(112, 0)).fixed
        handle.pwrite(b"\xff" * 4096, fixed.l1_table_offset + 8 * fixed.l1_size)
    grow(path, TIB)
    qemu.io(path, "read -P 0 100G 1M")


def test_moved_table(tmp_path: Path) -> None:
    path = native(tmp_path / "image", CreateOptions(GIB))
    qemu.io(path, "write -P 1 0 1M")
    before, after = grow(path, 100 * TIB)
    assert after.l1_table_offset > before.l1_table_offset
    qemu.io(path, "read -P 1 0 1M", "write -P 2 99T 1M", "read -P 2 99T 1M")
    qemu.check(path)


def test_from_nothing(tmp_path: Path) -> None:
    path = native(tmp_path / "image", CreateOptions(0))
    before, after = grow(path, 10 * GIB)
    assert (before.l1_table_offset, after.l1_size) == (0, 20)
    qemu.io(path, "write -P 2 9G 1M")
    qemu.check(path)


def test_new_refcount_blocks(tmp_path: Path) -> None:
    """The longer table does not fit under the present refcount blocks."""
    options = CreateOptions(16 * MIB, cluster_size=512)
    path = native(tmp_path / "image", options)
    before, after = grow(path, 2 * GIB)
    assert after.refcount_table_offset == before.refcount_table_offset
    assert 8 * after.l1_size > 256 * 512  # more than one block counts
    qemu.io(path, "write -P 2 1G 1M")
    qemu.check(path)


def test_new_refcount_table(tmp_path: Path) -> None:
    options = CreateOptions(GIB, cluster_size=512, refcount_bits=64)
    path = native(tmp_path / "image", options)
    qemu.io(path, "write -P 1 0 64k")
    before, after = grow(path, 16 * GIB)
    assert after.refcount_table_clusters > before.refcount_table_clusters
    assert after.refcount_table_offset > before.refcount_table_offset
    qemu.io(path, "read -P 1 0 64k", "write -P 2 15G 1M", "read -P 2 15G 1M")
    qemu.check(path)


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True])
def test_many(tmp_path: Path, written: bool) -> None:
    for cluster_size, bits, old, new in itertools.product(
        (512, 4 * KIB, 64 * KIB, 2 * MIB), (1, 16, 64), (0, MIB, 300 * MIB), (500 * MIB, 5 * TIB)
    ):
        if new > qcow2.max_capacity(cluster_size, extended_l2=False):
            continue
        path = tmp_path / "image"
        qemu.create(path, old, f"cluster_size={cluster_size},refcount_bits={bits}")
        if written and old:
            qemu.io(path, "write -P 1 0 1M")
        grow(path, new)
        if written and old:
            qemu.io(path, "read -P 1 0 1M", f"write -P 2 {new - MIB} 1M")
            qemu.check(path)


@pytest.mark.parametrize("option", ["extended_l2=on", "lazy_refcounts=on", "compression_type=zstd"])
def test_features_stay(tmp_path: Path, option: str) -> None:
    path = qemu.create(tmp_path / "image", GIB, option)
    before = qemu.info(path)["format-specific"]
    grow(path, 20 * TIB)
    assert qemu.info(path)["format-specific"] == before


def test_internal_snapshots(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", GIB)
    qemu.io(path, "write -P 1 0 1M")
    qemu.run("qemu-img", "snapshot", "-c", "one", path)
    grow(path, 100 * TIB)
    qemu.io(path, "read -P 1 0 1M", "write -P 2 0 1M")
    qemu.check(path)
    assert qemu.info(path)["snapshots"][0]["name"] == "one"


def test_backing_file_and_unknown_things_stay(tmp_path: Path) -> None:
    qemu.create(tmp_path / "base", MIB)
    unknown = qcow2.pack_extension(0x12345678, b"keep me")
    path = tmp_path / "image"
    handle = MemoryHandle()
    create(handle, CreateOptions(GIB, backing=b"base", backing_format="qcow2"))
    blob = bytes(handle.data[112:528])  # up to the end marker
    handle.pwrite(unknown + blob + b"\0" * 8 + b"base", 112)
    name = 112 + len(unknown) + len(blob)
    handle.pwrite(name.to_bytes(8, "big"), 8)
    handle.pwrite(b"base", name)
    handle.pwrite((1 << 63).to_bytes(8, "big"), 80)  # compatible
    handle.pwrite((1 << 62).to_bytes(8, "big"), 88)  # autoclear
    path.write_bytes(handle.data)
    grow(path, 2 * GIB, backing_size=MIB)
    header = qcow2.read_header(path.read_bytes()[:112])
    assert header.compatible == 1 << 63
    assert header.autoclear == 0
    assert unknown in path.read_bytes()[:512]
    assert qemu.info(path)["backing-filename"] == "base"


@pytest.mark.parametrize(
    ("backing_size", "text"), [(MIB + 512, "would show"), (None, "is not known")]
)
def test_backing_data_never_show_in_the_new_space(backing_size: int | None, text: str) -> None:
    handle = MemoryHandle()
    create(handle, CreateOptions(MIB, backing=b"base", backing_format="raw"))
    before = bytes(handle.data)
    with pytest.raises(UnsupportedFormat, match=text):
        qcow2_grow.grow(handle, 2 * MIB, backing_size=backing_size)
    assert handle.data == before
    qcow2_grow.grow(handle, MIB, backing_size=backing_size)
    qcow2_grow.grow(handle, 2 * MIB, backing_size=MIB)


def test_hostile_length_costs_nothing() -> None:
    """A sparse file may be 8 EiB long, and the refcounts of its end would need a huge table."""
    handle = MemoryHandle()
    create(handle, CreateOptions(16 * MIB, cluster_size=512, refcount_bits=64))
    handle.claims = 2**63 - 512
    with pytest.raises(FormatError, match="refcount table would exceed 8 MiB"):
        qcow2_grow.grow(handle, 2 * GIB)


def test_full_disk_gets_its_space_back() -> None:
    class Full(MemoryHandle):
        def pwrite(self, data: Bytes, offset: int) -> None:
            super().pwrite(data[:1000], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    handle = MemoryHandle()
    create(handle, CreateOptions(16 * MIB, cluster_size=512))
    full = Full(bytes(handle.data))
    with pytest.raises(OSError, match="No space left"):
        qcow2_grow.grow(full, 2 * GIB)
    assert full.data == handle.data


def mark(offset: int, value: int, width: int = 8) -> Callable[[MemoryHandle], None]:
    return lambda handle: handle.pwrite(value.to_bytes(width, "big"), offset)


def leak(handle: MemoryHandle) -> None:
    handle.pwrite(b"\0\2", 131072 + 2 * 3)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (mark(72, 1), UnsupportedFormat, "not closed cleanly"),
        (mark(72, 2), CorruptImage, "marked as corrupt"),
        (mark(72, 1 << 40), UnsupportedFormat, "unknown incompatible features 0x10000000000"),
        (mark(72, 4), CorruptImage, "external file that has no name"),
        (mark(32, 1, 4), UnsupportedFormat, "AES"),
        (mark(40, 1 << 40), CorruptImage, "L1 table"),
        (mark(0, 0, 4), FormatError, "magic"),
        (mark(4, 5, 4), UnsupportedFormat, "version 5"),
        (leak, CorruptImage, "cluster 3 of the L1 table has refcount 2, not 1"),
        (mark(131072, 0), CorruptImage, "refcount 0, not 1"),
        (mark(65536, 0), CorruptImage, "refcount 0, not 1"),
        (mark(65536, 65536), CorruptImage, "refcount 0, not 1"),
        (mark(65536, 7), CorruptImage, "refcount block 0 at 7"),
        (mark(65536, 1 << 50), CorruptImage, "refcount block 0"),
    ],
)
def test_refusals(
    change: Callable[[MemoryHandle], None], error: type[FormatError], text: str
) -> None:
    handle = MemoryHandle()
    create(handle, CreateOptions(GIB))
    change(handle)
    before = bytes(handle.data)
    with pytest.raises(error, match=text):
        qcow2_grow.grow(handle, TIB)
    assert handle.data == before


def test_refuses_bitmaps(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", GIB)
    qemu.run("qemu-img", "bitmap", "--add", path, "b0")
    with qemu.open_native(path) as handle, pytest.raises(UnsupportedFormat, match="bitmaps"):
        qcow2_grow.grow(handle, 2 * GIB)


def test_refuses_snapshots_in_version_2(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", GIB, "compat=0.10")
    qemu.run("qemu-img", "snapshot", "-c", "one", path)
    with qemu.open_native(path) as handle, pytest.raises(UnsupportedFormat, match="snapshots"):
        qcow2_grow.grow(handle, 2 * GIB)


def test_never_shrinks_and_keeps_the_limit() -> None:
    handle = MemoryHandle()
    create(handle, CreateOptions(GIB))
    before = bytes(handle.data)
    with pytest.raises(FormatError, match="less than the present 1073741824"):
        qcow2_grow.grow(handle, GIB - 512)
    with pytest.raises(FormatError, match="exceeds"):
        qcow2_grow.grow(handle, 3000 * TIB)
    qcow2_grow.grow(handle, GIB)
    assert handle.data == before


CRASHES = [
    (CreateOptions(GIB), 2 * TIB, 0),
    (CreateOptions(0, cluster_size=512), MIB, 0),
    (CreateOptions(MIB, cluster_size=512), 64 * MIB, 0),
    (CreateOptions(16 * MIB, cluster_size=512), 100 * MIB, 0),
    (CreateOptions(16 * MIB, cluster_size=512, refcount_bits=64), 2 * GIB, 0),
    # The new clusters begin where no block counts yet, and one before that.
    (CreateOptions(16 * MIB, cluster_size=512, refcount_bits=64), 2 * GIB, 64 * 512),
    (CreateOptions(16 * MIB, cluster_size=512, refcount_bits=64), 2 * GIB, 63 * 512),
    # The refcount table moves, too.
    (CreateOptions(16 * MIB, cluster_size=512, refcount_bits=64), 9 * GIB, 0),
]


@pytest.mark.parametrize(("options", "capacity", "file_size"), CRASHES)
def test_a_crash_leaves_the_old_or_the_new_image(
    tmp_path: Path, options: CreateOptions, capacity: int, file_size: int
) -> None:
    """Stop after every write; lose, or keep alone, each write that no flush has secured."""
    handle = MemoryHandle()
    create(handle, options)
    handle.truncate(max(file_size, len(handle.data)))
    start = bytes(handle.data)
    log = LoggingHandle(start)
    qcow2_grow.grow(log, capacity)
    sizes = set()
    path = tmp_path / "image"
    for number, image in enumerate(states(start, log.groups)):
        path.write_bytes(image)
        size = qcow2.read_header(image[:112]).fixed.size
        assert size in (options.capacity, capacity)
        sizes.add(size)
        # 0 is clean, 3 says that clusters are leaked and nothing worse.
        status = subprocess.run(
            ["qemu-img", "check", "-q", "-f", "qcow2", path], capture_output=True
        ).returncode
        assert status in (0, 3), f"state {number}"
    assert sizes == {options.capacity, capacity}
    qemu.check(path)


def states(start: bytes, groups: list[list[tuple[int, bytes]]]) -> list[bytes]:
    """Every image that a crash could leave if writes of one group may be lost or reordered."""
    handle = MemoryHandle(start)
    found = [start]
    for group in groups:
        settled = bytes(handle.data)
        for offset, data in group:
            alone = MemoryHandle(settled)
            alone.pwrite(data, offset)
            found.append(bytes(alone.data))
            handle.pwrite(data, offset)
            found.append(bytes(handle.data))
    return list(dict.fromkeys(found))
