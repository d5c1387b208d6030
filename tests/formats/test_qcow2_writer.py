"""Filled qcow2 images: sound and equal to their source in qemu-img's eyes, in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from storaged.formats.errors import FormatError
from storaged.formats.probe import probe
from storaged.formats.qcow2 import CompressionType, Incompatible, read_header
from storaged.formats.qcow2_counting import Counting
from storaged.formats.qcow2_create import CreateOptions, Preallocation
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.tables import pack_offsets, refcount
from tests.formats import contents, qemu
from tests.formats.contents import MIB, Write, writes
from tests.formats.memory import MemoryHandle

SIZE = 3 * MIB + 1536
ZLIB, ZSTD = CompressionType.DEFLATE, CompressionType.ZSTD

options = st.fixed_dictionaries(
    {
        "cluster_size": st.sampled_from((512, 4096, 65536, 2 * MIB)),
        "refcount_bits": st.sampled_from((1, 2, 4, 8, 16, 32, 64)),
        "extended_l2": st.booleans(),
        "lazy_refcounts": st.booleans(),
    }
)


@given(writes(SIZE), options, st.sampled_from((None, ZLIB, ZSTD)))
@example([Write(0, 2 * MIB, 1)], {"cluster_size": 65536, "refcount_bits": 2}, ZLIB)
@example([Write(0, 2 * MIB, 3)], {"cluster_size": 512, "refcount_bits": 1}, ZSTD)
@example([Write(0, 2 * MIB, 3)], {"cluster_size": 2 * MIB, "refcount_bits": 8}, ZLIB)
@pytest.mark.slow
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_layout(
    tmp_path: Path, content: list[Write], layout: dict[str, Any], packing: CompressionType | None
) -> None:
    assume(not layout.get("extended_l2") or layout["cluster_size"] >= 16384)
    raw = contents.raw(tmp_path / "raw", SIZE, content)
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "q", SIZE, packing=packing, **layout)
    qemu.check(tmp_path / "q")
    qemu.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, tmp_path / "q")
    assert contents.bytes_of(tmp_path / "q") == raw.read_bytes()


@pytest.mark.parametrize("size", [0, 512, 1000, 65536, MIB + 512, 2 << 40])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("packing", [None, ZLIB])
def test_sizes(tmp_path: Path, size: int, version: int, packing: CompressionType | None) -> None:
    tail = [Write(size - 500, 500, 2)] if size else []
    raw = contents.raw(tmp_path / "raw", size, tail)
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "q", size, version=version, packing=packing)
    qemu.check(tmp_path / "q")
    assert qemu.info(tmp_path / "q")["virtual-size"] == -(-size // 512) * 512
    disk = contents.opened(tmp_path / "q")
    assert disk.pread(1000, max(size - 500, 0)).rstrip(b"\0") == b"".join(
        write.data() for write in tail
    ).rstrip(b"\0")
    disk.close()


def test_header(tmp_path: Path) -> None:
    """The header and the probe tell what the options asked for."""
    base = contents.raw(tmp_path / "base", MIB, [])
    with qemu.open_native(base) as source:
        contents.to_qcow2(
            source, tmp_path / "q", MIB, packing=ZSTD, backing=bytes(base), backing_format="raw",
            lazy_refcounts=True, refcount_bits=8, cluster_size=4096,
        )  # fmt: skip
    told = qemu.info(tmp_path / "q")
    assert told["backing-filename"] == str(base)
    assert told["backing-filename-format"] == "raw"
    specific = told["format-specific"]["data"]
    assert specific["compression-type"] == "zstd"
    assert specific["lazy-refcounts"]
    assert specific["refcount-bits"] == 8
    header = read_header((tmp_path / "q").read_bytes()[:112])
    assert header.has(Incompatible.COMPRESSION_TYPE)
    with qemu.open_native(tmp_path / "q") as handle:
        info = probe(handle)
    assert (info.capacity, info.cluster_size, info.reasons) == (MIB, 4096, ())


def test_packed_clusters_share_host_clusters(tmp_path: Path) -> None:
    """As with qemu-img: packed at the granularity of bytes."""
    raw = contents.raw(tmp_path / "raw", 8 * MIB, [Write(0, 8 * MIB, 1)])
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "ours", 8 * MIB, packing=ZLIB)
    qemu.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, tmp_path / "theirs")
    ours, theirs = (tmp_path / name for name in ("ours", "theirs"))
    assert ours.stat().st_size <= theirs.stat().st_size + 65536
    report = json.loads(qemu.run("qemu-img", "check", "--output=json", ours))
    assert report["compressed-clusters"] == 128


def test_what_does_not_shrink_is_plain(tmp_path: Path) -> None:
    content = [Write(0, MIB, 2), Write(MIB, 100_000, 1)]
    raw = contents.raw(tmp_path / "raw", 2 * MIB, content)
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "q", 2 * MIB, packing=ZLIB, level=9)
    report = json.loads(qemu.run("qemu-img", "check", "--output=json", tmp_path / "q"))
    assert (report["allocated-clusters"], report["compressed-clusters"]) == (18, 2)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("packing", [None, ZLIB])
def test_zeros_over_a_backing_image(
    tmp_path: Path, version: int, packing: CompressionType | None
) -> None:
    base = contents.raw(tmp_path / "base", MIB, [Write(0, MIB, 2)])
    with qemu.open_native(tmp_path / "q") as target:
        image = CreateOptions(MIB, version=version, backing=bytes(base), backing_format="raw")
        writer = Qcow2Writer(target, image, compression=packing)
        writer.zero(0, 65536)
        writer.write(65536, b"x" * 65536)
        writer.zero(262144, 131072)
        writer.finish()
    qemu.check(tmp_path / "q")
    expected = bytearray(base.read_bytes())
    expected[:65536] = bytes(65536)
    expected[65536:131072] = b"x" * 65536
    expected[262144:393216] = bytes(131072)
    qemu.run("qemu-img", "convert", "-O", "raw", tmp_path / "q", tmp_path / "flat")
    assert (tmp_path / "flat").read_bytes() == bytes(expected)


def test_long_runs_are_mapped_in_bulk(tmp_path: Path) -> None:
    """100 GiB claimed at once: few writes, and tables that qemu-img finds sound."""

    class Counted(MemoryHandle):
        writes = 0

        def pwrite(self, data: Any, offset: int) -> None:
            Counted.writes += 1
            with (tmp_path / "q").open("r+b") as file:
                file.seek(offset)
                file.write(data)

    (tmp_path / "q").touch()
    size = 100 << 30
    writer = Qcow2Writer(Counted(), CreateOptions(size))
    place = writer.place(65536, size - 65536)
    assert place is not None
    assert place.length == size - 65536
    writer.finish()
    assert Counted.writes < 120
    qemu.check(tmp_path / "q")


def test_many_packed_clusters_spill_their_refcounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.formats.qcow2_counting._MAX_RUNS", 16)
    raw = contents.raw(tmp_path / "raw", 2 * MIB, [Write(0, 2 * MIB, 3)])
    with qemu.open_native(raw) as source:
        contents.to_qcow2(source, tmp_path / "q", 2 * MIB, packing=ZLIB, cluster_size=512)
    qemu.check(tmp_path / "q")
    assert contents.bytes_of(tmp_path / "q") == raw.read_bytes()


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(0, 15)), max_size=9),
    st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_counting(runs: list[tuple[int, int]], order: int) -> None:
    """Every cluster has the count that was given to it, also those of the blocks themselves."""
    handle = MemoryHandle()
    expected: list[int] = []

    def allocate(clusters: int) -> int:
        offset = len(expected) * 512
        counting.add(clusters)
        expected.extend([1] * clusters)
        return offset

    counting = Counting(handle, 512, order, allocate)
    for clusters, count in runs:
        counting.add(clusters, min(count, counting.most))
        expected.extend([min(count, counting.most)] * clusters)
    table, clusters = counting.finish()
    per_block = 4096 >> order
    found = []
    for start in range(table, table + clusters * 512, 8):
        offset = int.from_bytes(handle.pread(8, start), "big")
        block = handle.pread(512, offset)
        if offset:
            found += [refcount(block, index, order) for index in range(per_block)]
    assert found[: len(expected)] == expected
    assert not any(found[len(expected) :])


@given(
    st.integers(9, 21), st.integers(0, 1 << 30), st.integers(1, 3000), st.sampled_from((1, 2)),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_offsets_made_byte_by_byte(bits: int, first: int, count: int, stride: int) -> None:
    """Long tables take another way than short ones, to the same end."""
    step, start = 1 << bits, 1 << 63 | first << bits
    entry = b"" if stride == 1 else b"\0\0\0\0\xff\xff\xff\xff"
    expected = b"".join(
        (start + number * step).to_bytes(8, "big") + entry for number in range(count)
    )
    assert pack_offsets(start, step, count, stride=stride, second=0xFFFFFFFF) == expected


def test_device_is_no_image_meanwhile(tmp_path: Path) -> None:
    """The image that a device holds must not be taken for one while it is overwritten."""

    class Device(MemoryHandle):
        def truncate(self, size: int) -> None:
            assert size <= len(self.data)

    path = qemu.create(tmp_path / "old", MIB, "preallocation=metadata")
    device = Device(path.read_bytes())
    writer = Qcow2Writer(device, CreateOptions(MIB))
    assert device.data[:65536] == bytes(65536)
    writer.write(0, b"x" * 65536)
    writer.finish()
    (tmp_path / "new").write_bytes(device.data)
    assert contents.bytes_of(tmp_path / "new") == b"x" * 65536 + bytes(MIB - 65536)


def test_zeros_do_not_pile_up(tmp_path: Path) -> None:
    """Parts without data are passed on as well while others wait to be packed."""
    base = contents.raw(tmp_path / "base", 4 << 30, [])
    image = CreateOptions(4 << 30, backing=bytes(base), backing_format="raw", cluster_size=4096)
    handle = MemoryHandle()
    writer = Qcow2Writer(handle, image, compression=ZLIB)
    length = len(handle.data)
    for number in range(0, 1 << 18, 2):
        writer.zero(number * 4096, 4096)
    assert len(handle.data) > length + 8 * 200_000
    writer.finish()
    (tmp_path / "q").write_bytes(handle.data)
    qemu.check(tmp_path / "q")


@pytest.mark.parametrize(
    ("changes", "packing", "text"),
    [
        ({"cluster_size": 1000}, None, "cluster size must be a power of two"),
        ({"version": 2}, ZSTD, "compression by zstd needs version 3"),
        ({"preallocation": Preallocation.METADATA}, None, "preallocation does not go with content"),
        ({"data_file": b"data"}, None, "not written to an external data file"),
        ({"backing": b"x" * 600, "cluster_size": 512}, None, "does not fit in a cluster"),
    ],
)
def test_refused(changes: dict[str, Any], packing: CompressionType | None, text: str) -> None:
    handle = MemoryHandle(b"old")
    with pytest.raises(FormatError, match=text):
        Qcow2Writer(handle, CreateOptions(MIB, **changes), compression=packing)
    assert handle.data == b"old"


def test_limit_of_the_refcount_table() -> None:
    """512-byte clusters with refcounts of 64 bits: 32 GiB of file at the most."""
    writer = Qcow2Writer(
        MemoryHandle(), CreateOptions(64 << 30, cluster_size=512, refcount_bits=64)
    )
    with pytest.raises(FormatError, match="refcount table of 8 MiB"):
        writer.place(0, 33 << 30)
