"""Files that appear whole, and what is left when a process dies in the middle."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storaged.backend import Host
from storaged.backends._newfile import (
    PART_NAME,
    can_be_unnamed,
    new_file,
    part_name,
    remove_leftovers,
    try_lock,
)
from storaged.errors import SystemFailure
from storaged.formats import syscalls
from tests.backends.conftest import make_pool, new_job

#: Makes a file of 1 GiB, says so when the work is under way, and then waits to be killed.
_WORKER = """
import sys
from pathlib import Path
from storaged.formats import syscalls
from tests.backends.conftest import make_pool
pool = make_pool(Path(sys.argv[1]))
pool.backend._unnamed = sys.argv[2] == "True"
from storaged.backends import _create
def create(handle, *args, **options):
    handle.pwrite(b"half", 0)
    print("under way", flush=True)
    sys.stdin.read()
_create.raw.create = create
pool.create("disk", 1 << 30)
"""


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_names() -> None:
    assert PART_NAME.fullmatch(part_name("4f2a-b", 17))
    assert not PART_NAME.fullmatch(".storaged-notes.part")
    assert part_name("4f2a-b", 17) != part_name("4f2a-b", 17)


def test_this_file_system_can(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        assert can_be_unnamed(directory, ".probe")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["open", "link"])
def test_file_system_without_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real = os.open

    def refuse(*_args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    def opened_named(path: str, flags: int, *args: int, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            refuse()
        return real(path, flags, *args, **options)

    if step == "open":
        monkeypatch.setattr(os, "open", opened_named)
    else:
        monkeypatch.setattr(syscalls, "link_unnamed", refuse)
    pool = make_pool(tmp_path)
    assert pool.create("disk", 1 << 20).capacity == 1 << 20
    assert pool.backend._unnamed is False
    assert pool.names() == ["disk"]


def test_read_only_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(syscalls, "link_unnamed", refuse)
    with pytest.raises(SystemFailure) as caught:
        make_pool(tmp_path).create("disk", 1)
    wanted = f"Failed to create file '{tmp_path}/disk': Read-only file system"
    assert str(caught.value) == wanted


@pytest.mark.parametrize("unnamed", [True, False])
def test_commit_replaces_nothing(tmp_path: Path, unnamed: bool) -> None:
    (tmp_path / "there").write_text("precious")
    with (
        opened(tmp_path) as directory,
        pytest.raises(FileExistsError),
        new_file(directory, ".part", unnamed=unnamed) as file,
    ):
        file.commit("there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "precious"


def test_commit_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS has neither unnamed files nor a rename that replaces nothing."""

    def refuse(*_args: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(syscalls, "rename_noreplace", refuse)
    with opened(tmp_path) as directory:
        with new_file(directory, ".part", unnamed=False) as file:
            file.commit("disk")
        with pytest.raises(FileExistsError), new_file(directory, ".part", unnamed=False) as file:
            file.commit("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]
    assert (tmp_path / "disk").stat().st_nlink == 1


def test_lost_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link over NFS may be made and yet fail, when the server's answer was lost."""
    real = syscalls.link_unnamed

    def link(fd: int, directory: int, name: str) -> None:
        real(fd, directory, name)
        raise FileExistsError

    monkeypatch.setattr(syscalls, "link_unnamed", link)
    with opened(tmp_path) as directory, new_file(directory, ".part", unnamed=True) as file:
        file.commit("disk")
    assert (tmp_path / "disk").exists()


def test_directory_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """9p and some FUSE file systems have no such call for directories."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    pool = make_pool(tmp_path, host=Host("testhost"))
    record = pool.create("disk", 1)
    pool.backend.delete(record, new_job())
    assert pool.names() == []


@pytest.mark.parametrize("unnamed", [True, False])
def test_killed_in_the_middle(tmp_path: Path, unnamed: bool) -> None:
    root = Path(__file__).parents[2]
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, tmp_path, str(unnamed)],
        cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "under way\n"
        pool = make_pool(tmp_path)
        assert pool.refresh() == {}
        pool.backend.start(new_job())  # a living process keeps its file
        assert len(pool.names()) == (0 if unnamed else 1)
        worker.send_signal(signal.SIGKILL)
    assert len(pool.names()) == (0 if unnamed else 1)
    assert pool.refresh() == {}
    pool.backend.start(new_job())
    assert pool.names() == []


def test_only_own_leftovers_are_removed(tmp_path: Path) -> None:
    keep = [".storaged-other-1-1.part", ".storaged-host2-1-1.part", ".storaged-host-x.part", "disk"]
    for name in [*keep, ".storaged-host-1-1.part", ".storaged-host-1-2.part"]:
        (tmp_path / name).touch()
    locked = os.open(tmp_path / ".storaged-host-1-2.part", os.O_RDWR)
    try:
        assert try_lock(locked)
        with opened(tmp_path) as directory:
            assert remove_leftovers(directory, "host") == [".storaged-host-1-1.part"]
    finally:
        os.close(locked)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*keep, ".storaged-host-1-2.part"])


def test_start_without_target_is_no_error(tmp_path: Path) -> None:
    make_pool(tmp_path / "gone").backend.start(new_job())
