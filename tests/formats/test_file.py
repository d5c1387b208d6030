"""`FileHandle` on real files, on tmpfs, and where the kernel says no."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storaged.formats import qcow2_create, syscalls
from storaged.formats.file import FileHandle
from storaged.formats.handle import Extent, Handle
from storaged.formats.image import ImageState
from storaged.formats.probe import probe
from tests.formats import qemu
from tests.formats.qemu import open_native

MIB = 1 << 20


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[FileHandle]:
    with open_native(tmp_path / "image") as handle:
        yield handle


def allocated(handle: FileHandle) -> int:
    fd = handle.fileno()
    assert fd is not None
    return os.fstat(fd).st_blocks * 512


def refuse(
    monkeypatch: pytest.MonkeyPatch, number: int, *, modes: Callable[[int], bool] = lambda _: True
) -> None:
    genuine = syscalls.fallocate

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        if modes(mode):
            raise OSError(number, os.strerror(number))
        genuine(fd, mode, offset, length)

    monkeypatch.setattr(syscalls, "fallocate", fallocate)


def test_is_a_handle(handle: FileHandle) -> None:
    typed: Handle = handle
    assert typed.size() == 0


def test_reads_and_writes(handle: FileHandle) -> None:
    handle.pwrite(b"abc", 10)
    assert handle.size() == 13
    assert handle.pread(100, 9) == b"\0abc"
    assert handle.pread(1, 13) == b""
    handle.pwrite(memoryview(b"xy"), 0)
    handle.flush()
    assert handle.pread(3, 0) == b"xy\0"


def test_short_reads_and_writes_are_continued(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 3), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:2], at))
    handle.pwrite(b"0123456789", 5)
    assert handle.pread(100, 5) == b"0123456789"


@pytest.mark.parametrize("unmap", [True, False])
def test_zeroes_within_and_beyond(handle: FileHandle, unmap: bool) -> None:
    handle.pwrite(b"x" * 3 * MIB, 0)
    handle.write_zeroes(MIB, MIB, unmap=unmap)
    assert handle.pread(3 * MIB, 0) == b"x" * MIB + bytes(MIB) + b"x" * MIB
    handle.write_zeroes(3 * MIB - 100, MIB, unmap=unmap)
    assert handle.size() == 4 * MIB - 100
    assert handle.pread(2 * MIB, 3 * MIB - 101) == b"x" + bytes(MIB)
    handle.write_zeroes(5 * MIB, MIB, unmap=unmap)
    assert handle.size() == 6 * MIB
    assert not any(handle.pread(6 * MIB, 3 * MIB - 100))


def test_unmap_gives_space_back_and_allocation_takes_it(handle: FileHandle) -> None:
    handle.pwrite(b"x" * MIB, 0)
    handle.write_zeroes(0, MIB)
    assert allocated(handle) < MIB
    handle.write_zeroes(0, MIB, unmap=False)
    assert allocated(handle) >= MIB
    handle.write_zeroes(MIB, MIB, unmap=False)
    assert allocated(handle) >= 2 * MIB


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("unmap", [True, False])
def test_zeros_are_written_where_nothing_else_works(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch, number: int, unmap: bool
) -> None:
    refuse(monkeypatch, number)
    handle.pwrite(b"x" * 2 * MIB, 0)
    handle.write_zeroes(100, 3 * MIB, unmap=unmap)
    assert handle.size() == 3 * MIB + 100
    assert handle.pread(4 * MIB, 0) == b"x" * 100 + bytes(3 * MIB)
    assert unmap or allocated(handle) >= 3 * MIB


def test_punches_and_allocates_where_a_range_cannot_be_zeroed(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(
        monkeypatch,
        errno.EOPNOTSUPP,
        modes=lambda mode: bool(mode & syscalls.FALLOC_FL_ZERO_RANGE),
    )
    handle.pwrite(b"x" * MIB, 0)
    handle.write_zeroes(0, 2 * MIB, unmap=False)
    assert not any(handle.pread(2 * MIB, 0))
    assert allocated(handle) >= 2 * MIB


@pytest.mark.parametrize("unmap", [True, False])
def test_no_space_is_not_hidden(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch, unmap: bool
) -> None:
    handle.truncate(MIB)
    refuse(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left") as caught:
        handle.write_zeroes(0, MIB, unmap=unmap)
    assert caught.value.errno == errno.ENOSPC


def test_map_tells_data_from_holes(handle: FileHandle) -> None:
    handle.truncate(8 * MIB)
    handle.pwrite(b"x" * MIB, 2 * MIB)
    extents = list(handle.map(0, 16 * MIB))
    assert extents == [
        Extent(0, 2 * MIB, data=False),
        Extent(2 * MIB, MIB, data=True),
        Extent(3 * MIB, 5 * MIB, data=False),
    ]
    assert list(handle.map(2 * MIB + 5, 10)) == [Extent(2 * MIB + 5, 10, data=True)]
    assert list(handle.map(8 * MIB, 5)) == []


def test_map_of_what_knows_no_holes(handle: FileHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    handle.truncate(MIB)

    def lseek(fd: int, offset: int, whence: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "lseek", lseek)
    assert list(handle.map(5, 100)) == [Extent(5, 100, data=True)]


def test_map_while_a_hole_is_punched(handle: FileHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was data a moment ago is a hole by now: no extent is empty."""
    handle.pwrite(b"x" * MIB, 0)
    answers = iter([0, 0, 4096, MIB])
    monkeypatch.setattr(os, "lseek", lambda *_args: next(answers))
    assert list(handle.map(0, MIB)) == [
        Extent(0, 4096, data=False),
        Extent(4096, MIB - 4096, data=True),
    ]


def test_space_is_also_what_was_zeroed(handle: FileHandle) -> None:
    handle.pwrite(b"x" * MIB, MIB)
    handle.flush()
    try:
        syscalls.fallocate(handle.fileno() or 0, syscalls.FALLOC_FL_ZERO_RANGE, MIB, MIB)
    except OSError as err:
        pytest.skip(f"the temporary directory is on a file system without it: {err}")
    handle.truncate(4 * MIB)
    assert not any(extent.data for extent in handle.map(0, 4 * MIB))
    assert sum(length for _, length in handle.space(0, 4 * MIB)) == MIB
    assert list(handle.space(MIB + 5, 10)) == [(MIB + 5, 10)]
    assert list(handle.space(3 * MIB, MIB)) == []


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 100])
def test_many_pieces_at_once(
    handle: FileHandle, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Also where the kernel takes only some of them, or a part of one."""

    def some(fd: int, parts: list[bytes], offset: int) -> int:
        return os.pwrite(fd, b"".join(parts)[:most], offset)

    monkeypatch.setattr(os, "pwritev", some)
    handle.pwritev([b"ab", memoryview(b"cde"), b"", bytearray(b"fg")], 3)
    assert handle.pread(100, 0) == b"\0\0\0abcdefg"


def test_writing_back(handle: FileHandle) -> None:
    handle.pwrite(b"x" * MIB, 0)
    assert handle.begin_writing_back(0, MIB)
    reading, writing = os.pipe()
    os.close(writing)
    with FileHandle(reading) as pipe:
        assert not pipe.begin_writing_back(0, MIB)


def test_space_in_many_pieces(handle: FileHandle) -> None:
    places = range(0, 600 * 64 << 10, 64 << 10)
    for offset in places:
        handle.pwrite(b"x" * 4096, offset)
    assert list(handle.space(0, handle.size())) == [(offset, 4096) for offset in places]


@pytest.mark.parametrize("full", [True, False])
def test_space_where_nobody_tells(full: bool) -> None:
    """tmpfs does not say where a file lies."""
    with FileHandle(os.memfd_create("image")) as handle:
        handle.pwrite(b"x" * 4096, 0)
        handle.truncate(4096 if full else MIB)
        assert list(handle.space(0, MIB)) == [(0, 4096)]


def test_a_signal_stops_no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([errno.EINTR, errno.EINTR, 0])

    def checked(_result: int) -> int:
        if number := next(numbers):
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(syscalls, "_checked", checked)
    with FileHandle(os.memfd_create("image")) as handle:
        syscalls.fallocate(handle.fileno() or 0, 0, 0, MIB)
    assert next(numbers, None) is None


def test_beyond_every_file(handle: FileHandle) -> None:
    calls: list[Callable[[], None]] = [
        lambda: handle.truncate(2**63),
        lambda: handle.write_zeroes(2**62, 2**62),
        lambda: handle.write_zeroes(2**62, 2**62, unmap=False),
    ]
    for call in calls:
        with pytest.raises(OSError, match="File too large"):
            call()
    assert handle.size() == 0


def test_closes_only_what_it_owns(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    borrowed = FileHandle(fd, owned=False)
    borrowed.close()
    os.fstat(fd)
    owned = FileHandle(fd)
    owned.close()
    owned.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 4 MiB."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("loop devices need root and the kernel's loop driver")
    backing = tmp_path / "backing"
    backing.write_bytes(b"x" * 4 * MIB)
    command = ["losetup", "--find", "--show", os.fspath(backing)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_block_device(block_device: Path) -> None:
    with FileHandle(os.open(block_device, os.O_RDWR)) as handle:
        assert handle.size() == 4 * MIB
        handle.write_zeroes(MIB, MIB)
        handle.write_zeroes(100, 200, unmap=False)  # not aligned to its sectors
        handle.write_zeroes(2 * MIB, MIB, unmap=False)
        assert handle.pread(5 * MIB, 3 * MIB) == b"x" * MIB
        assert handle.pread(400, 0) == b"x" * 100 + bytes(200) + b"x" * 100
        assert not any(handle.pread(2 * MIB, MIB))
        assert sum(extent.length for extent in handle.map(0, 8 * MIB)) == 4 * MIB
        handle.truncate(MIB)
        assert handle.size() == 4 * MIB
        with pytest.raises(OSError, match="No space left"):
            handle.truncate(5 * MIB)
        handle.flush()


def test_image_on_a_block_device_with_old_contents(block_device: Path) -> None:
    with FileHandle(os.open(block_device, os.O_RDWR)) as handle:
        qcow2_create.create(handle, qcow2_create.CreateOptions(MIB, cluster_size=4096))
        assert probe(handle).state is ImageState.OK
        assert probe(handle).capacity == MIB
    qemu.check(block_device)
    qemu.io(block_device, "read -P 0 0 1M", "write -P 5 0 1M")
    qemu.check(block_device)


def test_tmpfs() -> None:
    fd = os.memfd_create("image")
    with FileHandle(fd) as handle:
        handle.pwrite(b"x" * MIB, 0)
        handle.write_zeroes(4096, 2 * MIB, unmap=False)
        assert handle.size() == 2 * MIB + 4096
        assert allocated(handle) >= 2 * MIB
        assert handle.pread(MIB, 4096) == bytes(MIB)
        handle.write_zeroes(0, 2 * MIB + 4096)
        assert allocated(handle) == 0


@pytest.mark.parametrize(
    "path", ["/proc/version", "/sys/kernel", "/proc/self", "/proc/self/ns/net"]
)
def test_what_is_the_kernels_own(tmp_path: Path, path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"this kernel has no {path}")
    for place, expected in ((path, True), (str(tmp_path), False)):
        fd = os.open(place, os.O_PATH)
        try:
            assert syscalls.is_kernels(fd) is expected
        finally:
            os.close(fd)
