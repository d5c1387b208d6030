"""What is fuzzed, and what has to hold whatever the bytes are.

A target takes an image and returns in words what became of it, so that the fuzzer knows something
new when it sees it. It may raise `FormatError` and `OSError`; anything else is a bug, and so is an
`AssertionError` of the promises that are tested here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from storaged.formats import (
    luks2,
    luks_volume,
    probe,
    qcow2_amend,
    qcow2_check,
    qcow2_grow,
    qcow2_shrink,
    vmdk_check,
    vmdk_describe,
)
from storaged.formats.checkreport import CheckReport
from storaged.formats.convert import convert
from storaged.formats.disk import Disk, Kind, Stretch
from storaged.formats.errors import CorruptImage, FormatError
from storaged.formats.identify import identify
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_bitmaps import read_bitmaps
from storaged.formats.qcow2_create import CreateOptions
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_snapshots import read_snapshots
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.vmdk_read import VmdkDisk
from tests.formats.memory import MemoryHandle
from tests.fuzz import seeds

#: Stretches that are looked at, bytes that are read at a time and in all.
MOST_STRETCHES = 2000
STEP = 64 << 10
MOST_READ = 2 << 20
#: A disk of more than this is not converted: it would take as long as it claims to be.
MOST_CONVERTED = 4 << 20
_QCOW2 = b"QFI\xfb"


class Target(NamedTuple):
    run: Callable[[bytes], str]
    seeds: Callable[[], Iterable[bytes]]


class Small(MemoryHandle):
    """A file on a full disk: it cannot become longer than 16 MiB."""

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._require(offset + len(data))
        super().pwrite(data, offset)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._require(offset + length)
        super().write_zeroes(offset, length, unmap=unmap)

    def truncate(self, size: int) -> None:
        self._require(size)
        super().truncate(size)

    def _require(self, size: int) -> None:
        if size > 16 << 20:
            raise OSError(errno.ENOSPC, "full")


def opened(data: bytes) -> Disk:
    """Open an image whose other files are there and hold zeros."""
    handle = MemoryHandle(data)
    if data.startswith(_QCOW2):
        if _has_data_file(data):
            return Qcow2Disk(handle, data_file=MemoryHandle(bytes(STEP)))
        return Qcow2Disk(handle, backing=MemoryHandle(b"b" * 3000))
    files = vmdk_describe.describe(handle).extents
    return VmdkDisk(handle, extents=[MemoryHandle(bytes(STEP)) for _ in files[:64]])


def _has_data_file(data: bytes) -> bool:
    return len(data) > 79 and bool(data[79] & 4)


def checked(data: bytes) -> CheckReport:
    handle = MemoryHandle(data)
    if data.startswith(_QCOW2):
        return qcow2_check.check(handle)
    files = vmdk_describe.describe(handle).extents
    return vmdk_check.check(handle, extents=[MemoryHandle(bytes(STEP)) for _ in files[:64]])


def run_probe(data: bytes) -> str:
    handle = MemoryHandle(data)
    info = probe.probe(handle)
    assert sum(length for _, length in handle.reads) < 256 << 10
    return _judged(info)


def run_identify(data: bytes) -> str:
    handle = MemoryHandle(data)
    info = identify(handle)
    assert sum(length for _, length in handle.reads) < 2 << 20
    return _judged(info)


def _judged(info: ImageInfo) -> str:
    assert 0 <= info.capacity < 2**63
    assert (info.state is ImageState.OK) == (not info.reasons)
    assert all(reason.isprintable() and len(reason) < 2000 for reason in info.reasons)
    return f"{info.format} {info.state} {'; '.join(info.reasons)}"


def run_check(data: bytes) -> str:
    report = checked(data)
    assert report.corruptions >= 0
    assert report.leaks >= 0
    assert len(report.findings) <= 101
    assert all(finding.isprintable() and len(finding) < 2000 for finding in report.findings)
    if report.corruptions or report.leaks:
        assert report.findings
    return "; ".join(report.findings)


def run_map(data: bytes) -> str:
    disk = opened(data)
    kinds, end = set(), 0
    for stretch in _some(disk.stretches(0, disk.size())):
        assert stretch.offset == end
        assert stretch.length > 0
        assert (stretch.kind is Kind.DATA) == (stretch.file is not None)
        assert stretch.host >= 0
        end += stretch.length
        kinds.add((stretch.kind.value, stretch.depth))
    assert end <= disk.size()
    assert list(disk.stretches(disk.size(), 0)) == []
    return f"{sorted(kinds)} {disk.size().bit_length()}"


def run_read(data: bytes) -> str:
    """Reading agrees with the map and with itself, and a sound image can be read."""
    try:
        disk = opened(data)
        left, kinds = MOST_READ, set()
        for stretch in _some(disk.stretches(0, disk.size())):
            for offset in {stretch.offset, stretch.offset + max(stretch.length - STEP, 0)}:
                length = min(STEP, stretch.offset + stretch.length - offset)
                read = disk.pread(length, offset)
                assert len(read) == length
                assert stretch.kind.data or not any(read)
                left -= length
            kinds.add(stretch.kind.value)
            if left < 0:
                break
        assert disk.pread(10, disk.size()) == b""
        last = min(disk.size(), 700)
        assert len(disk.pread(last + 5, disk.size() - last)) == last
    except CorruptImage as err:
        if "compressed" not in str(err) and data.startswith(_QCOW2):
            _require_unclean(data, err)
        raise
    return f"{sorted(kinds)}"


def run_describe(data: bytes) -> str:
    description = vmdk_describe.describe(MemoryHandle(data), name=b"own.vmdk")
    assert 0 <= description.capacity < 2**63
    assert all(b"/" not in extent.name for extent in description.extents) or (
        description.state is not ImageState.OK
    )
    return f"{description.subformat} {description.state} {'; '.join(description.reasons)}"


def run_snapshots(data: bytes) -> str:
    """Every snapshot that is listed can be read, or says why not."""
    found = read_snapshots(MemoryHandle(data))
    assert len(found) <= 65536
    for snapshot in found[:4]:
        assert (snapshot.id + snapshot.name).isprintable()
        with suppress(FormatError):
            disk = Qcow2Disk(MemoryHandle(data), snapshot=snapshot)
            for stretch in islice(disk.stretches(0, disk.size()), 100):
                with suppress(FormatError):
                    assert len(disk.pread(512, stretch.offset)) <= 512
    return f"{len(found)} {[one.disk_size is None for one in found[:3]]}"


def run_bitmaps(data: bytes) -> str:
    found = read_bitmaps(MemoryHandle(data))
    assert all(bitmap.name.isprintable() and bitmap.granularity > 0 for bitmap in found)
    return f"{len(found)} {[one.flags for one in found[:3]]}"


def run_luks(data: bytes) -> str:
    info = luks2.describe(MemoryHandle(data)) if data[7:8] == b"\2" else None
    disk = luks_volume.unlock(MemoryHandle(data), b"x", max_iterations=20_000)
    assert len(disk.pread(4096, 0)) == min(4096, disk.size())
    return f"{info} {disk.size()}"


def run_convert(data: bytes) -> str:
    """Whatever comes in, what comes out is a clean image with the same content."""
    disk = opened(data)
    if disk.size() > MOST_CONVERTED:
        return "large"
    target = Small()
    compression = CompressionType.DEFLATE if len(data) % 2 else None
    options = CreateOptions(disk.size(), cluster_size=512 << len(data) % 8)
    moved = convert(disk, Qcow2Writer(target, options, compression=compression, threads=1))
    report = qcow2_check.check(MemoryHandle(bytes(target.data)))
    assert report.clean, report.findings
    made = Qcow2Disk(target)
    assert made.size() == disk.size()
    for offset in range(0, disk.size(), STEP):
        assert made.pread(STEP, offset) == disk.pread(STEP, offset)
    return f"{moved.written.bit_length()} {len(target.data).bit_length()}"


def run_change(data: bytes) -> str:
    """A change in place leaves a clean image clean, and one that is refused as it was."""
    before = _verdict(data)
    words = []
    for change in (_grow, _shrink, _amend):
        handle = Small(data)
        try:
            change(handle)
        except FormatError as err:
            _require_same(handle, data)
            words.append(str(err))
            continue
        words.append("done")
        if before is not None and before.clean:
            after = qcow2_check.check(MemoryHandle(bytes(handle.data)))
            assert not after.corruptions, (change, after.findings)
    return "; ".join(words)


def _require_unclean(data: bytes, err: CorruptImage) -> None:
    """What cannot be read must not be called clean, but for the length of a data file."""
    with suppress(FormatError):
        if _has_data_file(data):
            return
        assert not checked(data).clean, err


def _require_same(handle: MemoryHandle, data: bytes) -> None:
    assert bytes(handle.data) == data


def _verdict(data: bytes) -> CheckReport | None:
    with suppress(FormatError):
        return qcow2_check.check(MemoryHandle(data))
    return None


def _grow(handle: MemoryHandle) -> None:
    qcow2_grow.grow(handle, Qcow2Disk(handle).size() + 70_000)


def _shrink(handle: MemoryHandle) -> None:
    qcow2_shrink.shrink(handle, Qcow2Disk(handle).size() // 2)


def _amend(handle: MemoryHandle) -> None:
    qcow2_amend.rebase(handle, b"other.qcow2", "qcow2")


def _some(stretches: Iterator[Stretch]) -> Iterator[Stretch]:
    return islice(stretches, MOST_STRETCHES)


def disks() -> Iterator[bytes]:
    yield from seeds.qcow2_images()
    yield from seeds.vmdk_images()


def targets() -> dict[str, Target]:
    """Return all by name."""
    return {
        "probe": Target(run_probe, seeds.all_images),
        "identify": Target(run_identify, seeds.all_images),
        "check": Target(run_check, disks),
        "map": Target(run_map, disks),
        "read": Target(run_read, disks),
        "describe": Target(run_describe, seeds.vmdk_images),
        "snapshots": Target(run_snapshots, seeds.snapshot_images),
        "bitmaps": Target(run_bitmaps, seeds.bitmap_images),
        "luks": Target(run_luks, seeds.luks_images),
        "convert": Target(run_convert, disks),
        "change": Target(run_change, seeds.qcow2_images),
    }
