"""Check of qcow2 images: the same verdict as qemu-img's, and none that a hostile image decides."""

from __future__ import annotations

import itertools
import json
import random
import struct
import subprocess
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import qcow2
from storaged.formats.checkreport import MAX_FINDINGS, CheckReport
from storaged.formats.errors import FormatError, UnsupportedFormat
from storaged.formats.qcow2_check import check
from storaged.formats.qcow2_create import CreateOptions, Preallocation, create
from storaged.formats.tables import pack_offsets, pack_refcounts
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.zoo_case import Case
from tests.formats.zoo_qcow2 import qcow2_cases

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
ALL = 2**64 - 1


def ours(path: Path) -> CheckReport:
    with qemu.open_native(path) as handle:
        return check(handle)


def theirs(path: Path) -> Any:
    argv = ["qemu-img", "check", "-f", "qcow2", "--output=json", str(path)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return json.loads(result.stdout)


def compare(path: Path) -> CheckReport:
    """Check an image with both; every figure must be the same."""
    report, other = ours(path), theirs(path)
    expected = (other.get("corruptions", 0), other.get("leaks", 0))
    assert (report.corruptions, report.leaks) == expected, report.findings
    assert report.end == other["image-end-offset"]
    assert report.total == other.get("total-clusters", 0)
    assert report.allocated == other.get("allocated-clusters", 0)
    assert report.compressed == other.get("compressed-clusters", 0)
    return report


def clean(path: Path) -> None:
    report = compare(path)
    assert report.clean
    assert not report.findings


def write_some(path: Path, size: int, seed: int = 1) -> None:
    """Write, zero and discard here and there."""
    choose = random.Random(seed)
    commands = []
    for _ in range(12):
        length = choose.choice((512, 3 * KIB, 64 * KIB, 200 * KIB))
        offset = choose.randrange((size - length) // 512) * 512
        commands.append(
            choose.choice(("write -P 7", "write -P 9", "write -z", "discard"))
            + f" {offset} {length}"
        )
    qemu.io(path, *commands)


OPTIONS = [
    f"cluster_size={cluster_size},refcount_bits={bits}"
    for cluster_size, bits in itertools.product((512, 4 * KIB, 64 * KIB, 2 * MIB), (1, 2, 4, 64))
] + [
    "refcount_bits=8", "refcount_bits=16", "refcount_bits=32", "compat=0.10", "lazy_refcounts=on",
    "extended_l2=on", "extended_l2=on,cluster_size=16k", "preallocation=metadata",
    "preallocation=metadata,extended_l2=on", "preallocation=falloc,cluster_size=4k",
    "compression_type=zstd",
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_images_of_qemu(tmp_path: Path, options: str) -> None:
    path = qemu.create(tmp_path / "image", 9 * MIB, options)
    clean(path)
    write_some(path, 9 * MIB)
    clean(path)


@pytest.mark.parametrize("options", ["", "extended_l2=on", "cluster_size=512", "compat=0.10"])
def test_internal_snapshots(tmp_path: Path, options: str) -> None:
    path = qemu.create(tmp_path / "image", 9 * MIB, *([options] if options else []))
    for number in range(3):
        write_some(path, 9 * MIB, number)
        qemu.run("qemu-img", "snapshot", "-c", f"s{number}", path)
        clean(path)
    write_some(path, 9 * MIB, 9)
    clean(path)
    qemu.run("qemu-img", "snapshot", "-d", "s1", path)
    clean(path)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", [4 * KIB, 64 * KIB])
@pytest.mark.parametrize("bits", [2, 16])
def test_compressed_clusters(tmp_path: Path, kind: str, cluster_size: int, bits: int) -> None:
    source = qemu.create(tmp_path / "source", 5 * MIB + 512)
    write_some(source, 5 * MIB)
    path = tmp_path / "image"
    options = f"compression_type={kind},cluster_size={cluster_size},refcount_bits={bits}"
    qemu.run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", options, source, path)
    clean(path)
    assert ours(path).compressed
    if bits == 16:
        qemu.run("qemu-img", "snapshot", "-c", "one", path)
        clean(path)
    write_some(path, 5 * MIB, 2)
    clean(path)


def test_bitmaps(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", 100 * MIB)
    qemu.run("qemu-img", "bitmap", "--add", path, "b0")
    qemu.run("qemu-img", "bitmap", "--add", "-g", "512", path, "b1")
    write_some(path, 100 * MIB)
    clean(path)
    qemu.run("qemu-img", "bitmap", "--remove", path, "b0")
    clean(path)


def test_a_bitmap_in_use_is_only_told(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "image", MIB)
    qemu.run("qemu-img", "bitmap", "--add", path, "b0")
    data = bytearray(path.read_bytes())
    place = qcow2.BitmapsExtension.unpack(data, data.index(b"\x23\x85\x28\x75\0\0\0\x18") + 8)
    struct.pack_into(">I", data, place.bitmap_directory_offset + 12, 3)
    path.write_bytes(data)
    report = compare(path)
    assert report.clean
    assert report.findings == ("bitmap 0 was not saved: it is in use or out of date",)


@pytest.mark.parametrize("raw", ["off", "on"])
def test_data_files(tmp_path: Path, raw: str) -> None:
    options = f"data_file={tmp_path / 'data'},data_file_raw={raw}"
    path = qemu.create(tmp_path / "image", 9 * MIB, options)
    qemu.io(path, "write -P 1 0 3M", "write -z 1M 1M")
    report = compare(path)
    assert report.clean
    assert report.findings == ("the data lie in an external file",)
    with qemu.open_native(path) as handle:
        assert check(handle, data_file_size=9 * MIB).findings == report.findings
        short = check(handle, data_file_size=512)
        assert "the data file of 512 bytes is too short" in short.findings
        assert short.clean
    place = path.read_bytes().index(struct.pack(">Q", qcow2.COPIED | 65536), 262144)
    with qemu.open_native(path) as handle:
        handle.pwrite(b"\0", place)
    assert compare(path).corruptions == 1


@pytest.mark.slow
def test_luks(tmp_path: Path) -> None:
    path = tmp_path / "image"
    secret = ("--object", "secret,id=s,data=abc")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qemu.run("qemu-img", "create", "-q", *secret, "-f", "qcow2", "-o", options, path, "9M")
    assert ours(path).clean


@pytest.mark.parametrize("options", [
    CreateOptions(9 * MIB, preallocation=Preallocation.METADATA, cluster_size=512),
    CreateOptions(9 * MIB, preallocation=Preallocation.METADATA, refcount_bits=1),
    CreateOptions(0),
    CreateOptions(2048 * TIB),
])  # fmt: skip
def test_images_of_ours(tmp_path: Path, options: CreateOptions) -> None:
    clean(qemu.write_native(tmp_path / "image", lambda handle: create(handle, options)))


# Damage. An image of 1 MiB with 64 KiB clusters that are all there: header, refcount table and
# block, L1 and L2 table, data from cluster 5 on.
TABLE, BLOCK, L1, L2 = 65536, 131072, 196608, 262144
DATA = 5 * 65536


def sound(**options: object) -> MemoryHandle:
    handle = MemoryHandle()
    create(handle, CreateOptions(MIB, preallocation=Preallocation.METADATA, **options))  # type: ignore[arg-type]
    return handle


def entry(place: int, value: int) -> tuple[int, bytes]:
    return place, struct.pack(">Q", value)


DAMAGE = {
    "leak": (BLOCK + 2 * 5, b"\0\2"),
    "leak-many": (BLOCK, b"\xff" * 42),
    "low": (BLOCK + 2 * 5, b"\0\0"),
    "header-low": (BLOCK, b"\0\0"),
    "all-zero": (BLOCK, bytes(42)),
    "no-block": entry(TABLE, 0),
    "l1-lost": entry(L1, 0),
    "l1-not-copied": entry(L1, L2),
    "l1-reserved": entry(L1, qcow2.COPIED | L2 | 1 << 57),
    "l1-eof": entry(L1, qcow2.COPIED | 1 << 40),
    "l2-lost": entry(L2, 0),
    "l2-not-copied": entry(L2, DATA),
    "l2-flag-alone": entry(L2, qcow2.COPIED),
    "l2-shared": entry(L2 + 8, qcow2.COPIED | DATA),
    "l2-shared-thrice": (L2, struct.pack(">QQQ", *(qcow2.COPIED | DATA,) * 3)),
    "l2-eof": entry(L2, qcow2.COPIED | 1 << 40),
    "l2-reserved": entry(L2, qcow2.COPIED | DATA | 1 << 57),
    "l2-zero": entry(L2, qcow2.COPIED | DATA | 1),
    "l2-header": entry(L2, qcow2.COPIED | 512 & ~512 | 0x10000),
    "l2-is-l1": entry(L2, qcow2.COPIED | L1),
    "compressed-copied": entry(L2, qcow2.COPIED | 1 << 62 | DATA),
    "compressed": entry(L2, 1 << 62 | 1 << 54 | DATA + 100),
    "compressed-eof": entry(L2, 1 << 62 | 1 << 40),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_counted_as_by_qemu(tmp_path: Path, name: str) -> None:
    handle = sound()
    offset, data = DAMAGE[name]
    handle.pwrite(data, offset)
    path = tmp_path / "image"
    path.write_bytes(handle.data)
    report = compare(path)
    assert report.clean is (name in ("l2-zero", "compressed"))
    assert bool(report.findings) is not report.clean


@pytest.mark.parametrize("order", range(7))
def test_damage_in_refcounts_of_every_width(tmp_path: Path, order: int) -> None:
    """Wrong counts of the first clusters, then a share of one that the width may not allow."""
    path = tmp_path / "image"
    for damage in (b"", bytes(16), b"\xaa" * 16):
        handle = sound(refcount_bits=1 << order)
        handle.pwrite(damage, BLOCK)
        path.write_bytes(handle.data)
        assert compare(path).clean is not bool(damage)
    handle = sound(refcount_bits=1 << order)
    handle.pwrite(struct.pack(">QQQ", *(qcow2.COPIED | DATA,) * 3), L2)
    path.write_bytes(handle.data)
    compare(path)


@pytest.mark.parametrize(
    ("place", "bitmap"),
    [(L2 + 8, 1 << 32 | 1), (L2 + 8 + 16 * 20, 1), (L2 + 8, 0xFFFFFFFF), (L2 + 8, 3 << 33 | 1)],
)
def test_subclusters(tmp_path: Path, place: int, bitmap: int) -> None:
    handle = sound(extended_l2=True)
    handle.pwrite(struct.pack(">Q", bitmap), place)
    path = tmp_path / "image"
    path.write_bytes(handle.data)
    compare(path)


STRICTER = {
    "unaligned L2 entry": (entry(L2, qcow2.COPIED | DATA + 512), "is not aligned"),
    "unaligned L1 entry": (entry(L1, qcow2.COPIED | L2 + 512), "no place for an L2 table"),
    "unaligned block": (entry(TABLE, BLOCK + 512), "is not aligned"),
    "block with flags": (entry(TABLE, BLOCK + 1), "reserved bits"),
    "block beyond": (entry(TABLE, 1 << 40), "beyond the end"),
    "block is the header": (entry(TABLE, 0x10000), "is used 2 times"),
}


@pytest.mark.parametrize("name", STRICTER)
def test_what_follows_from_nonsense_is_not_followed(tmp_path: Path, name: str) -> None:
    """QEMU reads tables from where such entries point to, so its figures are others."""
    handle = sound()
    (offset, data), text = STRICTER[name]
    handle.pwrite(data, offset)
    report = check(handle)
    assert report.corruptions
    assert any(text in finding for finding in report.findings)
    path = tmp_path / "image"
    path.write_bytes(handle.data)
    status = subprocess.run(["qemu-img", "check", "-f", "qcow2", path], capture_output=True)
    assert status.returncode in (1, 2)


def test_overlaps_are_found_though_the_refcounts_allow_for_them() -> None:
    """QEMU's check finds nothing: two is what the cluster is counted and used."""
    handle = sound()
    handle.pwrite(struct.pack(">Q", L1), L2)
    handle.pwrite(b"\0\2", BLOCK + 2 * 3)
    handle.pwrite(b"\0\0", BLOCK + 2 * 5)
    report = check(handle)
    assert report.corruptions == 1
    assert report.findings == ("cluster 3 of the L1 table is used for something else",)


def test_a_zero_flag_that_nobody_knows(tmp_path: Path) -> None:
    for options in ({"version": 2}, {"extended_l2": True}):
        handle = sound(**options)
        handle.pwrite(struct.pack(">Q", qcow2.COPIED | DATA | 1), L2)
        assert "has a zero flag" in check(handle).findings[0]


CASES = list(qcow2_cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_zoo(case: Case) -> None:
    """A report or a FormatError, at once; what is plainly wrong is not called clean."""
    handle = MemoryHandle(case.data)
    start = time.process_time()
    try:
        report = check(handle)
    except FormatError:
        assert case.state in ("unsupported", "corrupt", "ok")
        assert case.format != "qcow2" or case.state == "unsupported" or "magic" in case.reason
    else:
        assert case.state != "unsupported"
        if case.state == "corrupt" and case.name != "q-corrupt":
            assert report.corruptions
        assert case.state == "ok" or report.findings
    assert time.process_time() - start < 0.05
    assert handle.data == case.data


def test_memory_is_bounded_for_the_whole_zoo() -> None:
    tracemalloc.start()
    try:
        for case in CASES:
            with suppress(FormatError):
                check(MemoryHandle(case.data))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_reading_is_bounded_by_the_file() -> None:
    """Not by what the tables claim to name."""
    for place, value in ((36, 4194304), (56, 0xFFFFFFF)):
        handle = sound()
        handle.pwrite(struct.pack(">I", value), place)
        check(handle)
        assert sum(length for _, length in handle.reads) < 4 * len(handle.data)


def snapshots(count: int, l1: list[tuple[int, int]]) -> MemoryHandle:
    """Return an image with that many snapshots, which have the given L1 tables in turn."""
    handle = sound()
    table = -(-len(handle.data) // 65536) * 65536
    body = b"".join(
        struct.pack(">QIHHIIQII", *l1[number % len(l1)], 0, 0, 0, 0, 0, 0, 16) + bytes(16)
        for number in range(count)
    )
    handle.pwrite(body, table)
    handle.pwrite(struct.pack(">IQ", count, table), 60)
    return handle


def test_many_snapshots_that_share_one_table() -> None:
    handle = snapshots(60000, [(L1, 1)])
    handle.reads.clear()
    start = time.process_time()
    report = check(handle)
    assert time.process_time() - start < 1
    assert any("share an L1 table" in finding for finding in report.findings)
    assert f"cluster {L2 // 65536} has refcount 1 but is used 60001 times" in report.findings
    assert sum(length for _, length in handle.reads) < 4 * len(handle.data)


def test_many_snapshots_whose_tables_overlap() -> None:
    """Together they would be 128 GiB to read."""
    tables = [(65536 * number, 1000 * (number + 1)) for number in range(60)]
    handle = snapshots(65536, tables)
    start = time.process_time()
    report = check(handle)
    assert time.process_time() - start < 3
    assert any("overlap" in finding for finding in report.findings)
    assert len(report.findings) == MAX_FINDINGS
    assert report.corruptions > MAX_FINDINGS


def test_one_l2_table_everywhere() -> None:
    handle = MemoryHandle()
    create(handle, CreateOptions(TIB, preallocation=Preallocation.OFF))
    l1 = int.from_bytes(handle.data[40:48], "big")
    table = -(-(len(handle.data)) // 65536) * 65536
    handle.pwrite(struct.pack(">Q", table) * 8192, l1)
    handle.pwrite(struct.pack(">I", 8192), 36)
    handle.pwrite(pack_offsets(qcow2.COPIED | table + 65536, 65536, 8), table)
    handle.truncate(table + 10 * 65536)
    handle.reads.clear()
    report = check(handle)
    assert f"cluster {table // 65536} has refcount 0 but is used 8192 times" in report.findings
    assert handle.reads.count((table, 65536)) == 1


def test_tables_that_are_holes_are_not_read(tmp_path: Path) -> None:
    """A sparse file may name as many of them as its L1 table has entries."""
    path = tmp_path / "image"
    tables = 100_000
    with qemu.open_native(path) as handle:
        create(handle, CreateOptions(50 * TIB))
        first = -(-handle.size() // 65536)
        handle.truncate((first + tables) * 65536)
        l1 = int.from_bytes(handle.pread(8, 40), "big")
        handle.pwrite(pack_offsets(first * 65536, 65536, tables), l1)
        start = time.process_time()
        report = check(handle)
    assert report.corruptions == tables
    assert time.process_time() - start < 3


def test_a_file_of_any_length_is_answered() -> None:
    for claims in (1 << 42, 2**63 - 512):
        handle = sound()
        handle.claims = claims
        start = time.process_time()
        try:
            assert check(handle).clean
        except UnsupportedFormat as err:
            assert "too long to be checked" in str(err)  # noqa: PT017
        assert time.process_time() - start < 5


def test_checkpoint_is_called_and_stops_it() -> None:
    calls: list[tuple[int, int]] = []
    handle = sound(cluster_size=512)
    check(handle, checkpoint=lambda done, total: calls.append((done, total)))
    assert len(calls) > 10
    assert all(0 <= done <= total == len(handle.data) for done, total in calls)
    assert calls == sorted(calls)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(handle, checkpoint=stop)


@pytest.mark.parametrize("data", [b"", b"QFI", b"QFI\xfb\0\0\0\1" + bytes(500), bytes(4096)])
def test_what_is_no_qcow2(data: bytes) -> None:
    with pytest.raises(FormatError):
        check(MemoryHandle(data))


def rich(tmp: Path) -> bytes:
    """An image with a bit of everything."""
    path = qemu.create(tmp / "rich", MIB, "cluster_size=512,refcount_bits=8")
    write_some(path, MIB)
    qemu.run("qemu-img", "snapshot", "-c", "one", path)
    qemu.run("qemu-img", "bitmap", "--add", path, "b0")
    write_some(path, MIB, 2)
    return path.read_bytes()


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    tmp = tmp_path_factory.mktemp("victims")
    packed = tmp / "packed"
    source = qemu.create(tmp / "source", MIB)
    write_some(source, MIB)
    qemu.run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", source, packed)
    small = sound(cluster_size=512)
    return [rich(tmp), packed.read_bytes(), bytes(small.data)]


@settings(max_examples=200, deadline=None)
@given(
    which=st.integers(0, 2),
    flips=st.lists(
        st.tuples(st.integers(0, 2**20), st.sampled_from([0, 1, 0x80, 0xFF, 0x40])), max_size=8
    ),
    cut=st.one_of(st.none(), st.integers(0, 2**18)),
)
def test_flipped_bytes(
    victims: list[bytes], which: int, flips: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(victims[which])
    for place, value in flips:
        data[place % min(len(data), 40 * KIB)] = value
    start = time.process_time()
    try:
        report = check(MemoryHandle(bytes(data[:cut])))
    except FormatError:
        return
    assert report.corruptions >= 0
    assert len(report.findings) <= MAX_FINDINGS
    assert all(finding.isprintable() for finding in report.findings)
    assert time.process_time() - start < 2


def test_large_image_is_checked_fast(tmp_path: Path) -> None:
    """100 GiB with 10 GiB of data: not slower than three times qemu-img, with room to spare."""
    path = tmp_path / "image"
    with qemu.open_native(path) as handle:
        spread(handle)
        start = time.process_time()
        report = check(handle)
        taken = time.process_time() - start
    assert report.clean
    assert (report.total, report.allocated) == (100 * GIB // 65536, 200 * 819)
    assert taken < 1


def spread(handle: Any) -> None:
    """Write an image of 200 L2 tables that each map 819 clusters, as sparse as can be."""
    size, tables, each = 65536, 200, 819
    blocks = 6
    l2 = 2 + blocks + 1
    clusters = l2 + tables * (1 + each)
    create(handle, CreateOptions(100 * GIB))
    handle.pwrite(struct.pack(">Q", (2 + blocks) * size), 40)
    handle.truncate(clusters * size)
    handle.pwrite(pack_offsets(2 * size, size, blocks), size)
    handle.pwrite(pack_refcounts(clusters, 4), 2 * size)
    handle.pwrite(pack_offsets(qcow2.COPIED | l2 * size, size, tables), (2 + blocks) * size)
    for number in range(tables):
        first = (l2 + tables + number * each) * size
        handle.pwrite(pack_offsets(qcow2.COPIED | first, size, each), (l2 + number) * size)
