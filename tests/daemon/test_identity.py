"""Who is at the other end, and the secret that the daemons of a host share."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from storaged.errors import InternalError, StorageError
from storaged.process import start_time
from storaged.rpc.identity import Identity
from storaged.server.identity import peer_identity, system_token, with_names


def test_a_peer_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = peer_identity(ours)
    assert (found.uid, found.gid, found.pid) == (os.getuid(), os.getgid(), os.getpid())
    assert found.started == start_time(os.getpid())
    assert found.trusted == (os.getuid() == 0)
    assert found.user is None


def test_names() -> None:
    found = with_names(Identity(uid=0, gid=0))
    assert (found.user, found.group) == ("root", "root")
    assert with_names(Identity(uid=3999999999, gid=3999999999)).user is None
    assert with_names(Identity(uid=0, user="other")).user == "other"


def test_start_times() -> None:
    assert start_time(1 << 22) is None
    assert (start_time(os.getpid()) or 0) > 0


def test_who_comes_first_makes_the_token(tmp_path: Path) -> None:
    path = tmp_path / "common/system.token"
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(system_token(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert path.read_text() == found[0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_that_is_there_is_used(tmp_path: Path) -> None:
    path = tmp_path / "system.token"
    path.touch(0o600)
    made = system_token(path)  # a daemon of libvirt was killed before it wrote one
    assert len(made) == 32
    path.write_text("0123456789abcdef" * 2)
    assert system_token(path) == "0123456789abcdef" * 2
    assert path.read_text() == "0123456789abcdef" * 2


@pytest.mark.parametrize("text", ["short", "x" * 32, "0" * 33])
def test_a_token_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "system.token"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(InternalError, match="32 hexadecimal digits"):
        system_token(path)
    assert path.read_text() == text


def test_a_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "system.token"
    path.write_text("0123456789abcdef" * 2)
    path.chmod(0o644)
    with pytest.raises(InternalError, match="not for its owner alone"):
        system_token(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        system_token(path)
    assert not (tmp_path / "elsewhere").exists()
