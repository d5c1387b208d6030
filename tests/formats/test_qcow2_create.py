"""qcow2 images of ours, judged by qemu-img and compared with its own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import probe, qcow2
from storaged.formats.errors import FormatError
from storaged.formats.image import BackingRef, ImageState
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_create import CreateOptions, Preallocation, create, layout
from storaged.formats.qcow2_refcounts import Refcounts
from tests.formats import qemu
from tests.formats.memory import LoggingHandle, MemoryHandle

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
OFF, METADATA, FALLOC, FULL = Preallocation


def write(path: Path, options: CreateOptions) -> Path:
    return qemu.write_native(path, lambda handle: create(handle, options))


def judge(path: Path, options: CreateOptions) -> None:
    """Check it, compare every fact with qemu-img's and with our own probe."""
    qemu.check(path)
    info = qemu.info(path)
    specific = info["format-specific"]["data"]
    capacity = -(-options.capacity // 512) * 512
    assert info["virtual-size"] == capacity
    assert info["cluster-size"] == options.cluster_size
    assert specific["compat"] == {2: "0.10", 3: "1.1"}[options.version]
    assert specific.get("lazy-refcounts", False) == options.lazy_refcounts
    assert specific.get("extended-l2", False) == options.extended_l2
    assert specific["refcount-bits"] == options.refcount_bits
    with qemu.open_native(path) as handle:
        seen = probe.probe(handle)
    assert seen.state is ImageState.OK
    assert (seen.format, seen.capacity) == ("qcow2", capacity)
    assert seen.cluster_size == options.cluster_size


SAME_AS_QEMU = [
    (CreateOptions(0), ()),
    (CreateOptions(1), ()),
    (CreateOptions(10 * GIB), ()),
    (CreateOptions(10 * GIB, version=2), ("compat=0.10",)),
    (CreateOptions(1 * TIB), ()),
    (CreateOptions(10 * GIB, cluster_size=2 * MIB), ("cluster_size=2M",)),
    (CreateOptions(GIB, lazy_refcounts=True), ("lazy_refcounts=on",)),
    (CreateOptions(GIB, refcount_bits=1), ("refcount_bits=1",)),
    (CreateOptions(GIB, extended_l2=True, refcount_bits=64), ("extended_l2=on,refcount_bits=64",)),
    (CreateOptions(GIB, cluster_size=4 * KIB), ("cluster_size=4k",)),
    (CreateOptions(GIB, cluster_size=8 * KIB), ("cluster_size=8k",)),
    (CreateOptions(GIB, compression=CompressionType.ZSTD), ("compression_type=zstd",)),
]  # fmt: skip


@pytest.mark.parametrize(("options", "theirs"), SAME_AS_QEMU)
def test_same_bytes_as_qemu_img(
    tmp_path: Path, options: CreateOptions, theirs: tuple[str, ...]
) -> None:
    ours = write(tmp_path / "ours", options)
    other = qemu.create(tmp_path / "theirs", options.capacity, *theirs)
    assert ours.read_bytes() == other.read_bytes()
    judge(ours, options)


def test_same_bytes_with_a_backing_file(tmp_path: Path) -> None:
    base = qemu.create(tmp_path / "base", GIB)
    options = CreateOptions(2 * GIB, backing=b"base", backing_format="qcow2")
    ours = write(tmp_path / "ours", options)
    other = tmp_path / "theirs"
    qemu.run(
        "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", other, "2G"
    )  # fmt: skip
    assert ours.read_bytes() == other.read_bytes()
    qemu.io(base, "write -P 7 5M 64k")
    qemu.io(ours, "read -P 7 5M 64k", "write -P 8 1G 64k", "read -P 0 6M 64k")
    qemu.check(ours)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_data_file(tmp_path: Path, raw: bool, extended: bool) -> None:
    """The same header as qemu-img's, and the same place for every byte."""
    ours, name = tmp_path / "ours", bytes(tmp_path / "data")
    options = CreateOptions(20 * MIB, data_file=name, data_file_raw=raw, extended_l2=extended)
    with qemu.open_native(ours) as handle, qemu.open_native(tmp_path / "data") as data:
        create(handle, options, data_file=data)
    theirs = qemu.create(
        tmp_path / "theirs",
        20 * MIB,
        f"data_file={tmp_path / 'other'},data_file_raw={'on' if raw else 'off'}",
        f"extended_l2={'on' if extended else 'off'}",
    )
    assert (tmp_path / "data").stat().st_size == (tmp_path / "other").stat().st_size
    assert not any((tmp_path / "data").read_bytes())
    specific = [qemu.info(path)["format-specific"]["data"] for path in (ours, theirs)]
    names = [data.pop("data-file") for data in specific]
    assert names == [str(tmp_path / "data"), str(tmp_path / "other")]
    assert specific[0] == specific[1]
    qemu.check(ours)
    facts = ("start", "length", "data", "offset")
    extents = [
        [tuple(part.get(fact) for fact in facts) for part in qemu.mapping(path)]
        for path in (ours, theirs)
    ]
    assert extents[0] == extents[1]
    qemu.io(ours, "write -P 7 5M 64k", "read -P 7 5M 64k", "read -P 0 0 5M")
    qemu.check(ours)
    if raw:
        assert (tmp_path / "data").read_bytes()[5 * MIB : 5 * MIB + 64 * KIB] == b"\7" * 64 * KIB


def test_old_contents_of_the_data_file_are_gone() -> None:
    data = MemoryHandle(b"old" * MIB)
    create(MemoryHandle(), CreateOptions(MIB, data_file=b"data"), data_file=data)
    assert data.data == bytes(MIB)


@pytest.mark.parametrize("preallocation", [METADATA, FALLOC, FULL])
def test_preallocated_data_file(tmp_path: Path, preallocation: Preallocation) -> None:
    path, other = tmp_path / "image", tmp_path / "data"
    options = CreateOptions(20 * MIB, data_file=bytes(other), preallocation=preallocation)
    with qemu.open_native(path) as handle, qemu.open_native(other) as data:
        create(handle, options, data_file=data)
    qemu.check(path)
    assert other.stat().st_size == 20 * MIB
    used = other.stat().st_blocks * 512
    assert used == 0 if preallocation is METADATA else used >= 20 * MIB
    assert path.stat().st_size == layout(options).file_size < MIB
    assert qemu.mapping(path)[0]["offset"] == 0


def test_the_data_file_may_be_anothers_affair(tmp_path: Path) -> None:
    options = CreateOptions(MIB, data_file=b"d" * 1023, backing=b"b", backing_format="raw")
    handle = MemoryHandle()
    create(handle, options)
    info = probe.probe(handle)
    assert (info.data_file, info.backing) == (b"d" * 1023, BackingRef(b"b", "raw"))
    assert info.reasons == ("the data lie in an external file",)


def test_what_a_probe_says_of_it(tmp_path: Path) -> None:
    for options, bits, compression in (
        (CreateOptions(GIB), 16, "zlib"),
        (CreateOptions(GIB, version=2), 16, "zlib"),
        (CreateOptions(GIB, refcount_bits=1, compression=CompressionType.ZSTD), 1, "zstd"),
    ):
        handle = MemoryHandle()
        create(handle, options)
        info = probe.probe(handle)
        assert (info.refcount_bits, info.compression, info.bitmaps) == (bits, compression, 0)
    path = qemu.create(tmp_path / "image", GIB)
    for number in range(2):
        qemu.run("qemu-img", "bitmap", "--add", path, f"b{number}")
    with qemu.open_native(path) as file:
        assert probe.probe(file).bitmaps == 2


def test_backing_name_without_format(tmp_path: Path) -> None:
    handle = MemoryHandle()
    create(handle, CreateOptions(GIB, backing=b"/x/\xff"))
    assert probe.probe(handle).backing == BackingRef(b"/x/\xff", None)


def test_the_backing_format_comes_first() -> None:
    handle = MemoryHandle()
    create(handle, CreateOptions(GIB, backing=b"b" * 1023, backing_format="raw"))
    kinds = [
        extension.type
        for extension in qcow2.extensions(lambda length: bytes(handle.data[:length]), 112, 65536)
    ]
    assert kinds == [qcow2.ExtensionType.BACKING_FORMAT, qcow2.ExtensionType.FEATURE_NAMES]


MATRIX = [
    CreateOptions(capacity, 3, cluster_size, bits, False, extended, None, None, preallocation)
    for cluster_size, bits, capacity, preallocation, extended in itertools.product(
        (512, 4 * KIB, 16 * KIB, 64 * KIB, 2 * MIB),
        (1, 2, 8, 16, 64),
        (0, 512, 5 * MIB + 512, 40 * MIB),
        (OFF, METADATA),
        (False, True),
    )
    if cluster_size >= 16 * KIB or not extended
]
QUICK = MATRIX[::13]


@pytest.mark.parametrize("options", QUICK)
def test_some_layouts(tmp_path: Path, options: CreateOptions) -> None:
    judge(write(tmp_path / "image", options), options)


@pytest.mark.slow
def test_all_layouts(tmp_path: Path) -> None:
    for number, options in enumerate(MATRIX):
        path = write(tmp_path / str(number), options)
        judge(path, options)
        path.unlink()


@pytest.mark.parametrize("preallocation", [METADATA, FALLOC, FULL])
@pytest.mark.parametrize("extended", [False, True])
def test_preallocation(tmp_path: Path, preallocation: Preallocation, extended: bool) -> None:
    options = CreateOptions(20 * MIB, preallocation=preallocation, extended_l2=extended)
    path = write(tmp_path / "image", options)
    judge(path, options)
    used = path.stat().st_blocks * 512
    assert used < MIB if preallocation is METADATA else used >= 20 * MIB
    size = path.stat().st_size
    qemu.io(path, "read -P 0 0 20M", "write -P 3 0 20M", "read -P 3 0 20M")
    qemu.check(path)
    assert path.stat().st_size == size  # every cluster was there
    extents = qemu.mapping(path)
    assert len(extents) == 1
    assert extents[0]["data"]
    assert extents[0]["offset"] == layout(options).data_offset


@pytest.mark.parametrize("preallocation", [METADATA, FALLOC])
def test_preallocation_over_a_backing_file(tmp_path: Path, preallocation: Preallocation) -> None:
    base = qemu.create(tmp_path / "base", 4 * MIB)
    qemu.io(base, "write -P 9 0 4M")
    options = CreateOptions(
        4 * MIB, extended_l2=True, backing=b"base", backing_format="qcow2",
        preallocation=preallocation,
    )  # fmt: skip
    path = write(tmp_path / "image", options)
    qemu.io(path, "read -P 9 0 4M", "write -P 1 64k 2k", "read -P 9 66k 1k")
    qemu.check(path)


def test_metadata_of_large_images_yields_often() -> None:
    """A checkpoint at least every 16384 entries: Python must not keep other threads waiting."""
    calls: list[tuple[int, int]] = []
    handle = LoggingHandle(b"")
    handle.truncate = lambda size: None  # type: ignore[method-assign]
    writes: list[int] = []
    handle.pwrite = lambda data, offset: writes.append(len(data))  # type: ignore[method-assign]
    options = CreateOptions(64 * GIB, preallocation=METADATA)
    create(handle, options, lambda done, total: calls.append((done, total)))
    assert max(writes) <= MIB
    assert len(calls) >= 64
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {layout(options).file_size}


@pytest.mark.parametrize(
    "options",
    [
        CreateOptions(10 * GIB, cluster_size=512, refcount_bits=64),
        CreateOptions(3 * GIB, cluster_size=2 * MIB, extended_l2=True),
        CreateOptions(2048 * TIB),
        CreateOptions(5 * GIB + 512, version=2, cluster_size=32 * KIB),
    ],
)
def test_qemu_writes_to_it(tmp_path: Path, options: CreateOptions) -> None:
    path = write(tmp_path / "image", options)
    last = options.capacity - 64 * KIB
    qemu.io(path, "write -P 1 0 3M", f"write -P 2 {last} 64k", f"read -P 2 {last} 64k")
    qemu.io(path, "read -P 1 0 3M")
    qemu.check(path)


def test_the_header_comes_last() -> None:
    handle = LoggingHandle(b"")
    create(handle, CreateOptions(5 * MIB, preallocation=METADATA))
    offsets = [offset for group in handle.groups for offset, _ in group]
    assert offsets.index(0) == len(offsets) - 1


def test_only_used_bytes_are_written(tmp_path: Path) -> None:
    path = write(tmp_path / "image", CreateOptions(10 * GIB))
    assert path.stat().st_blocks * 512 <= 16384


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(0, 8 * MIB),
    bits=st.integers(9, 14),
    order=st.integers(0, 6),
    preallocation=st.sampled_from([OFF, METADATA, FULL]),
    extended=st.booleans(),
)
def test_every_cluster_is_counted_once(
    capacity: int, bits: int, order: int, preallocation: Preallocation, extended: bool
) -> None:
    options = CreateOptions(
        capacity, 3, 1 << bits, 1 << order, False, extended and bits == 14, None, None,
        preallocation,
    )  # fmt: skip
    handle = MemoryHandle()
    create(handle, options)
    place = layout(options)
    counts = Refcounts(handle, qcow2.read_header(bytes(handle.data[:112])))
    assert {counts.get(cluster) for cluster in range(place.clusters)} == {1}
    assert not any(counts.get(place.clusters + number) for number in range(100))
    assert len(handle.data) == place.file_size
    info = probe.probe(handle)
    assert (info.state, info.capacity) == (ImageState.OK, -(-capacity // 512) * 512)


@pytest.mark.parametrize("preallocation", [OFF, METADATA])
def test_old_contents_are_gone(preallocation: Preallocation) -> None:
    options = CreateOptions(2 * MIB, preallocation=preallocation)
    old, fresh = MemoryHandle(b"\xff" * 5 * MIB), MemoryHandle()
    create(old, options)
    create(fresh, options)
    assert old.data == fresh.data


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (CreateOptions(GIB, version=4), "version must be 2 or 3, not 4"),
        (CreateOptions(GIB, cluster_size=256), "power of two from 512 to 2097152, not 256"),
        (CreateOptions(GIB, cluster_size=65537), "not 65537"),
        (CreateOptions(GIB, cluster_size=4 * MIB), "not 4194304"),
        (CreateOptions(GIB, cluster_size=0), "not 0"),
        (CreateOptions(GIB, refcount_bits=3), "1 to 64 bits, not 3"),
        (CreateOptions(GIB, refcount_bits=0), "not 0"),
        (CreateOptions(GIB, refcount_bits=128), "not 128"),
        (CreateOptions(GIB, version=2, lazy_refcounts=True), "lazy refcounts need version 3"),
        (CreateOptions(GIB, version=2, extended_l2=True), "extended L2 entries need version 3"),
        (CreateOptions(GIB, version=2, refcount_bits=8), "8 bits needs version 3"),
        (CreateOptions(GIB, version=2, data_file=b"x"), "data file needs version 3"),
        (CreateOptions(GIB, version=2, compression=CompressionType.ZSTD), "zstd needs version 3"),
        (CreateOptions(GIB, data_file_raw=True), "need a data file"),
        (CreateOptions(GIB, data_file=b""), "0 bytes is empty"),
        (CreateOptions(GIB, data_file=b"x" * 1024), "longer than 1023"),
        (CreateOptions(GIB, data_file=b"a\0b"), "data file name contains a zero byte"),
        (CreateOptions(GIB, data_file=b"x" * 400, cluster_size=512), "does not fit in a cluster"),
        (
            CreateOptions(GIB, data_file=b"x", data_file_raw=True, backing=b"y", extended_l2=True),
            "cannot go with a backing file",
        ),
        (CreateOptions(GIB, cluster_size=8 * KIB, extended_l2=True), "at least 16384 bytes"),
        (CreateOptions(-1), "must not be negative: -1"),
        (CreateOptions(2049 * TIB), "exceeds 2251799813685248 bytes"),
        (CreateOptions(1 << 63, cluster_size=2 * MIB), "L1 table of 32 MiB"),
        (CreateOptions(GIB, backing=b"x" * 1024), "1024 bytes is longer than 1023"),
        (CreateOptions(GIB, backing=b"a\0b"), "contains a zero byte"),
        (CreateOptions(GIB, backing=b"x", backing_format="f" * 16), "longer than 15 bytes"),
        (CreateOptions(GIB, backing=b"x", backing_format="\udc80"), "not ASCII"),
        (CreateOptions(GIB, backing=b"x" * 500, cluster_size=512), "does not fit in a cluster"),
        (CreateOptions(GIB, backing=b"x", preallocation=METADATA), "needs extended L2 entries"),
        (
            CreateOptions(64 * GIB, cluster_size=512, refcount_bits=64, preallocation=METADATA),
            "more than 8 MiB",
        ),
    ],
)
def test_refusals(options: CreateOptions, text: str) -> None:
    handle = MemoryHandle()
    with pytest.raises(FormatError, match=text):
        create(handle, options)
    assert not handle.data


def test_largest_image(tmp_path: Path) -> None:
    options = CreateOptions(2 * TIB * MIB, cluster_size=2 * MIB)
    assert options.capacity == qcow2.max_capacity(2 * MIB, extended_l2=False)
    path = write(tmp_path / "image", options)
    assert qemu.info(path)["virtual-size"] == options.capacity
