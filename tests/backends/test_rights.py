"""As whom files are reached where a server takes root's rights away, without a server."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storaged.backend import Host
from storaged.backends._newfile import new_file
from storaged.backends._rights import OWN, Entries, Rights, made_by
from storaged.backends.dir import Dir
from storaged.errors import SystemFailure
from storaged.job import Job
from storaged.model import Permissions, PoolDef

UID, GID = 12345, 23456
OWNER = Permissions(mode=0o600, owner=UID, group=GID)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have deputies")


@pytest.fixture
def squashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all changes that we make ourselves refused, as on a shared file system."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in vars(Entries):
        if not name.startswith("_"):
            monkeypatch.setattr(Entries, name, refuse)
    monkeypatch.setattr("storaged.backends._rights.is_shared", lambda _fd: True)


@pytest.fixture
def rights() -> Iterator[Rights]:
    found = Rights()
    yield found
    found.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """A directory of our user."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    os.chown(folder, UID, GID)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def owner_of(directory: int, name: str) -> tuple[int, int]:
    status = os.stat(name, dir_fd=directory)
    return status.st_uid, status.st_gid


def make(directory: int, name: str) -> Callable[[Entries], int]:
    return lambda entries: entries.create(directory, name, os.O_RDWR | os.O_CREAT, 0o600)


@pytest.mark.usefixtures("squashed")
def test_files_are_made_by_whom_they_are_to_belong_to(rights: Rights, directory: int) -> None:
    for name, wanted in (("asked", OWNER), ("by the directory", Permissions())):
        fd, entries = made_by(rights.makers(directory, wanted), make(directory, name))
        os.close(fd)
        assert entries is not OWN
        assert owner_of(directory, name) == (UID, GID)
    with pytest.raises(PermissionError):
        made_by(rights.makers(directory, Permissions(owner=777, group=777)), make(directory, "x"))


@pytest.mark.usefixtures("squashed")
def test_new_files_replace_nothing(rights: Rights, directory: int) -> None:
    for name in ("a", "b"):
        makers = rights.makers(directory, OWNER)
        with new_file(directory, f".{name}.part", unnamed=False, makers=makers) as file:
            file.commit(name)
    makers = rights.makers(directory, OWNER)
    with (
        new_file(directory, ".c.part", unnamed=False, makers=makers) as file,
        pytest.raises(FileExistsError),
    ):
        file.commit("a")
    assert sorted(os.listdir(directory)) == ["a", "b"]


@pytest.mark.usefixtures("squashed")
def test_what_is_removed_and_opened(rights: Rights, directory: int, tmp_path: Path) -> None:
    fd, _ = made_by(rights.makers(directory, OWNER), make(directory, "file"))
    os.close(fd)
    refusal = PermissionError(errno.EACCES, "refused")
    opened = rights.open_refused(refusal, directory, "file", os.O_RDWR)
    assert os.write(opened, b"x") == 1
    os.close(opened)
    rights.unlink(directory, "file")
    # root's own file in somebody's directory: he has no deputy, the directory's owner has
    (tmp_path / "folder" / "roots").touch()
    with pytest.raises(PermissionError):
        rights.open_refused(refusal, directory, "roots", os.O_RDWR)
    rights.unlink(directory, "roots")
    (tmp_path / "folder" / "empty").mkdir()
    rights.rmdir(directory, "empty")
    assert os.listdir(directory) == []


@pytest.mark.usefixtures("squashed")
def test_what_is_no_file_is_not_opened(rights: Rights, directory: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "folder" / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "folder" / "socket"))
        for name in ("fifo", "socket"):
            os.chown(tmp_path / "folder" / name, UID, GID)
            refusal = PermissionError(errno.EACCES, "refused")
            with pytest.raises(PermissionError) as refused:
                rights.open_refused(refusal, directory, name, os.O_RDONLY)
            assert refused.value is refusal


def test_where_nothing_is_shared_a_refusal_stays_one(rights: Rights, directory: int) -> None:
    assert list(rights.makers(directory, OWNER)) == [OWN]
    refusal = PermissionError(errno.EACCES, "refused")
    for one in (rights, Rights(session=True)):
        with pytest.raises(PermissionError) as refused:
            one.open_refused(refusal, directory, "x", os.O_RDONLY)
        assert refused.value is refusal


@pytest.mark.usefixtures("squashed")
@pytest.mark.parametrize("there", [False, True])
def test_target_is_made_and_adapted_as_its_owner(
    tmp_path: Path, directory: int, there: bool
) -> None:
    target = tmp_path / "folder" / "target"
    if there:
        target.mkdir(mode=0o700)
        os.chown(target, UID, GID)
    wanted = Permissions(mode=0o750, owner=UID, group=GID)
    backend = Dir(PoolDef("dir", "p", target=str(target), permissions=wanted), Host(id="h"))
    backend.build(Job("build", "p"))
    status = target.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (UID, GID, 0o750)
    assert backend.rights._deputies is not None
    assert not backend.rights._deputies._deputies  # no pool is active that could end them
    os.chown(target, 777, 777)
    others = Permissions(mode=0o700, owner=UID, group=GID)
    foreign = Dir(PoolDef("dir", "p", target=str(target), permissions=others), Host(id="h"))
    with pytest.raises(SystemFailure, match="cannot chown"):
        foreign.build(Job("build", "p"))
    os.chown(target, UID, GID)
    with backend.opened_target() as opened:
        os.close(backend.rights.open_refused(PermissionError(), opened, ".", os.O_RDONLY))
    assert backend.rights._deputies._deputies
    backend.stop(Job("stop", "p"))
    assert not backend.rights._deputies._deputies
    backend.delete_target(Job("delete", "p"))
    assert not target.exists()
