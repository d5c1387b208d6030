"""The check of VMDK tables: silent on what is sound, and what it says of the rest."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.formats import vmdk_create
from storaged.formats.checkreport import CheckReport
from storaged.formats.file import FileHandle
from storaged.formats.vmdk_check import check
from storaged.formats.vmdk_claims import Claims
from storaged.formats.vmdk_tables import repeated
from tests.formats import qemu
from tests.formats.memory import MemoryHandle
from tests.formats.test_vmdk_read import SUBFORMATS, entry, small
from tests.formats.vmdk_images import cowd, open_files


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_what_qemu_img_wrote_is_clean(tmp_path: Path, subformat: str) -> None:
    path = qemu.create(tmp_path / "a.vmdk", "5G", f"subformat={subformat}", format="vmdk")
    if subformat != "streamOptimized":  # that can be written only from front to end
        qemu.run(
            *("qemu-io", "-f", "vmdk", "-c", "write -P 1 3G 1M", "-c", "write -P 2 0 64k"),
            *("-c", "write -P 3 2097120k 128k", path),
        )
    handle, extents = open_files(path)
    steps: list[tuple[int, int]] = []
    report = check(handle, extents=extents, checkpoint=lambda *step: steps.append(step))
    assert report.clean, report
    assert steps[-1] == (5 << 30, 5 << 30)
    assert steps == sorted(steps)
    if "parse" in subformat:
        assert (report.total, report.allocated) == (5 << 14, 20)
        assert report.end == max(file.size() for file in (handle, *extents))
    for file in (handle, *extents):
        file.close()


def test_our_own_are_clean() -> None:
    report = check(small())
    assert report == CheckReport("vmdk", end=len(small().data), total=544, allocated=5)
    stream = check(small(stream=True))
    assert stream.clean
    assert (stream.allocated, stream.compressed) == (5, 5)
    assert check(MemoryHandle(cowd([b"a" * 4096, None]))).clean


def grain_at(index: int, value: int | Callable[[MemoryHandle], int]) -> Callable[..., None]:
    """Change the entry of a grain in the primary table."""

    def change(handle: MemoryHandle) -> None:
        number = value if isinstance(value, int) else value(handle)
        struct.pack_into("<I", handle.data, entry(handle, index), number)

    return change


def place_of(index: int, shift: int = 0) -> Callable[[MemoryHandle], int]:
    return lambda handle: struct.unpack_from("<I", handle.data, entry(handle, index))[0] + shift


def directory_entry(field: int, index: int, value: int) -> Callable[[MemoryHandle], None]:
    def change(handle: MemoryHandle) -> None:
        (directory,) = struct.unpack_from("<Q", handle.data, field)
        struct.pack_into("<I", handle.data, directory * 512 + 4 * index, value)

    return change


def grow(handle: MemoryHandle) -> None:
    handle.data += bytes(3 * 65536)


@pytest.mark.parametrize(
    ("change", "corruptions", "leaks", "reason"),
    [
        (grain_at(3, 0), 1, 1, "two copies of grain table 0 differ"),
        (grain_at(3, 10**6), 2, 0, "grain 3 at sector 1000000 is outside the data"),
        (grain_at(3, 5), 2, 0, "grain 3 at sector 5 is outside the data"),
        (grain_at(3, place_of(1)), 2, 0, "belongs to something else"),
        (grain_at(3, place_of(1, 3)), 2, 0, "belongs to something else"),
        (grain_at(544, 10**5), 2, 0, "entries beyond the disk's end"),
        (directory_entry(56, 1, 10**6), 1, 2, "grain table 1 at sector 1000000 is outside"),
        (directory_entry(56, 1, 0), 1, 2, "grain table 1 stands in one directory only"),
        (directory_entry(48, 1, 0), 1, 0, "two copies of grain table 1 differ"),
        (grow, 0, 3, "3 grains of the file are used by nothing"),
    ],
)
def test_found(
    change: Callable[[MemoryHandle], None], corruptions: int, leaks: int, reason: str
) -> None:
    handle = small()
    change(handle)
    report = check(handle)
    assert (report.corruptions, report.leaks) == (corruptions, leaks), report
    assert reason in "; ".join(report.findings)


@pytest.mark.parametrize(
    ("place", "code", "value", "reason"),
    [
        (0, "<Q", 7, "is that of sector 7"),
        (8, "<I", 10**6, "compressed bytes"),
        (8, "<I", 700, "belongs to something else"),
    ],
)
def test_found_in_a_stream(place: int, code: str, value: int, reason: str) -> None:
    handle = small(stream=True)
    (sector,) = struct.unpack_from("<I", handle.data, entry(handle, 1, stream=True))
    struct.pack_into(code, handle.data, sector * 512 + place, value)
    report = check(handle)
    assert report.corruptions
    assert reason in "; ".join(report.findings)


def test_a_grain_in_no_table() -> None:
    handle = small(stream=True)
    struct.pack_into("<I", handle.data, entry(handle, 1, stream=True), 0)
    report = check(handle)
    assert (report.corruptions, report.leaks) == (0, 1)
    assert report.findings == ("1 grains of the stream are in no table",)


def test_a_broken_header_is_told() -> None:
    handle = small()
    handle.data[20] = 127
    report = check(handle)
    assert (report.corruptions, report.findings) == (1, ("grain size is 127 sectors",))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), max_size=12),
    st.sampled_from([1, 1 << 20]),
)
def test_claims(claims: list[tuple[int, int]], scale: int) -> None:
    """Something is told exactly if two claims share a sector."""
    book = Claims(8)
    taken: set[int] = set()
    twice = False
    for start, length in claims:
        sectors = set(range(start, start + length))
        twice = twice or bool(sectors & taken)
        taken |= sectors
        book.add(array("I", (start * scale,)), array("Q", ((start + length) * scale,)))
    assert bool(list(book.overlaps())) == twice


def test_more_claims_than_fit() -> None:
    book = Claims(8)
    starts = array("I", [8]) * 100_000
    ends = array("Q", [16]) * 100_000
    for _ in range(4):
        book.add(starts, ends)
    assert sum(count for _, count in book.overlaps()) == 399_999
    assert book.end == 16


#: Grain tables of 32 TiB.
MANY = 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 3])
def test_a_table_for_all_of_a_disk(tmp_path: Path, places: int) -> None:
    """A million tables that are one: it is looked into once, and counted as often as it is named.

    Else a file of a few MiB would keep a check busy for minutes.
    """
    directory, table = 4 << 20, 32 << 20
    header = MemoryHandle()
    vmdk_create.create(header, 64 << 20, cid=1)
    struct.pack_into("<Q", header.data, 12, MANY * 512 * 128)
    struct.pack_into("<QQQ", header.data, 48, *[directory // 512] * 2, (16 << 20) // 512)
    sectors = [table // 512 + 4 * number for number in range(places)]
    with (tmp_path / "a.vmdk").open("w+b") as file:
        file.write(header.data)
        os.pwrite(file.fileno(), array("I", sectors * (MANY // places)), directory)
        os.pwrite(file.fileno(), array("I", range(1 << 17, (1 << 17) + 512 * 128, 128)), table)
        file.truncate(8 << 30)
        file.flush()
        handle = FileHandle(file.fileno(), owned=False)
        start = time.thread_time()
        report = check(handle)
        assert time.thread_time() - start < 1.5  # 0.6 s where nothing else runs
        tracemalloc.start()
        check(handle)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20
    assert report.corruptions == places * (MANY // places) - places
    assert report.allocated == 512
    assert f"table {places} at sector 65536 belongs to something else" in report.findings[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 7, 1 << 17, (1 << 32) - 1]), max_size=20))
def test_repeated(sectors: list[int]) -> None:
    flags = repeated(array("I", sectors))
    assert list(flags) == [
        bool(sector) and sector in sectors[:index] for index, sector in enumerate(sectors)
    ]


def test_progress_stops() -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        check(small(), checkpoint=stop)
