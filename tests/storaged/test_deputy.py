"""Deputies: what they may do, that they end, and that one that hangs holds nobody up for long."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged import deputy as deputy_module
from storaged import deputyscript
from storaged.command import User
from storaged.deputy import Deputies, Deputy

UID, GID = 12345, 23456

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have deputies")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """A directory that only our user may enter."""
    tmp_path.chmod(0o700)
    os.chown(tmp_path, UID, GID)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def deputies() -> Iterator[Deputies]:
    found = Deputies()
    yield found
    found.close()


def make(deputy: Deputy, directory: int, name: str, data: bytes = b"") -> None:
    fd = deputy.open(directory, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    os.write(fd, data)
    os.close(fd)


def test_all_that_one_may_do(deputies: Deputies, directory: int, tmp_path: Path) -> None:
    deputy = deputies.of(UID, GID)
    assert deputies.of(UID, GID) is deputy
    make(deputy, directory, "a", b"text")
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (UID, GID, 0o640)
    deputy.link(directory, "a", "b")
    with pytest.raises(FileExistsError):
        deputy.link(directory, "a", "b")
    deputy.rename(directory, "b", "c\nd")
    deputy.mkdir(directory, "e", 0o750)
    deputy.rmdir(directory, "e")
    deputy.unlink(directory, "c\nd")
    assert os.listdir(directory) == ["a"]
    fd = deputy.open(directory, "a", os.O_RDONLY)
    assert not os.get_inheritable(fd)
    deputy.chmod(fd, 0o600)
    deputy.chown(fd, -1, GID)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        deputy.open(directory, "none", os.O_RDONLY)


def test_others_may_not(deputies: Deputies, directory: int, tmp_path: Path) -> None:
    make(deputies.of(UID, GID), directory, "a")
    (tmp_path / "a").chmod(0o600)
    other = deputies.of(777, 777)
    for call in (
        lambda: other.open(directory, "a", os.O_RDONLY),
        lambda: other.unlink(directory, "a"),
        lambda: other.mkdir(directory, "b", 0o700),
    ):
        with pytest.raises(PermissionError):
            call()
    found = os.open(tmp_path / "a", os.O_PATH)
    with pytest.raises(PermissionError):
        other.reopen(found, os.O_RDONLY)
    opened = deputies.of(UID, GID).reopen(found, os.O_RDWR | os.O_NOFOLLOW)
    os.write(opened, b"x")
    os.close(opened)
    os.close(found)


def test_links_are_not_followed(deputies: Deputies, directory: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        deputies.of(UID, GID).open(directory, "link", os.O_RDONLY | os.O_NOFOLLOW)


def test_killed_one_is_replaced(deputies: Deputies, directory: int) -> None:
    deputy = deputies.of(UID, GID)
    make(deputy, directory, "a")
    child = deputy._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while child.wait(0.05) is None:
        assert time.monotonic() < deadline
    deputies.of(777, 777)  # reaps it
    assert deputy._child is None
    make(deputy, directory, "b")
    assert sorted(os.listdir(directory)) == ["a", "b"]


def test_one_that_hangs_costs_one_request(directory: int) -> None:
    """Its user may stop it again and again: what he asks for fails at once for a while then."""
    deputy = Deputy(User(UID, GID), timeout=1.0)
    make(deputy, directory, "a")
    assert deputy._child is not None
    os.kill(deputy._child.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        deputy.unlink(directory, "a")
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(TimeoutError):
            make(deputy, directory, "b")
    assert time.monotonic() - began < 0.9
    time.sleep(1.1)
    make(deputy, directory, "b")
    deputy.close()
    assert sorted(os.listdir(directory)) == ["a", "b"]


def test_close_ends_a_request_that_hangs(directory: int) -> None:
    deputy = Deputy(User(UID, GID))
    make(deputy, directory, "a")
    assert deputy._child is not None
    os.kill(deputy._child.pid, signal.SIGSTOP)
    failed: list[OSError] = []

    def work() -> None:
        try:
            deputy.unlink(directory, "a")
        except OSError as err:
            failed.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    while not deputy._lock.locked():
        time.sleep(0.01)
    time.sleep(0.1)
    deputy.close()
    thread.join(10)
    assert [err.errno for err in failed] == [errno.ETIMEDOUT]


def test_many_threads_share_one(deputies: Deputies, directory: int) -> None:
    deputy = deputies.of(UID, GID)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                make(deputy, directory, f"{number}-{turn}")
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(os.listdir(directory)) == 100


def test_a_server_that_invents_owners_gets_no_child_for_each(
    deputies: Deputies, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    known = [deputies.of(50000 + number, GID) for number in range(12)]
    for number, deputy in enumerate(known):
        make(deputy, fd, str(number))
    assert known[0]._child is None  # it served this one request
    alive = [deputy for deputy in known if deputy._child is not None]
    assert len(alive) == 8
    deputies.of(alive[0].user.uid, GID)
    deputies.of(UID, GID)
    assert alive[0]._child is not None  # asked for lately
    assert alive[1]._child is None
    with pytest.raises(PermissionError):
        deputies.of(0, 0)
    os.close(fd)


def test_errors_of_the_storage_are_no_lost_child(
    deputies: Deputies, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system whose server has gone says ECONNABORTED: that is an answer, once."""
    deputy = deputies.of(UID, GID)
    make(deputy, directory, "a")
    child = deputy._child
    answers = [(struct.pack("=i", errno.ECONNABORTED), None)]
    monkeypatch.setattr("storaged.deputy._receive", lambda _channel: answers.pop())
    with pytest.raises(ConnectionAbortedError):
        deputy.mkdir(directory, "b", 0o700)
    assert deputy._child is child


def test_what_may_have_been_done_is_not_done_again(
    deputies: Deputies, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    deputy = deputies.of(UID, GID)
    make(deputy, directory, "a")
    receive = deputy_module._receive

    def killed(channel: socket.socket) -> tuple[bytes, int | None]:
        receive(channel)
        assert deputy._child is not None
        deputy._child.kill()
        return b"", None

    monkeypatch.setattr("storaged.deputy._receive", killed)
    with pytest.raises(TimeoutError):  # and not FileExistsError
        deputy.mkdir(directory, "b", 0o700)
    assert sorted(os.listdir(directory)) == ["a", "b"]


def test_one_that_ended_idle_is_replaced(
    deputies: Deputies, directory: int, tmp_path: Path
) -> None:
    deputy = deputies.of(UID, GID)
    make(deputy, directory, "a")
    first = deputy._child
    assert first is not None
    assert deputy._channel is not None
    deputy._channel.shutdown(socket.SHUT_WR)  # as far as it can tell, we have gone
    assert first.wait(10) == 0
    make(deputy, directory, "b")
    assert deputy._child is not first


def test_nothing_is_replaced(deputies: Deputies, directory: int) -> None:
    deputy = deputies.of(UID, GID)
    make(deputy, directory, "a", b"a")
    make(deputy, directory, "b", b"b")
    with pytest.raises(FileExistsError):
        deputy.rename_noreplace(directory, "a", "b")
    deputy.rename_noreplace(directory, "a", "c")
    assert sorted(os.listdir(directory)) == ["b", "c"]


def test_it_ends_with_us(deputies: Deputies, directory: int) -> None:
    deputy = deputies.of(UID, GID)
    make(deputy, directory, "a")
    child, channel = deputy._child, deputy._channel
    assert child is not None
    assert channel is not None
    channel.close()
    assert child.wait(10) == 0


def test_odd_requests_are_refused(directory: int) -> None:
    with pytest.raises(OSError, match="unknown request"):
        deputyscript._do([b"format", b"/dev/sda"], [directory])
