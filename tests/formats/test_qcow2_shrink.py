"""Shrinking in place: judged by qemu-img, and cut off after every single write."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import qcow2
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.qcow2_check import check
from storaged.formats.qcow2_create import CreateOptions, Preallocation, create
from storaged.formats.qcow2_grow import grow
from storaged.formats.qcow2_shrink import shrink
from tests.formats import qemu
from tests.formats.crash import CrashHandle
from tests.formats.memory import MemoryHandle

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def shrunk(path: Path, capacity: int) -> None:
    with qemu.open_native(path) as handle:
        shrink(handle, capacity)
        assert check(handle).clean
    qemu.check(path)
    assert qemu.info(path)["virtual-size"] == -(-capacity // 512) * 512


def grown(path: Path, capacity: int) -> None:
    with qemu.open_native(path) as handle:
        grow(handle, capacity)
    qemu.check(path)


def reads(path: Path, *commands: str) -> None:
    """Read with a pattern; qemu-io says so if it is not what is there."""
    argv = [word for command in commands for word in ("-c", f"read -P {command}")]
    result = subprocess.run(
        ["qemu-io", "-f", "qcow2", *argv, path], capture_output=True, text=True, timeout=60
    )
    assert "verification failed" not in result.stdout + result.stderr
    assert "read" in result.stdout


OPTIONS = [
    pytest.param("cluster_size=512", marks=pytest.mark.slow), "cluster_size=64k",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=16k,refcount_bits=4", "extended_l2=on", "compat=0.10", "lazy_refcounts=on",
    "refcount_bits=64,cluster_size=2M", "cluster_size=4k,preallocation=metadata",
    "preallocation=falloc", "extended_l2=on,preallocation=metadata",
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_step_by_step_and_back(tmp_path: Path, options: str) -> None:
    path = qemu.create(tmp_path / "image", 40 * MIB, options)
    qemu.io(
        path, "write -P 1 0 3M", "write -P 2 20M 3M", "write -z 30M 1M", "write -P 3 39M 1M"
    )  # fmt: skip
    shrunk(path, 39 * MIB + 1)
    reads(path, "1 0 3M", "2 20M 3M", "0 30M 1M", f"3 {39 * MIB} 512")
    shrunk(path, 21 * MIB + 512)
    reads(path, "1 0 3M", "0 3M 17M", "2 20M 1M", f"2 {21 * MIB} 512")
    shrunk(path, 2 * MIB + 512)
    reads(path, "1 0 2M", f"1 {2 * MIB} 512")
    before = path.stat().st_blocks
    grown(path, 40 * MIB)
    reads(path, f"1 0 {2 * MIB + 512}", f"0 {2 * MIB + 512} {38 * MIB - 512}")
    shrunk(path, 0)
    assert path.stat().st_blocks < before
    grown(path, 40 * MIB)
    reads(path, "0 0 40M")
    qemu.io(path, "write -P 5 0 40M")
    qemu.check(path)


def test_space_is_given_back(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", 40 * MIB)
    qemu.io(path, "write -P 2 20M 10M", "write -P 1 0 1M", "write -P 3 30M 10M")
    shrunk(path, 10 * MIB)
    # What lies before the data that stay is a hole, what lies behind them is cut off.
    assert 11 * MIB < path.stat().st_size < 12 * MIB
    assert path.stat().st_blocks * 512 < 2 * MIB
    reads(path, "1 0 1M")


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_compressed_clusters(tmp_path: Path, kind: str) -> None:
    """Several lie in one cluster of the file, which is free when the last of them goes."""
    source = qemu.create(tmp_path / "source", 4 * MIB)
    qemu.io(source, "write -P 1 0 2M", "write -P 2 2M 2M")
    path = tmp_path / "image"
    options = f"compression_type={kind}"
    qemu.run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", options, source, path)
    with qemu.open_native(path) as handle, pytest.raises(UnsupportedFormat, match="compressed"):
        shrink(handle, 3 * MIB + 512)
    shrunk(path, 3 * MIB)
    reads(path, "1 0 2M", "2 2M 1M")
    shrunk(path, 64 * KIB)
    reads(path, "1 0 64k")
    grown(path, 4 * MIB)
    reads(path, "1 0 64k", f"0 64k {4 * MIB - 64 * KIB}")


def test_a_backing_file_stays(tmp_path: Path) -> None:
    base = qemu.create(tmp_path / "base", 4 * MIB)
    qemu.io(base, "write -P 9 0 4M")
    path = tmp_path / "image"
    qemu.run(
        "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", path, "8M"
    )  # fmt: skip
    qemu.io(path, "write -P 1 1M 1M", "write -P 2 6M 1M")
    shrunk(path, 5 * MIB)
    reads(path, "9 0 1M", "1 1M 1M", "9 2M 2M", "0 4M 1M")
    with qemu.open_native(path) as handle:
        grow(handle, 8 * MIB, backing_size=4 * MIB)
    reads(path, "0 4M 4M")


def test_old_data_of_qemus_own_shrink_do_not_come_back(tmp_path: Path) -> None:
    """QEMU leaves them in the cluster that the end lies in."""
    path = qemu.create(tmp_path / "image", 4 * MIB)
    qemu.io(path, "write -P 1 0 4M")
    qemu.run("qemu-img", "resize", "-q", "--shrink", path, str(MIB + 512))
    grown(path, 4 * MIB)
    reads(path, f"1 0 {MIB + 512}", f"0 {MIB + 512} {3 * MIB - 512}")


def native(options: CreateOptions) -> MemoryHandle:
    handle = MemoryHandle()
    create(handle, options)
    return handle


def full(capacity: int = MIB, **options: object) -> MemoryHandle:
    """An image that has every cluster, all of them written."""
    handle = native(CreateOptions(capacity, preallocation=Preallocation.METADATA, **options))  # type: ignore[arg-type]
    header = qcow2.read_header(bytes(handle.data[:112]))
    first = len(handle.data) - capacity
    handle.data[first:] = b"\xaa" * capacity
    assert header.cluster_size <= first
    return handle


CRASHES = [
    (full(64 * KIB, cluster_size=512), 0),
    (full(64 * KIB, cluster_size=512), 20 * KIB),
    (full(64 * KIB, cluster_size=4 * KIB, refcount_bits=1), 20 * KIB + 512),
    (full(64 * KIB, cluster_size=512, refcount_bits=64), 40 * KIB),
    (full(128 * KIB, cluster_size=16 * KIB, extended_l2=True), 33 * KIB),
    (full(64 * KIB, cluster_size=4 * KIB, version=2), 3 * KIB),
]


@pytest.mark.parametrize(("image", "capacity"), CRASHES)
def test_a_crash_leaves_the_old_or_the_new_image(
    tmp_path: Path, image: MemoryHandle, capacity: int
) -> None:
    start = bytes(image.data)
    log = CrashHandle(start)
    shrink(log, capacity)
    old = qcow2.read_header(start[:112]).fixed.size
    sizes, count = set(), 0
    for number, state in enumerate(log.states()):
        count += 1
        size = qcow2.read_header(state[:112]).fixed.size
        sizes.add(size)
        report = check(MemoryHandle(state))
        assert not report.corruptions, report.findings
        if size == old:
            assert state[512:] == start[512:]
        # However far it came, what is dropped does not show when the disk grows again.
        again = MemoryHandle(state)
        grow(again, old)
        if size != old:
            assert check(again).corruptions == 0
            path = tmp_path / "again"
            if number % 10 == 0:
                path.write_bytes(again.data)
                reads(path, f"0 {capacity} {old - capacity}")
        if number % 7 == 0:
            path = tmp_path / "image"
            path.write_bytes(state)
            argv = ["qemu-img", "check", "-q", "-f", "qcow2", str(path)]
            assert subprocess.run(argv, capture_output=True).returncode in (0, 3)
    assert sizes == {old, capacity}
    assert count > 4
    assert check(MemoryHandle(bytes(log.data))).clean


def test_shrinking_again_is_not_needed_after_a_crash() -> None:
    """Growing finishes what was left, its space included."""
    log = CrashHandle(bytes(full(64 * KIB, cluster_size=4 * KIB).data))
    shrink(log, 20 * KIB)
    states = [state for state in log.states() if len(state) == len(log.start)]
    switched = next(
        state for state in states if qcow2.read_header(state[:112]).fixed.size == 20 * KIB
    )
    handle = MemoryHandle(switched)
    grow(handle, 24 * KIB)
    assert check(handle).clean
    assert len(handle.data) < len(switched)


def mark(offset: int, value: int, width: int = 8) -> Callable[[MemoryHandle], None]:
    return lambda handle: handle.pwrite(value.to_bytes(width, "big"), offset)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (mark(72, 1), UnsupportedFormat, "not closed cleanly"),
        (mark(72, 2), CorruptImage, "marked as corrupt"),
        (mark(72, 1 << 40), UnsupportedFormat, "unknown incompatible features"),
        (mark(32, 1, 4), UnsupportedFormat, "encrypted"),
        (mark(60, 1, 4), CorruptImage, "snapshot table overlaps"),
        (mark(40, 1 << 40), CorruptImage, "L1 table"),
        (mark(0, 0, 4), FormatError, "magic"),
        (mark(131072, 0), CorruptImage, "cluster 0 has refcount 0"),
        (mark(262144, qcow2.COPIED | 0x10000), CorruptImage, "cluster 1 has refcount 1"),
        (mark(262144, 1 << 57), CorruptImage, "reserved bits"),
    ],
)
def test_refusals(
    change: Callable[[MemoryHandle], None], error: type[FormatError], text: str
) -> None:
    handle = full()
    change(handle)
    before = bytes(handle.data)
    with pytest.raises(error, match=text):
        shrink(handle, 64 * KIB)
    assert handle.data == before


def test_a_shared_cluster_is_counted_down_or_refused() -> None:
    """Two places of the disk in one cluster: legal, though QEMU makes none without snapshots."""
    handle = full()
    shared = struct.pack(">Q", 5 * 65536)
    handle.pwrite(shared, 262144)
    handle.pwrite(shared, 262144 + 8)
    handle.pwrite(b"\0\2\0\0", 131072 + 10)
    assert check(handle).clean
    with pytest.raises(UnsupportedFormat, match="used more than once"):
        shrink(handle, 512)
    shrink(handle, 65536)
    report = check(handle)
    # The cluster is single now, but its entry does not say so.
    assert report.findings == ("L2 entry 0x50000 has a wrong refcount flag",)


def test_a_cluster_that_loses_more_references_than_a_byte_holds() -> None:
    """Of 600 places of the disk that are one cluster, the first stays."""
    handle = full(600 * 512, cluster_size=512)
    header = qcow2.read_header(bytes(handle.data[:112]))
    first = len(handle.data) // 512 - 600
    l1 = header.fixed.l1_table_offset
    for number in range(600):
        table = int.from_bytes(handle.data[l1 + number // 64 * 8 :][:8], "big") & ~qcow2.COPIED
        struct.pack_into(">Q", handle.data, table + number % 64 * 8, first * 512)
    block = int.from_bytes(handle.data[header.fixed.refcount_table_offset :][:8], "big")
    assert block == header.fixed.refcount_table_offset + 512
    for number in range(600):
        place = block + 2 * (first + number)
        handle.pwrite(b"\2\x58" if not number else b"\0\0", place)
    assert check(handle).clean
    shrink(handle, 512)
    report = check(handle)
    assert (report.corruptions, report.leaks, report.allocated) == (1, 0, 1)  # its flag


def test_refuses_snapshots_and_bitmaps(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", GIB)
    qemu.run("qemu-img", "bitmap", "--add", path, "b0")
    with qemu.open_native(path) as handle, pytest.raises(UnsupportedFormat, match="bitmaps"):
        shrink(handle, MIB)
    qemu.run("qemu-img", "bitmap", "--remove", path, "b0")
    qemu.run("qemu-img", "snapshot", "-c", "one", path)
    with qemu.open_native(path) as handle, pytest.raises(UnsupportedFormat, match="snapshots"):
        shrink(handle, MIB)
    assert qemu.info(path)["virtual-size"] == GIB


def test_never_grows_and_does_nothing_for_nothing() -> None:
    handle = full()
    before = bytes(handle.data)
    with pytest.raises(FormatError, match="exceeds the present 1048576"):
        shrink(handle, MIB + 1)
    with pytest.raises(FormatError, match="negative"):
        shrink(handle, -1)
    shrink(handle, MIB)
    shrink(handle, MIB - 511)
    assert handle.data == before


def test_a_cancel_during_the_check_changes_nothing() -> None:
    handle = full()
    before = bytes(handle.data)

    def stop(done: int, total: int) -> None:
        assert done <= total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(handle, 64 * KIB, checkpoint=stop)
    assert handle.data == before


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(9, 14),
    order=st.integers(0, 6),
    capacities=st.lists(st.integers(0, 300 * KIB), min_size=1, max_size=4),
    written=st.lists(st.integers(0, 250 * KIB), max_size=8),
)
def test_any_sequence_of_sizes(
    bits: int, order: int, capacities: list[int], written: list[int]
) -> None:
    handle = full(256 * KIB, cluster_size=1 << bits, refcount_bits=1 << order)
    for place in written:
        handle.pwrite(b"\x55", len(handle.data) - 1 - place)
    size = 256 * KIB
    for capacity in capacities:
        capacity = -(-capacity // 512) * 512
        if capacity < size:
            shrink(handle, capacity)
        else:
            grow(handle, capacity)
        size = capacity
        report = check(handle)
        assert report.clean, report.findings
        assert qcow2.read_header(bytes(handle.data[:112])).fixed.size == size


@settings(max_examples=100, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 12 * KIB), st.integers(0, 255)), max_size=4))
def test_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    """It is refused and unchanged, or done and no worse."""
    handle = full(64 * KIB, cluster_size=512)
    for place, value in flips:
        handle.data[place] = value
    before = bytes(handle.data)
    try:
        shrink(handle, 20 * KIB)
    except FormatError:
        assert handle.data == before
    else:
        assert not check(handle).corruptions or check(MemoryHandle(before)).corruptions
