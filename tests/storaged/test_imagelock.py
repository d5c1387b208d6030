"""QEMU's image locks, against QEMU."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storaged import imagelock
from storaged.errors import SystemFailure, VolumeBusy
from storaged.imagelock import Holder, busy, check, hold, holders, is_free
from tests.backends.conftest import storage_daemon as storage_daemon
from tests.formats import qemu


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return qemu.create(tmp_path / "disk", 1 << 20)


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    fd = os.open(image, os.O_RDWR)
    yield fd
    os.close(fd)


def test_free(fd: int) -> None:
    assert is_free(fd)
    check(fd, "disk")


@pytest.mark.parametrize(
    ("read_only", "to_write", "to_read"), [(False, False, False), (True, False, True)]
)
def test_qemu_has_it(
    image: Path,
    fd: int,
    storage_daemon: Callable[..., int],
    read_only: bool,
    to_write: bool,
    to_read: bool,
) -> None:
    pid = storage_daemon(image, read_only=read_only)
    assert is_free(fd, writing=True) is to_write
    assert is_free(fd, writing=False) is to_read
    with pytest.raises(VolumeBusy) as caught:
        check(fd, "disk")
    assert caught.value.detail == "volume 'disk' is still in use."
    how = "" if read_only else "for writing "
    assert (caught.value.advice or "").startswith(
        f"It is open {how}by qemu-storage-da (pid {pid}). Stop that first"
    )


def test_raw_image_with_a_writer(tmp_path: Path, storage_daemon: Callable[..., int]) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(1 << 20))
    storage_daemon(path, format="raw")
    fd = os.open(path, os.O_RDWR)
    try:
        assert not is_free(fd)
    finally:
        os.close(fd)


def test_we_keep_qemu_out(image: Path, fd: int) -> None:
    with hold(fd, "disk"), pytest.raises(AssertionError, match="Failed to get"):
        qemu.io(image, "write 0 512")
    qemu.io(image, "write 0 512")


def test_two_of_us(image: Path, fd: int) -> None:
    other = os.open(image, os.O_RDWR)
    try:
        with hold(fd, "disk"):
            with pytest.raises(VolumeBusy), hold(other, "disk"):
                pytest.fail("both hold it")
            assert not is_free(other)
        with hold(other, "disk"):
            pass
        with hold(fd, "disk", alone=False), hold(other, "disk", alone=False):
            assert not is_free(fd)
            assert is_free(fd, alone=False)
        with (
            hold(fd, "disk"),
            pytest.raises(VolumeBusy),
            hold(other, "disk", alone=False),
        ):
            pytest.fail("one wanted to be alone")
    finally:
        os.close(other)


def test_readers_only_keep_writers_out(image: Path, fd: int) -> None:
    other = os.open(image, os.O_RDONLY)
    try:
        with hold(other, "disk", writing=False):
            with hold(fd, "disk", writing=False):
                qemu.run("qemu-img", "check", image)
            with pytest.raises(VolumeBusy), hold(fd, "disk"):
                pytest.fail("a writer got in")
            with pytest.raises(AssertionError, match="Failed to get"):
                qemu.io(image, "write 0 512")
    finally:
        os.close(other)
    qemu.io(image, "write 0 512")


def test_force(image: Path, fd: int, storage_daemon: Callable[..., int]) -> None:
    storage_daemon(image)
    with pytest.raises(VolumeBusy), hold(fd, "disk"):
        pytest.fail("got in")
    with hold(fd, "disk", force=True):
        pass


def test_closing_within_the_block_is_no_error(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    with hold(fd, "disk"):
        os.close(fd)


def test_holders(image: Path) -> None:
    status = image.stat()
    assert holders(status.st_dev, status.st_ino) == ()
    code = "import sys; f = open(sys.argv[1], 'rb'); print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(image), "-name", "guest=web,,1,debug-threads=on"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = holders(status.st_dev, status.st_ino)
        assert (found.pid, found.writing, found.guest) == (process.pid, False, "web,1")
        fd = os.open(image, os.O_RDWR)
        try:
            advice = busy(fd, "disk").advice or ""
        finally:
            os.close(fd)
        assert advice.startswith("It is open by virtual machine 'web,1', python")
        process.stdin.close()  # type: ignore[union-attr]


def test_holder_in_words() -> None:
    assert str(Holder(2201, "qemu-system-x86", True)) == "qemu-system-x86 (pid 2201)"


def test_nobody_to_be_seen(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagelock, "holders", lambda *_args: ())
    with hold(fd, "x"):
        advice = busy(fd, "x").advice or ""
    assert f"by this process (pid {os.getpid()}) itself, or by one that cannot be seen" in advice
    assert "by a program of another host." in (busy(fd, "x").advice or "")
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 100)  # a lock of the older kind tells whose it is
    assert f"by pid {os.getpid()}." in (busy(fd, "x").advice or "")
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, 100)


def test_who_locks_is_named_and_not_who_reads(
    image: Path, fd: int, storage_daemon: Callable[..., int]
) -> None:
    pid = storage_daemon(image)
    argv = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    reader = os.open(image, os.O_RDWR)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(reader,)
    ) as process:
        os.close(reader)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        status = image.stat()
        found = {user.pid: user.locking for user in holders(status.st_dev, status.st_ino)}
        assert found == {os.getpid(): False, process.pid: False, pid: True}
        advice = busy(fd, "disk").advice or ""
        assert f"(pid {pid})" in advice
        assert str(process.pid) not in advice
        process.stdin.close()


@pytest.mark.parametrize(
    ("line", "lock"),
    [
        ("1: OFDLCK ADVISORY  READ -1 fe:00:2180011 100 101", (-1, 2180011)),
        ("lock:\t1: POSIX  ADVISORY  WRITE 812 00:2e:77 0 EOF", (812, 77)),
        ("2: FLOCK  ADVISORY  WRITE 5 00:2e:77 0 EOF", None),
        ("3: POSIX  ADVISORY  WRITE 812 00:2e:77 104 199", None),
        ("3: -> POSIX  ADVISORY  WRITE 812 00:2e:77 100 100", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_lines_of_the_kernel(line: str, lock: tuple[int, int] | None) -> None:
    assert imagelock._parse_lock(line) == lock


def test_file_system_without_locks(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> bytes:
        raise OSError(95, "no locks")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with hold(fd, "disk"):
        assert is_free(fd)


def test_locks_that_do_not_work(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> bytes:
        raise OSError(121, "the server is gone")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(SystemFailure, match="cannot lock volume 'disk'"), hold(fd, "disk"):
        pytest.fail("got in")
