"""Foreign images as disks: read, written, mapped, and what becomes of failures."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged import imagelock
from storaged.errors import Cancelled, CommandFailed, OperationFailed, OperationUnsupported
from storaged.job import Job
from storaged.qsd import Image, ImageFile, export
from tests.formats import qemu
from tests.qsd.images import MIB, children, image, made, needed, opened

pytestmark = needed

#: Formats that are written at any place.
WRITABLE = ("parallels", "qcow", "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc")
SIZE = 8 * MIB
PATTERN = {0: b"begin" * 100, 3 * MIB - 7: os.urandom(100_000), SIZE - 512: b"e" * 512}


def fails(number: int, act: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        act()
    assert caught.value.errno == number


def expected() -> bytes:
    content = bytearray(SIZE)
    for offset, data in PATTERN.items():
        content[offset : offset + len(data)] = data
    return bytes(content)


@pytest.mark.parametrize("format", WRITABLE)
def test_write_and_read(tmp_path: Path, format: str) -> None:
    path = made(tmp_path / "i", format, SIZE)
    with image(path, format) as writable, export(writable) as disk:
        assert disk.size() == SIZE
        assert disk.fileno() is None
        for offset, data in PATTERN.items():
            disk.pwrite(data, offset)
        disk.pwrite(b"x" * 70_000, 5 * MIB)
        disk.write_zeroes(5 * MIB, 70_000)
        disk.flush()
    raw = tmp_path / "raw"
    raw.write_bytes(expected())
    qemu.run("qemu-img", "compare", "-f", format, "-F", "raw", path, raw)
    with image(path, format, writable=False) as readable, export(readable) as disk:
        assert disk.pread(2 * SIZE, 0) == expected()
        assert disk.pread(10, SIZE - 5) == b"eeeee"
        assert disk.pread(10, SIZE) == b""
        extents = list(disk.map(0, 2 * SIZE))
        fails(errno.EROFS, lambda: disk.pwrite(b"x", 0))
    assert [extent.offset for extent in extents[1:]] == [
        extent.offset + extent.length for extent in extents[:-1]
    ]
    assert sum(extent.length for extent in extents) == SIZE
    for offset, data in PATTERN.items():
        assert any(e.data and e.offset < offset + len(data) for e in extents)


def test_map_knows_holes(tmp_path: Path) -> None:
    path = made(tmp_path / "i", "vdi", 64 * MIB)
    with image(path, "vdi") as writable, export(writable) as disk:
        disk.pwrite(b"x", 33 * MIB)
        assert [tuple(extent) for extent in disk.map(0, 64 * MIB)] == [
            (0, 33 * MIB, False),
            (33 * MIB, MIB, True),
            (34 * MIB, 30 * MIB, False),
        ]
        assert [tuple(extent) for extent in disk.map(MIB, 10)] == [(MIB, 10, False)]
        assert list(disk.map(64 * MIB, 10)) == []


def test_edges(tmp_path: Path) -> None:
    path = made(tmp_path / "i", "vdi", MIB)
    with image(path, "vdi") as writable, export(writable) as disk:
        disk.truncate(MIB)
        fails(errno.ENOSPC, lambda: disk.pwrite(b"xx", MIB - 1))
        fails(errno.ENOSPC, lambda: disk.write_zeroes(MIB, 1))
        fails(errno.EOPNOTSUPP, lambda: disk.truncate(2 * MIB))
        disk.pwrite(memoryview(b"xyz")[1:], 0)
        disk.pwrite(b"", MIB)
        disk.write_zeroes(1, 0)
        disk.trim(4096, 4096)
        assert disk.pread(3, 0) == b"yz\0"
        disk.close()
        disk.close()


def test_error_of_one_request(tmp_path: Path) -> None:
    """The daemon's error is told, and the disk can be used on."""
    path = made(tmp_path / "i", "vmdk", 4 * MIB, subformat="streamOptimized")
    with image(path, "vmdk") as writable, export(writable) as disk:
        for _ in range(3):
            with pytest.raises(OSError, match="writing to file failed"):
                disk.pwrite(os.urandom(3 * MIB), 10)
        assert disk.pread(4, 0) == bytes(4)


def test_backing(tmp_path: Path) -> None:
    base = made(tmp_path / "base", "qcow2", MIB)
    with image(base, "qcow2") as lower, export(lower) as disk:
        disk.pwrite(b"base", 0)
    top = tmp_path / "top"
    qemu.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    with opened(top, writable=False) as file, opened(base, writable=False) as below:
        with export(Image(file, "qcow2", backing=Image(below, "qcow2"))) as disk:
            assert disk.pread(4, 0) == b"base"
        with export(Image(file, "qcow2")) as disk:
            assert disk.pread(4, 0) == bytes(4)


def test_data_file(tmp_path: Path) -> None:
    top, data = tmp_path / "top", tmp_path / "data"
    qemu.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", top, "1M")
    with opened(top) as file, opened(data) as outside:
        with export(Image(file, "qcow2", data_file=outside)) as disk:
            disk.pwrite(b"outside", 0)
        with (
            pytest.raises(OperationUnsupported, match="in another file"),
            export(Image(file, "qcow2")),
        ):
            pass
    assert data.read_bytes().startswith(b"outside")


def test_locks(tmp_path: Path) -> None:
    """What we have locked is opened where we say so; what others have locked never is."""
    path = made(tmp_path / "i", "vdi", MIB)
    with opened(path) as file, imagelock.hold(file.fd, "i"):
        with export(Image(file, "vdi")) as disk:
            disk.pwrite(b"x", 0)
        other = ImageFile(file.fd, writable=True, locked=False)
        with (
            pytest.raises(OperationFailed, match=r"Failed to get .* lock"),
            export(Image(other, "vdi")),
        ):
            pass


def test_death_of_the_daemon(tmp_path: Path) -> None:
    path = made(tmp_path / "i", "vdi", MIB)

    def read() -> None:
        with image(path, "vdi") as writable, export(writable) as disk:
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)
            disk.pread(512, 0)

    with pytest.raises(CommandFailed, match="fatal signal 9"):
        read()


def test_cancel_while_waiting(tmp_path: Path) -> None:
    """A daemon that hangs does not keep the job from ending."""
    path = made(tmp_path / "i", "vdi", MIB)
    job: Job[None] = Job("clone")
    timer = threading.Timer(0.1, job.cancel)

    def read() -> None:
        with image(path, "vdi") as readable, export(readable, job) as disk:
            (pid,) = children()
            os.kill(pid, signal.SIGSTOP)
            timer.start()
            disk.pread(512, 0)

    with pytest.raises(Cancelled, match="clone was cancelled"):
        read()
    timer.join()


def test_callers_errors_pass(tmp_path: Path) -> None:
    path = made(tmp_path / "i", "vdi", MIB)
    with image(path, "vdi") as readable:
        with pytest.raises(OSError, match="mine") as caught, export(readable):
            raise OSError(errno.ENOSPC, "mine")
        assert caught.value.errno == errno.ENOSPC


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 4 * MIB - 1), st.integers(1, 2 * MIB), st.integers(0, 255)),
        max_size=8,
    )
)
def test_any_writes(tmp_path: Path, writes: list[tuple[int, int, int]]) -> None:
    path = tmp_path / "i"
    path.unlink(missing_ok=True)
    made(path, "vhdx", 4 * MIB)
    content = bytearray(4 * MIB)
    with image(path, "vhdx") as writable, export(writable) as disk:
        for offset, length, value in writes:
            length = min(length, 4 * MIB - offset)
            content[offset : offset + length] = bytes([value]) * length
            if value:
                disk.pwrite(bytes([value]) * length, offset)
            else:
                disk.write_zeroes(offset, length, unmap=bool(length & 1))
        assert disk.pread(4 * MIB, 0) == content
        for extent in disk.map(0, 4 * MIB):
            if not extent.data:
                assert not any(content[extent.offset : extent.offset + extent.length])
