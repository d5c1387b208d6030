"""Sockets to listen on: modes, groups, long paths, those of the dead and of the living."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from storaged.errors import ResourceBusy, SystemFailure
from storaged.rpc import remote
from storaged.server.server import Role
from storaged.server.sockets import adopt, bind
from tests.server.conftest import Daemon, descriptors
from tests.server.peer import Peer


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o700, 0o777])
def test_mode_does_not_depend_on_the_umask(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "socket"
    before = os.umask(0o027)
    try:
        with closing(bind(path, mode=mode)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser gives files to any group")
def test_group(tmp_path: Path) -> None:
    with closing(bind(tmp_path / "socket", mode=0o660, group=4242)):
        assert (tmp_path / "socket").stat().st_gid == 4242


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with closing(bind(path, mode=0o700)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_live_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before = descriptors()
        with pytest.raises(ResourceBusy, match=f"served by process {other.pid}") as caught:
            bind(path, mode=0o700)
        assert caught.value.pid == other.pid
        assert "--root" in (caught.value.advice or "")
        assert descriptors() == before
        other.communicate()
    assert path.exists()
    bind(path, mode=0o700).close()


def test_busy_socket_is_refused(tmp_path: Path) -> None:
    """A daemon with a full queue of connections lives as well."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(path))
        full.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(ResourceBusy, match="served by somebody"):
            bind(path, mode=0o700)
        for client in waiting:
            client.close()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    with pytest.raises(SystemFailure, match="which is no socket"):
        bind(path, mode=0o700)
    assert path.read_text() == "precious"
    with pytest.raises(SystemFailure, match="No such file"):
        bind(tmp_path / "nowhere/socket", mode=0o700)


def test_path_longer_than_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    path = deep / "virtstoraged-sock"
    bound = bind(path, mode=0o700)
    directory = os.open(deep, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{directory}/{path.name}")
        with pytest.raises(ResourceBusy, match=str(os.getpid())):
            bind(path, mode=0o700)
    finally:
        os.close(directory)
        bound.close()
    assert not path.exists()


def test_socket_of_a_successor_is_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = bind(path, mode=0o700)
    path.rename(tmp_path / "old")
    with closing(bind(path, mode=0o700)):
        first.close()
        assert path.exists()


def test_adopted_socket(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "handed"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        bound = adopt(os.dup(listening.fileno()))
    assert not bound.socket.get_inheritable()
    running = daemon.serve()
    running.adopt(bound, Role.READ_WRITE)
    running.run(running.server.settle)
    with Peer(path) as peer:
        assert peer.call(remote.AUTH_LIST).types == (0,)
    running.stop()
    assert path.exists()  # it is not ours


def test_what_cannot_be_adopted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as idle, (tmp_path / "file").open("w") as file:
        before = descriptors()
        for fd in (idle.fileno(), file.fileno(), 9999):
            with pytest.raises(SystemFailure, match=f"socket {fd} "):
                adopt(fd)
        assert descriptors() == before


def test_sockets_go_with_the_server(daemon: Daemon) -> None:
    running = daemon.serve()
    assert (daemon.root / "rw").exists()
    threads = threading.active_count()
    running.stop()
    assert not (daemon.root / "rw").exists()
    assert threading.active_count() < threads
